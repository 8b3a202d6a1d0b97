package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
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
// If visit returns an error, Scan ends and returns it. Any other error is an *Error.
func (p *Publisher) Scan(ctx context.Context, above uint64, fence Fence, visit func(Found) error) (err error) {
	ctx, done := p.ask(ctx)
	defer done(&err)
	if above+1 >= fence.Sequence {
		return nil
	}
	conn := p.connection()
	if conn == nil {
		return Classify(nats.ErrInvalidConnection)
	}
	p.mu.Lock()
	filter := p.options.Setup.Template.Filter()
	if !covers(filter, p.fenceSubject) {
		// The scan ends at the fence, so the filter must not hide it. Reading
		// everything costs less than a second filter, with which a server is a
		// hundred times slower.
		filter = ""
	}
	p.mu.Unlock()
	for {
		begun := above
		err := p.scan(ctx, conn, &above, fence.Sequence, filter, visit)
		if p.readsDirectly(err) {
			err = p.scanDirect(ctx, conn, &above, fence.Sequence, filter, visit)
		}
		switch {
		case err == nil:
			return nil
		case is[*visitError](err):
			return errors.Unwrap(err)
		case errors.Is(err, errInterrupted) && above > begun && ctx.Err() == nil:
			continue // There may be a better server.
		}
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
			err = cause
		}
		return Classify(p.explainScan(err))
	}
}

// readsDirectly reports whether to go on by direct gets after an error: the server
// refused the consumer.
func (p *Publisher) readsDirectly(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.config.AllowDirect && isAny(err, jetstream.ErrMaximumConsumersLimit)
}

// visitError is an error of visit, and not of reading.
type visitError struct{ error }

// Unwrap returns the error of visit.
func (e *visitError) Unwrap() error { return e.error }

// scan is Scan through one consumer. It sets above to the sequence of the latest
// visited message.
func (p *Publisher) scan(ctx context.Context, conn *nats.Conn, above *uint64, fence uint64, filter string, visit func(Found) error) error {
	reading, err := p.readBackFrom(ctx, conn, *above, filter)
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

// explainScan says what an error means for reading back, and what to do.
func (p *Publisher) explainScan(err error) error {
	stream := p.Stream()
	api, _ := errors.AsType[*jetstream.APIError](err)
	switch {
	case errors.Is(err, jetstream.ErrMaximumConsumersLimit):
		return setupFault(fmt.Errorf("read back stream %q: it has as many consumers as its own limit, the account's or the server's allows (see `nats stream info %s`), and the relay needs one for some seconds: remove consumers that nobody uses (`nats consumer ls %s`), raise the limit, or let the relay do without: `nats stream edit %s --allow-direct`: %w",
			stream, stream, stream, stream, err))
	case api != nil && consumerRefused(int(api.ErrorCode)):
		return setupFault(fmt.Errorf("read back stream %q: the server does not take the relay's consumer, for a limit of the stream, the account or the server: %w", stream, err))
	}
	return fmt.Errorf("read back stream %q: %w", stream, err)
}

// find returns the event that a message carries, if it carries one.
func find(header nats.Header) Found {
	seq, err := strconv.ParseInt(header.Get(HeaderSeq), 10, 64)
	if err != nil {
		return Found{}
	}
	id, err := uuid.Parse(header.Get(HeaderMsgID))
	if err != nil {
		return Found{}
	}
	size, _ := strconv.Atoi(header.Get(nats.MsgSize)) // The server adds it to headers without a payload.
	return Found{Event: true, Seq: seq, ID: id, Size: size}
}

// Find returns the event of the message at a sequence of the stream, without the
// size of its payload. Found.Event is false if there is no message, or if it
// carries no event. The error is an *Error.
func (p *Publisher) Find(ctx context.Context, sequence uint64) (Found, error) {
	conn := p.connection()
	if conn == nil {
		return Found{}, Classify(nats.ErrInvalidConnection)
	}
	if sequence == 0 {
		return Found{}, nil
	}
	msg, err := p.message(ctx, conn, messageQuery{Sequence: sequence})
	if err != nil {
		return Found{}, Classify(fmt.Errorf("find message %d of stream %q: %w", sequence, p.Stream(), err))
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

// A State is what the stream was like at one moment: see Publisher.Verify.
type State struct {
	// Created is when the stream was created.
	Created time.Time

	// Last is the highest sequence that the stream has given to a message.
	Last uint64

	leader   string
	identity string // Identifies the message at Last; empty if there was none.
}

// LostError says that the stream is not what it was: events that it acknowledged
// may be lost. Fence and Scan tell what is left.
type LostError struct{ reason string }

// Error says what is different.
func (e *LostError) Error() string { return e.reason }

// Verify compares the stream with its previous state, to find out whether the
// broker has lost data: a crash may lose what was acknowledged and not yet on the
// disk, and somebody may restore files from a backup. Acked is a sequence that the
// stream has acknowledged. With the zero State only that is compared.
//
// Its error is a *LostError if the stream must be read back, and an *Error if the
// stream's state could not be read.
func (p *Publisher) Verify(ctx context.Context, previous State, acked uint64) (state State, err error) {
	ctx, done := p.ask(ctx)
	defer done(&err)
	conn := p.connection()
	if conn == nil {
		return State{}, Classify(nats.ErrInvalidConnection)
	}
	info, err := p.info(ctx, conn)
	if err != nil {
		return State{}, err
	}
	state = State{Created: info.Created, Last: info.State.LastSeq}
	if info.Cluster != nil {
		state.leader = info.Cluster.Leader
	}
	lost := func(format string, args ...any) (State, error) {
		return state, &LostError{fmt.Sprintf("stream %q ", p.Stream()) + fmt.Sprintf(format, args...)}
	}
	switch {
	case previous.Created.IsZero():
	case !previous.Created.Equal(state.Created):
		return lost("was created anew at %v", state.Created.Format(time.RFC3339Nano))
	case state.Last < previous.Last:
		return lost("ends at sequence %d and not at %d any more", state.Last, previous.Last)
	case previous.leader != state.leader:
		return lost("has another leader, %q instead of %q", state.leader, previous.leader)
	case previous.identity != "" && previous.Last >= info.State.FirstSeq:
		identity, err := p.identity(ctx, conn, previous.Last)
		switch {
		case err != nil:
			return State{}, err
		case identity == "":
			// A person or a limit removed it. FirstSeq tells of limits, but it may have moved on since we read it.
		case identity != previous.identity:
			return lost("has another message at sequence %d than before", previous.Last)
		}
	}
	if state.Last < acked {
		return lost("ends at sequence %d, although it acknowledged %d", state.Last, acked)
	}
	if state.identity, err = p.identity(ctx, conn, state.Last); err != nil {
		return State{}, err
	}
	maxPayload, err := await(ctx, func() (int64, error) { return conn.MaxPayload(), nil })
	if err != nil {
		return State{}, Classify(fmt.Errorf("read the state of stream %q: %w", p.Stream(), err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.highest, p.proved = max(p.highest, state.Last), time.Now()
	p.maxPayload, p.maxMessage = maxPayload, int64(info.Config.MaxMsgSize)
	return state, nil
}

// info asks for the stream's state. Its error is an *Error.
func (p *Publisher) info(ctx context.Context, conn *nats.Conn) (*jetstream.StreamInfo, error) {
	info, err := await(ctx, func() (*jetstream.StreamInfo, error) {
		js, err := p.options.Connect.JetStream(conn)
		if err != nil {
			return nil, err
		}
		str, err := js.Stream(ctx, p.Stream())
		if err != nil {
			return nil, err
		}
		return str.CachedInfo(), nil
	})
	if err != nil {
		return nil, Classify(fmt.Errorf("read the state of stream %q: %w", p.Stream(), err))
	}
	return info, nil
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

// identity identifies the message at a sequence; empty if there is none.
func (p *Publisher) identity(ctx context.Context, conn *nats.Conn, sequence uint64) (string, error) {
	if sequence == 0 {
		return "", nil
	}
	msg, err := p.message(ctx, conn, messageQuery{Sequence: sequence})
	if err != nil {
		return "", Classify(fmt.Errorf("read message %d of stream %q: %w", sequence, p.Stream(), err))
	}
	if msg == nil {
		return "", nil
	}
	return msg.Subject + " " + msg.Time.Format(time.RFC3339Nano), nil
}
