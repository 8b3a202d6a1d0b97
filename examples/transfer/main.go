// Transfer moves money between two databases while everything in between is killed, and proves that none is lost or made.
//
// The order service takes an amount from an account in its database and inserts an event, in one transaction. A relay moves the
// event to JetStream, and a consumer adds the amount to an account in the payment service's database. Relays, consumers,
// nats-server and Postgres run in processes of their own and are killed at random. In the end both databases together must
// have what they began with: exit status 0.
//
//	go run ./examples/transfer -transfers 10000 -kills 50
//
// With -inbox=false the consumer is what one writes in an afternoon, a durable consumer that acknowledges after the commit. Then
// the sum does not hold: exit status 1.
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
)

func main() {
	if beChild() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case interrupted:
		fmt.Fprintln(os.Stderr, "transfer: interrupted; everything it made is removed")
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "transfer:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	transfers int
	kills     int
	inbox     bool
	verbose   bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	flags := flag.NewFlagSet("transfer", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.transfers, "transfers", 2000, "how many transfers there are")
	flags.IntVar(&o.kills, "kills", 10, "how many processes are killed meanwhile")
	flags.BoolVar(&o.inbox, "inbox", true, "have each effect once; without it some are there twice")
	flags.BoolVar(&o.verbose, "v", false, "show the logs of relays and consumers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("arguments %q: want flags only", flags.Args())
	}
	if o.transfers < 1 || o.kills < 0 {
		return errors.New("want at least 1 transfer and 0 kills")
	}
	if !o.verbose {
		stderr = io.Discard
	}
	return play(ctx, o, stdout, stderr)
}
