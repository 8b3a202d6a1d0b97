// Demo shows the whole of Go Outbox on one machine, with nothing to install but PostgreSQL: a throw-away Postgres, a
// nats-server inside this process, the HTTP service of examples/producer, the consumer of examples/consumer, and relays in
// processes of their own, so that they can be killed while events are being produced.
//
// It ends with a verdict: what the producers know that they committed, against what the stream holds. Exit status 0 says
// that the two are the same, in order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-outbox/go-outbox/examples/internal/sandbox"
)

func main() {
	if beRelay() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case interrupted:
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything it made is removed")
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// options are the demo's flags.
type options struct {
	duration time.Duration
	kills    int
	verbose  bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.DurationVar(&o.duration, "duration", 8*time.Second, "how long the storm lasts")
	flags.IntVar(&o.kills, "kills", 3, "how often the leading relay is killed in it")
	flags.BoolVar(&o.verbose, "v", false, "show the relays' logs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("arguments %q: want flags only", flags.Args())
	}
	if !o.verbose {
		stderr = io.Discard
	}

	box := &sandbox.Sandbox{}
	defer func() { err = errors.Join(err, box.Close()) }()
	dsn, err := box.Database(ctx)
	if err != nil {
		return err
	}
	natsURL, err := box.NATS() //nolint:contextcheck // The start of a server takes none.
	if err != nil {
		return err
	}
	return play(ctx, o, dsn, natsURL, stdout, stderr)
}
