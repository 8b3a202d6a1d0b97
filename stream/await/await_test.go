package await_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-outbox/go-outbox/stream/await"
)

var errOwn, errCause = errors.New("its own"), errors.New("the cause")

// A call ends 50 ms after its context. Until then its own error counts, since it says more.
func TestCall(t *testing.T) {
	for _, test := range []struct {
		name  string
		takes time.Duration
		want  error
		after time.Duration
	}{
		{"in time", time.Second, errOwn, time.Second},
		{"in the time of grace", 2*time.Second + 49*time.Millisecond, errOwn, 2*time.Second + 49*time.Millisecond},
		{"too late", time.Minute, errCause, 2*time.Second + 50*time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, errCause)
				defer cancel()
				begin := time.Now()
				err := await.Done(ctx, func() error {
					<-time.After(test.takes)
					return errOwn
				})
				if took := time.Since(begin); !errors.Is(err, test.want) || took != test.after {
					t.Errorf("got %v after %v, want %v after %v", err, took, test.want, test.after)
				}
				<-time.After(test.takes) // All in the bubble must end.
			})
		})
	}
}
