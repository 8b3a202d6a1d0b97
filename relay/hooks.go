package relay

import (
	"context"
	"errors"
	"time"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
)

// Hooks are called when something happens; those that are nil are not. They are called from the relay's own
// goroutine, so they must return quickly and not call the relay.
type Hooks struct {
	// Elected begins a term, Resigned ends it.
	Elected  func(term int64)
	Resigned func(EndReason)
	// Published tells of events that the stream acknowledged, some at a time.
	Published func(Published)
	// Stored tells of each event that the stream acknowledged, for tracing: see package tracing. An event that is found in the
	// stream when it is read back is not told of.
	Stored func(Stored)
	// Refused tells of an event that the broker refused for a reason of the event's own.
	Refused func(Refused)
	// Paused tells that publishing is not possible and why, Resumed that it is again. Paused may be called
	// several times, for changing reasons.
	Paused  func(fault *stream.Error)
	Resumed func()
	// Recovered tells that the stream was read back, at the beginning of a term or because an outcome was in doubt.
	Recovered func(Recovered)
	// RoundTrip tells of a round trip to the outbox.
	RoundTrip func(RoundTrip)
	// Database tells what in the database slows or stops the relay: see store.Outbox.Watch. Unlike the others it is
	// called from a goroutine of its own.
	Database func(store.Finding)
	// Twice tells of a row that has another's id, so that the stream did not store it.
	Twice func(Twice)
	// Kept tells of a row that the database does not let go, or whose refusal it does not record, for a reason of that row's
	// own.
	Kept func(store.Kept)
}

// EndReason is why a term ended.
type EndReason string

// The reasons why a term ends.
const (
	EndStopped  EndReason = "stopped"  // The relay was asked to stop.
	EndMadeWay  EndReason = "made_way" // It could not publish, and a standby could.
	EndLease    EndReason = "lease"    // The lease ran out: no sign of life from whoever elected it.
	EndPostgres EndReason = "postgres" // A round trip to the outbox failed.
	EndDeposed  EndReason = "deposed"  // The stream has seen a later term.
	EndRefused  EndReason = "refused"  // Something that waiting does not mend: the relay ends, too.
)

// EndReasons returns all of them.
func EndReasons() []EndReason {
	return []EndReason{EndStopped, EndMadeWay, EndLease, EndPostgres, EndDeposed, EndRefused}
}

// endReason finds out why a term has ended, by the error that ended it.
func (t *term) endReason(ctx context.Context, err error) EndReason {
	var (
		unfit   *unfitError
		deposed *history.DeposedError
		setback *setbackError
	)
	switch {
	case t.core.stopping:
		return EndStopped
	case errors.As(err, &unfit):
		return EndMadeWay
	case errors.As(err, &deposed):
		return EndDeposed
	case ctx.Err() != nil, errors.Is(err, election.ErrLeaseLost):
		return EndLease
	case errors.As(err, &setback):
		return EndPostgres
	}
	return EndRefused
}

// Published is what [Hooks.Published] is told.
type Published struct {
	// Events is how many were acknowledged; Duplicates of them were stored by an earlier attempt.
	Events, Duplicates int
	// Ordered tells that they went in an ordered batch, rather than each by itself: see [Session].
	Ordered bool
	// Created is when they were inserted, by the database's clock, but for those that the relay no longer holds. It is good
	// until the hook returns. Bytes are those of their payloads.
	Created []time.Time
	Bytes   int
	// Ack is how long the acknowledgement of one of them took, since the relay had handed it to the publisher; 0 if none was
	// measured. One event at a time is.
	Ack time.Duration
}

// Refused is what [Hooks.Refused] is told.
type Refused struct {
	EventType string
	// Attempts counts refusals, this one included.
	Attempts int
	// Dead tells that the event is given up.
	Dead bool
	Err  error
}

// Recovered is what [Hooks.Recovered] is told.
type Recovered struct {
	// Read is how many events were read, and Found how many of them were still in the outbox and have been settled.
	Read, Found int
	// Skipped tells that the reason was an ordered batch: the stream had skipped events of it, since it had their ids.
	Skipped bool
	// Lost is how many events had been acknowledged and are no longer in the stream: they are in the outbox again. Deeper
	// tells that the broker may have lost more events than the archive has.
	Lost   int
	Deeper bool
	// Took is how long it took.
	Took time.Duration
}

// RoundTrip is what [Hooks.RoundTrip] is told.
type RoundTrip struct {
	// Settled is how many rows were removed from the outbox, and Fetched how many were read.
	Settled, Fetched int
	// Asleep tells that producers notify the relay from now on.
	Asleep bool
	// Took is how long it took.
	Took time.Duration
	// Err tells that it failed, which ends the term. Then there is nothing else to tell.
	Err error
}

// orNop fills in what is not set.
func (h Hooks) orNop() Hooks {
	if h.Elected == nil {
		h.Elected = func(int64) {}
	}
	if h.Resigned == nil {
		h.Resigned = func(EndReason) {}
	}
	if h.Published == nil {
		h.Published = func(Published) {}
	}
	if h.Refused == nil {
		h.Refused = func(Refused) {}
	}
	if h.Paused == nil {
		h.Paused = func(*stream.Error) {}
	}
	if h.Resumed == nil {
		h.Resumed = func() {}
	}
	if h.Recovered == nil {
		h.Recovered = func(Recovered) {}
	}
	if h.RoundTrip == nil {
		h.RoundTrip = func(RoundTrip) {}
	}
	if h.Database == nil {
		h.Database = func(store.Finding) {}
	}
	if h.Twice == nil {
		h.Twice = func(Twice) {}
	}
	if h.Kept == nil {
		h.Kept = func(store.Kept) {}
	}
	return h
}
