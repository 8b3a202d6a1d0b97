package consumer

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// State is what a consumer is doing.
type State string

// The states of a [Consumer].
const (
	Stopped    State = "stopped"
	Waiting    State = "waiting"     // For Postgres, NATS or the stream.
	StandingBy State = "standing by" // Another process consumes, or nobody can be elected: the log tells.
	Consuming  State = "consuming"
	Stopping   State = "stopping"
)

// Status is what a consumer is doing now.
type Status struct {
	State State
	// Reason says what it waits for; empty unless State is Waiting.
	Reason string
	// Position is a sequence of the stream up to which all is handled, and Lag how many messages come after it. Both are 0
	// unless this process consumes.
	Position, Lag uint64
	// Pending is how many messages are read and not yet handled.
	Pending int
	// Held are the events that failed and will be tried again. Each holds up its lane.
	Held []Held
	// Applied counts events whose effect this process has committed, Skipped those that were handled before, Parked those
	// that were given up, and Retries the handler's failures.
	Applied, Skipped, Parked, Retries uint64
}

// Held is an event that failed and will be tried again.
type Held struct {
	AggregateType, AggregateID string
	ID                         uuid.UUID
	Seq                        int64
	Sequence                   uint64
	Attempts                   int // How often the handler failed; 0 if Postgres did.
	Since                      time.Time
	Reason                     string
}

// counts are of all terms of a process.
type counts struct{ applied, skipped, parked, retries atomic.Uint64 }

// Status tells what the consumer is doing now. It may be called at any time, from anywhere.
func (c *Consumer) Status() Status {
	c.mu.Lock()
	s := Status{State: c.state, Reason: c.reason}
	t := c.term
	c.mu.Unlock()
	s.Applied, s.Skipped = c.counts.applied.Load(), c.counts.skipped.Load()
	s.Parked, s.Retries = c.counts.parked.Load(), c.counts.retries.Load()
	if t == nil {
		return s
	}
	at, underWay := t.pending.lowest()
	s.Position, s.Pending, s.Lag = at.sequence, underWay, uint64(underWay)+t.left.Load()
	for _, l := range t.lanes {
		l.mu.Lock()
		if l.held != nil {
			s.Held = append(s.Held, *l.held)
		}
		l.mu.Unlock()
	}
	slices.SortFunc(s.Held, func(a, b Held) int { return a.Since.Compare(b.Since) })
	return s
}
