package election

import (
	"context"
	"time"
)

// awaitGrace is how much longer than its context a call may take to say why it ended.
const awaitGrace = 50 * time.Millisecond

// await calls f and returns its results. Soon after ctx has ended it returns the cause instead, while f goes on. Calls of
// nats.go that need the connection's lock do not look at the context, and a reconnect holds this lock while it waits for the
// network. Such a wait ends by itself within seconds. Until then f still runs, so it must not touch anything that the caller
// uses afterwards.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	grace := time.NewTimer(awaitGrace)
	defer grace.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-grace.C:
		var none T
		return none, context.Cause(ctx)
	}
}

// awaitErr is await for a call that returns only an error.
func awaitErr(ctx context.Context, f func() error) error {
	_, err := await(ctx, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// outlast returns a context that ends d after ctx: for a request whose outcome matters even after ctx has ended.
func outlast(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	outlasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		pause(outlasting, d)
		cancel()
	})
	return outlasting, func() {
		stop()
		cancel()
	}
}
