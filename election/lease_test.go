package election_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-outbox/go-outbox/election"
)

func TestAlways(t *testing.T) {
	conform(t, func(*testing.T) contender { return contender{elector: election.Always{}} })
}

func TestAlwaysLeadsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var lease *election.Lease
		err := election.Always{}.Run(ctx, func(ctx context.Context, granted *election.Lease) error {
			lease = granted
			time.Sleep(1000 * time.Hour)
			if !lease.Valid() || ctx.Err() != nil {
				t.Errorf("after 1000 hours: the lease is valid %v and the context ended for %v, want true and that it has not", lease.Valid(), ctx.Err())
			}
			cancel()
			return nil
		})
		if err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
		if lease.Valid() {
			t.Error("the lease is valid after the end")
		}
	})
}

func TestLeaseRunsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end, held := time.Now().Add(time.Minute), true
		lease := election.NewLease(func() (time.Time, bool) { return end, held })
		valid := func(want bool, when string) {
			t.Helper()
			if got := lease.Valid(); got != want {
				t.Errorf("%s: got valid %v, want %v", when, got, want)
			}
		}
		valid(true, "at the beginning")
		time.Sleep(time.Minute - time.Nanosecond)
		valid(true, "a nanosecond before its end")
		time.Sleep(time.Nanosecond)
		valid(false, "at its end")
		end = end.Add(time.Minute)
		valid(true, "renewed")
		held = false
		valid(false, "lost")
	})
}
