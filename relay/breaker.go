package relay

import (
	"errors"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// breaker is the state of the circuit breaker: it says which events may be handed to the publisher.
type breaker int

const (
	breakerOpen     breaker = iota // None: there was trouble, and the publisher has not been opened since.
	breakerHalfOpen                // One at a time, until one of them is stored.
	breakerClosed                  // All.
)

// circuit is the circuit breaker with its clock.
type circuit struct {
	breaker  breaker
	opening  bool          // The publisher is being opened.
	lost     *stream.Error // The connection broke meanwhile, which opening it may not have noticed; nil if not.
	reopenAt time.Time     // When to open the publisher again, while the breaker is open.
	troubles int           // In a row.
	reason   string        // Why publishing is paused; empty if it is not.
}

// reopen spaces out the attempts to publish again after transient faults and set-up faults.
var reopen = backoff{first: 50 * time.Millisecond, most: time.Second} //nolint:gochecknoglobals // Immutable.

// resettle spaces out the attempts to remove published events that the database keeps.
var resettle = backoff{first: time.Second, most: 30 * time.Second} //nolint:gochecknoglobals // Immutable.

// open reports whether the publisher is to be opened now, and how long that may take. The caller reports the result through
// opened.
func (c *core) open(now time.Time) (patience time.Duration, due bool) {
	if c.circuit.breaker != breakerOpen || c.circuit.opening || c.stopping || now.Before(c.circuit.reopenAt) {
		return 0, false
	}
	c.circuit.opening = true
	return min(openTimeoutFirst<<min(c.circuit.troubles, 8), openTimeout), true
}

// opened takes the result of opening the publisher: nil for success. If publishing remains impossible it returns why.
func (c *core) opened(fault *stream.Error) (still *stream.Error) {
	lost := c.circuit.lost
	c.circuit.opening, c.circuit.lost = false, nil
	switch {
	case fault != nil:
		return fault
	case lost != nil:
		return lost
	}
	c.circuit.breaker = breakerHalfOpen
	return nil
}

// pause opens the breaker, and reports whether it was not open: many events may fail for one reason. The caller then calls
// setback.
func (c *core) pause() bool {
	if c.circuit.breaker == breakerOpen {
		return false
	}
	c.circuit.breaker = breakerOpen
	c.markInDoubt() // Nobody knows what happens to the stream meanwhile.
	return true
}

// setback notes that publishing is not possible now and why. It reports whether the reason is news.
func (c *core) setback(fault *stream.Error, now time.Time) (news bool) {
	c.circuit.troubles++
	c.blind.begin(fault, now)
	c.circuit.reopenAt = now.Add(reopen.after(c.circuit.troubles))
	if errors.Is(fault, store.ErrKept) || errors.Is(fault, store.ErrUnarchived) {
		c.circuit.reopenAt = now.Add(resettle.after(c.circuit.troubles)) // Each attempt reads back the stream.
	}
	reason := fault.Error()
	if reason == c.circuit.reason {
		return false
	}
	if c.circuit.reason == "" {
		c.report.begin(now)
	}
	c.circuit.reason = reason
	return true
}

// lostConnection takes note that the connection broke.
func (c *core) lostConnection(fault *stream.Error) {
	if c.circuit.opening {
		c.circuit.lost = fault
	}
}

// proceeds reports whether the half-open breaker may be closed before an event is stored: the stream has been read back, if
// that was needed, and there was no trouble, or there is no event to try first: the outbox has been looked into since and has
// none, or it is paused by hand.
func (c *core) proceeds() bool {
	return c.circuit.breaker == breakerHalfOpen && !c.doubt && (c.circuit.troubles == 0 || c.byHand.paused || c.heldRows == 0 && !c.more && c.trip == nil)
}

// resume closes the breaker, and reports whether publishing had been paused for a reason.
func (c *core) resume() (paused bool) {
	paused = c.circuit.reason != ""
	c.circuit = circuit{breaker: breakerClosed, opening: c.circuit.opening, lost: c.circuit.lost, reopenAt: c.circuit.reopenAt}
	c.blind = blindness{asking: c.blind.asking}
	return paused
}

// publishes reports whether events may be handed to the publisher.
func (c *core) publishes() bool {
	return c.circuit.breaker != breakerOpen && !c.stopping && !c.byHand.paused
}

// limit chooses how the next events are sent, and returns how many may be in flight. Batches is how many may be in an ordered
// batch; 0 if there can be none. Alone tells that the publisher wants one event at a time.
func (c *core) limit(batches int, alone bool) int {
	limit := c.window
	if alone {
		limit = 1
	}
	if c.circuit.breaker == breakerHalfOpen {
		limit, batches = 1, 0
	}
	c.engage(batches)
	if c.ordered {
		limit = batches
	}
	return limit
}

// nextTurn returns when there may be something to do that nothing else signals, at the latest after turnsEvery.
func (c *core) nextTurn(now time.Time) time.Time {
	at := now.Add(turnsEvery)
	if c.stopping { // Only outcomes and responses are waited for.
		return at
	}
	earlier := func(due time.Time) {
		if !due.IsZero() && due.Before(at) {
			at = due
		}
	}
	earlier(c.deadline())
	if c.circuit.breaker == breakerOpen && !c.circuit.opening {
		earlier(c.circuit.reopenAt)
	}
	earlier(c.blind.due(c.circuit.breaker))
	earlier(c.report.due(c.circuit.reason))
	if c.mayVerify() {
		earlier(c.detector.due)
	}
	return at
}
