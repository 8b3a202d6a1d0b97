package relay

import (
	"context"
	"errors"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// blindness tells since when a leader has not been able to publish, and what it has done about that. After some seconds the
// leader makes way for a standby that could publish, if there is one.
type blindness struct {
	since  time.Time // Zero if it can publish, or no other relay could either.
	asking bool      // The outbox is being asked for standbys.
	askAt  time.Time // When to ask for them again.
}

// askAgain is how often a leader that cannot publish looks for a standby.
const askAgain = time.Second

// standbys is the answer to the question for standbys.
type standbys struct {
	fit int
	err error
}

// begin takes note of a reason why nothing can be published.
func (b *blindness) begin(fault *stream.Error, now time.Time) {
	if b.since.IsZero() && !errors.Is(fault, store.ErrKept) { // If the database does not let a row go, no other relay could publish either.
		b.since = now
		b.askAt = now.Add(unfitAfter)
	}
}

// due returns when to look for a standby; zero for never.
func (b *blindness) due(g breaker) time.Time {
	if b.since.IsZero() || b.asking || g != breakerOpen {
		return time.Time{}
	}
	return b.askAt
}

// seek reports whether it is to be asked now whether another relay could publish. The caller reports the answer through
// sought. A leader that reads the stream back does not count as unable to publish: its successor would have to do the same.
func (c *core) seek(now time.Time) bool {
	if due := c.blind.due(c.circuit.breaker); due.IsZero() || now.Before(due) || c.stopping {
		return false
	}
	c.blind.asking = true
	return true
}

// sought takes how many other relays could publish, and reports whether this one is to make way.
func (c *core) sought(fit int, now time.Time) (makesWay bool) {
	c.blind.asking = false
	c.blind.askAt = now.Add(askAgain)
	switch {
	case fit == 0 || c.circuit.breaker != breakerOpen || c.blind.since.IsZero() || c.stopping:
		return false
	}
	return true
}

// seekStandby asks whether another relay could publish, when that is due.
func (t *term) seekStandby(ctx context.Context, now time.Time) {
	if !t.core.seek(now) {
		return
	}
	t.start(func() {
		n, err := t.inOutbox.Standbys(ctx)
		t.standbys <- standbys{n, err}
	})
}

// soughtStandby takes the answer. Its error ends the term.
func (t *term) soughtStandby(s standbys, now time.Time) error {
	makesWay := t.core.sought(s.fit, now)
	switch {
	case s.err != nil:
		return &setbackError{s.err}
	case makesWay:
		return &unfitError{t.core.circuit.reason}
	}
	return nil
}
