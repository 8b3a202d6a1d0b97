package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go obey(signals, stop, func() {
		fmt.Fprintln(os.Stderr, "outbox-relay: stopping at once: a second signal")
		os.Exit(exitFailure)
	})
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// sameSignal is for how long a signal counts as the same as the one before: some programs that run others signal the
// process and then its group.
const sameSignal = time.Second

// obey stops gracefully on the first signal and at once on the second.
func obey(signals <-chan os.Signal, stop context.CancelCauseFunc, kill func()) {
	stop(fmt.Errorf("received the signal %q", <-signals))
	for first := time.Now(); ; {
		<-signals
		if time.Since(first) >= sameSignal {
			kill()
			return
		}
	}
}

// run is the whole program: it carries out the command line args until that is done or ctx ends, and returns the
// exit code.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	p := &process{environ: environ, stdout: stdout, stderr: stderr}
	root := newRootCommand(p) //nolint:contextcheck // Commands get it from ExecuteContext.

	// Never nil, for which cobra would take the arguments of the process.
	root.SetArgs(append([]string{}, args...))
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(stderr, "outbox-relay: %v\n", err)
	}
	return exitCode(err)
}
