package history

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
)

// Found is a message that the stream holds.
type Found struct {
	// Event says that the message is an event, of this outbox or of another
	// one, and that Seq and ID are the event's. Any number may be an event's Seq.
	Event bool
	Seq   int64
	ID    uuid.UUID

	// Stored is the message's sequence in the stream, Size the size of its payload
	// in bytes.
	Stored uint64
	Size   int
}

// Scan reads back the messages that the stream holds after a sequence and before
// the fence, and passes them to visit in that order: events of any outbox, and
// possibly other messages. It reads headers only, of about a quarter of a million
// messages a second.
//
// If visit returns an error, Scan ends and returns it. Any other error is a *stream.Error.
func (h *History) Scan(ctx context.Context, above uint64, fence Fence, visit func(Found) error) (err error) {
	ctx, done := h.connection.Ask(ctx)
	defer done(&err)
	if above+1 >= fence.Sequence {
		return nil
	}
	conn := h.connection.Current()
	if conn == nil {
		return stream.Classify(nats.ErrInvalidConnection)
	}
	filter := h.setup.Template.Filter()
	if _, among := h.setup.Template.Match(h.controlSubject()); !among {
		// The scan ends at the fence, so the filter must not hide it. Reading
		// everything costs less than a second filter, with which a server is a
		// hundred times slower.
		filter = ""
	}
	for {
		begun := above
		err := h.scan(ctx, conn, &above, fence.Sequence, filter, visit)
		if h.readsDirectly(err) {
			err = h.scanDirect(ctx, conn, &above, fence.Sequence, filter, visit)
		}
		visited, isVisit := errors.AsType[*visitError](err)
		switch {
		case err == nil:
			return nil
		case isVisit:
			return visited.error
		case errors.Is(err, errInterrupted) && above > begun && ctx.Err() == nil:
			continue // There may be a better server.
		}
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
			err = cause
		}
		return stream.Classify(h.explainScan(err))
	}
}

// controlSubject returns the subject of the latest fence; empty if there was none.
func (h *History) controlSubject() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.subject
}

// readsDirectly reports whether to go on by direct gets after an error: the server
// refused the consumer.
func (h *History) readsDirectly(err error) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.config.AllowDirect && errors.Is(err, jetstream.ErrMaximumConsumersLimit)
}

// visitError is an error of visit, and not of reading.
type visitError struct{ error }

// Unwrap returns the error of visit.
func (e *visitError) Unwrap() error { return e.error }

// scan is Scan through one consumer. It sets above to the sequence of the latest
// visited message.
func (h *History) scan(ctx context.Context, conn *nats.Conn, above *uint64, fence uint64, filter string, visit func(Found) error) error {
	reading, err := h.readBackFrom(ctx, conn, *above, filter)
	if err != nil {
		return err
	}
	defer reading.stop(ctx)
	for {
		msg, stored, err := reading.next(ctx)
		switch {
		case err != nil:
			return err
		case stored >= fence:
			return nil
		}
		found := find(msg.Header)
		found.Stored = stored
		if err := visit(found); err != nil {
			return &visitError{err}
		}
		*above = stored
	}
}

// refusal is a fault of the set-up: a request that is refused until somebody acts.
func refusal(err error) error {
	return &stream.Error{Fault: stream.FaultSetup, Err: err, Refused: true}
}

// explainScan says what an error means for reading back, and what to do.
func (h *History) explainScan(err error) error {
	name := h.setup.Stream
	api, _ := errors.AsType[*jetstream.APIError](err)
	switch {
	case errors.Is(err, jetstream.ErrMaximumConsumersLimit):
		return refusal(fmt.Errorf("read back stream %q: it has as many consumers as its own limit, the account's or the server's allows (see `nats stream info %s`), and the relay needs one for some seconds: remove consumers that nobody uses (`nats consumer ls %s`), raise the limit, or let the relay do without: `nats stream edit %s --allow-direct`: %w",
			name, name, name, name, err))
	case api != nil && consumerRefused(int(api.ErrorCode)):
		return refusal(fmt.Errorf("read back stream %q: the server does not take the relay's consumer, for a limit of the stream, the account or the server: %w", name, err))
	}
	return fmt.Errorf("read back stream %q: %w", name, err)
}

// find returns the event that a message carries, if it carries one.
func find(header nats.Header) Found {
	seq, err := strconv.ParseInt(header.Get(stream.HeaderSeq), 10, 64)
	if err != nil {
		return Found{}
	}
	id, err := uuid.Parse(header.Get(stream.HeaderMsgID))
	if err != nil {
		return Found{}
	}
	size, _ := strconv.Atoi(header.Get(nats.MsgSize)) // The server adds it to headers without a payload.
	return Found{Event: true, Seq: seq, ID: id, Size: size}
}

// Find returns the event of the message at a sequence of the stream, without the
// size of its payload. Found.Event is false if there is no message, or if it
// carries no event. The error is a *stream.Error.
func (h *History) Find(ctx context.Context, sequence uint64) (Found, error) {
	conn := h.connection.Current()
	if conn == nil {
		return Found{}, stream.Classify(nats.ErrInvalidConnection)
	}
	if sequence == 0 {
		return Found{}, nil
	}
	msg, err := h.message(ctx, conn, messageQuery{Sequence: sequence})
	if err != nil {
		return Found{}, stream.Classify(fmt.Errorf("find message %d of stream %q: %w", sequence, h.setup.Stream, err))
	}
	if msg == nil {
		return Found{}, nil
	}
	header, err := nats.DecodeHeadersMsg(msg.Header)
	if err != nil {
		return Found{Stored: sequence}, nil //nolint:nilerr // A message that nobody can read is no event.
	}
	found := find(header)
	found.Stored = sequence
	return found, nil
}

// consumerRefused says whether a code refuses a consumer for a limit.
func consumerRefused(code int) bool {
	switch code {
	case
		10121, // max_ack_pending exceeds the stream's or the account's
		10125, // max_batch exceeds the server's
		10153: // inactive_threshold exceeds the stream's
		return true
	}
	return false
}
