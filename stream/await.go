package stream

import (
	"context"
	"time"
)

// awaitGrace is how much longer than its context a call may take: its own error says
// more than that the time is up.
const awaitGrace = 50 * time.Millisecond

// await calls f and returns its result. If ctx ends first, await returns the cause
// soon after. It is needed since calls of nats.go that take the connection's lock
// ignore the context, and a reconnect holds this lock while it waits for the network.
// Such a wait ends by itself within seconds. Until then f goes on, so f must not touch
// what the caller uses afterwards.
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
