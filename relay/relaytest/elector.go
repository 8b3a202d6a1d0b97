package relaytest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
)

// Elector is an election of one candidate: it wins, unless somebody else leads. It implements relay.Elector.
type Elector struct {
	mu      sync.Mutex // Protects what follows.
	others  bool       // Another leads.
	changed chan struct{}
	end     context.CancelCauseFunc // Ends the term under way; nil for none.
	held    *atomic.Bool            // Whether that term's lease is.
}

var _ relay.Elector = (*Elector)(nil)

// NewElector returns an elector whose candidate wins at once.
func NewElector() *Elector { return &Elector{changed: make(chan struct{})} }

// OthersLead takes the lead away, as if the lease had been lost to another, and gives it to nobody until it is called with
// false.
func (e *Elector) OthersLead(lead bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.others = lead
	close(e.changed)
	e.changed = make(chan struct{})
	if lead && e.end != nil {
		e.held.Store(false)
		e.end(election.ErrLeaseLost)
	}
}

// Standby reports whether another leads.
func (e *Elector) Standby() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.others
}

// Trouble reports that nothing keeps it from leading.
func (e *Elector) Trouble() string { return "" }

// Run implements relay.Elector.
func (e *Elector) Run(ctx context.Context, lead func(ctx context.Context, lease *election.Lease) error) error {
	for ctx.Err() == nil {
		e.mu.Lock()
		if e.others {
			changed := e.changed
			e.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		leading, end := context.WithCancelCause(ctx)
		held := &atomic.Bool{}
		held.Store(true)
		e.end, e.held = end, held
		e.mu.Unlock()
		lease := election.NewLease(func() (time.Time, bool) { return time.Now().Add(time.Minute), held.Load() })
		err := lead(leading, lease)
		lost := errors.Is(context.Cause(leading), election.ErrLeaseLost)
		e.mu.Lock()
		e.end = nil
		e.mu.Unlock()
		held.Store(false)
		end(nil)
		if err != nil && !lost {
			if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				return nil
			}
			return err
		}
	}
	return nil
}
