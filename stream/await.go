package stream

import (
	"context"
	"time"
)

// awaitGrace is how much longer than its context a call may take to say why it
// ended: what it says is better than that time is up.
const awaitGrace = 50 * time.Millisecond

// await calls f, and returns what f returns or, soon after ctx has ended, why it
// has. Nothing in nats.go that needs the connection's lock looks at a context, and
// a reconnect holds this lock while it waits for the network. Such a wait ends by
// itself, within seconds; until then f goes on, so it must not touch what its
// caller goes on to use.
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

// awaitErr is await for a call that returns nothing else.
func awaitErr(ctx context.Context, f func() error) error {
	_, err := await(ctx, func() (struct{}, error) { return struct{}{}, f() })
	return err
}
