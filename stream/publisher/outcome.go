package publisher

import (
	"errors"
	"fmt"

	"github.com/go-outbox/go-outbox/stream"
)

// An Outcome is what became of one event that Publish or PublishOrdered took.
type Outcome struct {
	// Seq is the event's Seq. Any number may be one.
	Seq int64

	// Stored is the message's sequence in the stream. It is 0 if Err is set or
	// if the stream does not tell it: in an ordered batch, the stream tells only
	// the sequence of the last event. If Duplicate is set, it is the sequence of
	// the message that the stream had already.
	Stored uint64

	// Duplicate says that the stream had the event's ID already: from an
	// earlier attempt whose answer was lost, or because two rows have the same
	// ID. This event was not stored. It is never set for events of an ordered
	// batch, see SkippedError.
	Duplicate bool

	// Err says whose fault it is that the stream has not acknowledged the event;
	// nil if it has.
	Err *stream.Error

	// Retry says that Err is about another event of the ordered batch: this one
	// is not stored, and can be sent again at once.
	Retry bool
}

// stored is the outcome of an event that the stream has acknowledged.
func stored(seq int64, sequence uint64, duplicate bool) Outcome {
	return Outcome{Seq: seq, Stored: sequence, Duplicate: duplicate}
}

// unstored is the outcome of an event without an acknowledgement. If the fault is
// nil, the event is in doubt: an outcome without an error would say that it is
// stored.
func unstored(seq int64, fault *stream.Error) Outcome {
	if fault == nil {
		fault = stream.Classify(errNoFault)
	}
	return Outcome{Seq: seq, Err: fault}
}

var errNoFault = errors.New("no acknowledgement, for an unknown reason")

// A SkippedError says that the stream has skipped at least one event of an
// ordered batch, since it had the event's ID already. The stream does not tell
// which: the outcomes say that all events of the batch are stored. To learn which
// one it was, read back the stream and then send the events by themselves.
type SkippedError struct {
	// Stream is the stream's name.
	Stream string

	// Events is how many events the stream counted, and Most how many of them
	// it can have stored.
	Events, Most uint64
}

// Error tells the numbers.
func (e *SkippedError) Error() string {
	return fmt.Sprintf("stream %q stored at most %d of %d events of an ordered batch: it had the IDs of others already", e.Stream, e.Most, e.Events)
}
