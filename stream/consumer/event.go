package consumer

import (
	"errors"

	"github.com/go-outbox/go-outbox/stream"
)

// Event is one event as a handler gets it.
type Event struct {
	stream.Event

	// Sequence is the event's place in the stream.
	Sequence uint64
	// Subject is where it was published.
	Subject string
	// Attempt counts the handler's calls for this event in this process, from 1 on.
	Attempt int
}

// Permanent marks a handler's error as one that trying again does not mend: the event is parked at once. A nil error stays nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanentError{err}
}

type permanentError struct{ error }

func (p permanentError) Unwrap() error { return p.error }

func isPermanent(err error) bool {
	_, ok := errors.AsType[permanentError](err)
	return ok
}
