// Package await lets a call of nats.go end with its context.
//
// Calls that take the connection's lock ignore their context, and a reconnect holds this lock while it waits for the
// network. Such a wait ends by itself within seconds.
package await

import (
	"context"
	"time"
)

// grace is how much longer than its context a call may take: its own error says more
// than that the time is up.
const grace = 50 * time.Millisecond

// Call calls f and returns its result. If ctx ends first, Call returns the cause of
// that within 50 ms, while f goes on: so f must not touch what the caller uses
// afterwards.
func Call[T any](ctx context.Context, f func() (T, error)) (T, error) {
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
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-late.C:
		var none T
		return none, context.Cause(ctx)
	}
}

// Done is Call for a call that returns nothing but an error.
func Done(ctx context.Context, f func() error) error {
	_, err := Call(ctx, func() (struct{}, error) { return struct{}{}, f() })
	return err
}
