package relay

import (
	"context"
	"errors"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// blindness is since when a leader has not been able to publish, and what it has done about that: once it has lasted for
// some seconds, the leader makes way for a standby that could, if there is one.
type blindness struct {
	since  time.Time // Zero if it can publish, or no other relay could either.
	asking bool      // Whether there is a standby is being found out.
	askAt  time.Time // When that is to be done again.
}

// askAgain is how often a leader that cannot publish looks for a standby.
const askAgain = time.Second

// standbys is what came of a look for them.
type standbys struct {
	fit int
	err error
}

// begin takes note of a reason why nothing can be published.
func (b *blindness) begin(fault *stream.Error, now time.Time) {
	if b.since.IsZero() && !errors.Is(fault, store.ErrKept) { // What the database keeps it keeps for all.
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

// seekStandby has it found out whether another relay could publish, when that is due. Reading back the stream is work: a
// leader is not blind while it does that, and its successor would have to do the same.
func (t *term) seekStandby(ctx context.Context, now time.Time) {
	if due := t.blind.due(t.breaker); due.IsZero() || now.Before(due) || t.stopping {
		return
	}
	t.blind.asking = true
	t.workers.Go(func() {
		n, err := t.store.Standbys(ctx)
		t.standbys <- standbys{n, err}
	})
}

// soughtStandby takes the answer. Its error ends the term.
func (t *term) soughtStandby(s standbys, now time.Time) error {
	t.blind.asking = false
	t.blind.askAt = now.Add(askAgain)
	switch {
	case s.err != nil:
		return &setbackError{s.err}
	case s.fit == 0 || t.breaker != breakerOpen || t.blind.since.IsZero() || t.stopping:
		return nil
	}
	return &unfitError{t.reason}
}
