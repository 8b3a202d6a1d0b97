package election

import (
	"context"
	"errors"
	"time"
)

// Lease is the right to lead. It ends by itself unless the elector renews it. So a leader that was cut off or frozen knows by
// its own clock that another may have taken over.
type Lease struct {
	until func() (time.Time, bool)
}

// NewLease returns a lease that ends when until says, for electors outside this package. until is called before each write,
// from any goroutine: it must be fast. Its second result is false once the lease is lost for good. The time must carry a
// monotonic clock reading, as [time.Now] does: no safety may rest on wall clocks.
func NewLease(until func() (end time.Time, held bool)) *Lease {
	return &Lease{until: until}
}

// Valid reports whether the leader may still act. Call it immediately before each act: a process can be stopped at any point
// for any time, and its contexts are cancelled only some time after it has woken.
func (l *Lease) Valid() bool {
	end, held := l.until()
	return held && time.Now().Before(end)
}

// Always is the elector for a relay that is known to be alone: it is elected at once and for ever. Two relays
// under Always publish the same events concurrently; the broker drops the duplicates within its duplicate
// window, but an aggregate's order is then not guaranteed.
type Always struct{}

// Standby reports that nobody else leads.
func (Always) Standby() bool { return false }

// Trouble reports that nothing keeps it from leading.
func (Always) Trouble() string { return "" }

// Run implements the relay's Elector.
func (Always) Run(ctx context.Context, lead func(ctx context.Context, lease *Lease) error) error {
	for ctx.Err() == nil {
		forever := NewLease(func() (time.Time, bool) { return time.Now().Add(time.Hour), ctx.Err() == nil })
		if err := lead(ctx, forever); err != nil {
			if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				return nil
			}
			return err
		}
	}
	return nil
}
