package stream

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// An Outcome is what became of one event that was handed to Publish or
// PublishInOrder.
type Outcome struct {
	// Seq is the event's. Any number may be one.
	Seq int64

	// Stored is the message's sequence in the stream. It is 0 if Err is set,
	// and where the stream does not tell it: of an ordered batch, only the
	// sequence of the last event is told. Of a duplicate it is the sequence of
	// the message that the stream has kept.
	Stored uint64

	// Duplicate says that the stream had the event's ID already: from an
	// earlier attempt whose answer was lost, or because two rows have the same
	// ID. This event was not stored. Of events in an ordered batch it is never
	// told, see SkippedError.
	Duplicate bool

	// Err says whose fault it is that there is no acknowledgement; nil if
	// there is one.
	Err *Error

	// Again says that Err is about another event of an ordered batch: this one
	// is not stored, and nothing speaks against sending it again at once.
	Again bool
}

// stored is the outcome of an event that the stream has acknowledged.
func stored(seq int64, sequence uint64, duplicate bool) Outcome {
	return Outcome{Seq: seq, Stored: sequence, Duplicate: duplicate}
}

// unstored is the outcome of an event without an acknowledgement. Without a
// fault it is in doubt: an outcome without an error would say that the event is
// stored.
func unstored(seq int64, fault *Error) Outcome {
	if fault == nil {
		fault = Classify(errNoFault)
	}
	return Outcome{Seq: seq, Err: fault}
}

var errNoFault = errors.New("no acknowledgement, for an unknown reason")

// SkippedError says that the stream has skipped at least one event of an
// ordered batch, since it had the event's ID already, and does not tell which:
// the batch's outcomes say that all of its events are stored. Who reads back
// the stream and then sends one by one learns which one it was.
type SkippedError struct {
	// Stream is its name.
	Stream string

	// Events is how many events the stream counted, and Most how many of them
	// it can have stored.
	Events, Most uint64
}

// Error tells the numbers.
func (e *SkippedError) Error() string {
	return fmt.Sprintf("stream %q stored at most %d of %d events of an ordered batch: it had the IDs of others already", e.Stream, e.Most, e.Events)
}

// malformed is the fault of an answer that nobody understands. What became of
// the message is in doubt.
func malformed(what string) *Error {
	return Classify(&malformedError{what})
}

// malformedError is a jetstream.ErrInvalidJSAck that says what is wrong.
type malformedError struct{ what string }

func (e *malformedError) Error() string { return "malformed answer of the stream: " + e.what }
func (e *malformedError) Unwrap() error { return jetstream.ErrInvalidJSAck }
