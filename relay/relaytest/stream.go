package relaytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// StreamName is the name of every [Stream].
const StreamName = "STREAM"

// Stream is a stream in memory, which remembers all ids, and takes no ordered batches. [Stream.Publisher] connects to it.
type Stream struct {
	mu         sync.Mutex // Protects what follows, and what its publishers have.
	created    time.Time
	messages   []message // That at sequence n is messages[n-1].
	publishers []*Publisher
	fault      error // Nothing can be reached.
	refuse     func(*stream.Event) *stream.Error
	loseAck    bool
}

// message is an event or, with a term, a fence.
type message struct {
	seq    int64
	id     uuid.UUID
	size   int
	outbox string
	term   int64
}

// NewStream returns an empty stream.
func NewStream() *Stream { return &Stream{created: time.Now().Truncate(time.Microsecond)} }

// Stored returns the seqs of the events that are stored, in the stream's order.
func (s *Stream) Stored() (seqs []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.messages {
		if m.term == 0 {
			seqs = append(seqs, m.seq)
		}
	}
	return seqs
}

// Fail breaks all connections, and lets none be made from now on, as if NATS were away; nil ends that.
func (s *Stream) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = err
	if err == nil {
		return
	}
	for _, p := range s.publishers {
		p.breakOff(err)
	}
}

// Refuse makes the stream refuse each event for which refuse returns an error; nil for none.
func (s *Stream) Refuse(refuse func(*stream.Event) *stream.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

// LoseAck stores the next event that is published, and loses its acknowledgement.
func (s *Stream) LoseAck() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loseAck = true
}

// Lose loses the latest messages, fences among them, although they were acknowledged.
func (s *Stream) Lose(messages int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = s.messages[:len(s.messages)-messages]
}

// Publisher is a connection to a [Stream]. It implements relay.Publisher.
type Publisher struct {
	stream  *Stream
	signals chan struct{}

	// Protected by the stream's mu.
	open     bool
	guard    func() bool    // Nil for none.
	guarded  func() bool    // That of the connection.
	session  *streamSession // Nil for none.
	outcomes []publisher.Outcome
	trouble  *stream.Error
}

var _ relay.Publisher = (*Publisher)(nil)

// Publisher returns another publisher to the stream, which must be opened.
func (s *Stream) Publisher() *Publisher {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &Publisher{stream: s, signals: make(chan struct{}, 1)}
	s.publishers = append(s.publishers, p)
	return p
}

// breakOff ends the connection. The caller holds mu.
func (p *Publisher) breakOff(err error) {
	if p.open {
		p.open, p.session, p.trouble = false, nil, stream.Classify(err)
		p.signal()
	}
}

func (p *Publisher) signal() {
	select {
	case p.signals <- struct{}{}:
	default:
	}
}

// Stream returns StreamName.
func (p *Publisher) Stream() string { return StreamName }

// ReadsBack reports that it does.
func (p *Publisher) ReadsBack() bool { return true }

// Guards reports that it does.
func (p *Publisher) Guards() bool { return true }

// RequireWindow does nothing: all ids are remembered.
func (p *Publisher) RequireWindow(func(ackTimeout time.Duration) time.Duration) {}

// MaxData returns 0: any payload can be stored.
func (p *Publisher) MaxData() int { return 0 }

// Guard implements relay.Publisher.
func (p *Publisher) Guard(valid func() bool) {
	p.stream.mu.Lock()
	defer p.stream.mu.Unlock()
	p.guard = valid
}

// Open implements relay.Broker.
func (p *Publisher) Open(ctx context.Context) (warnings []stream.Warning, err error) {
	p.stream.mu.Lock()
	defer p.stream.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, stream.Classify(ctx.Err())
	case p.stream.fault != nil:
		return nil, stream.Classify(p.stream.fault)
	case !p.open:
		p.open, p.guarded = true, p.guard
	}
	return nil, nil
}

// Outcomes implements relay.Broker.
func (p *Publisher) Outcomes() <-chan struct{} { return p.signals }

// Collect implements relay.Broker.
func (p *Publisher) Collect(to []publisher.Outcome) (outcomes []publisher.Outcome, trouble *stream.Error) {
	p.stream.mu.Lock()
	defer p.stream.mu.Unlock()
	outcomes, trouble = append(to, p.outcomes...), p.trouble
	p.outcomes, p.trouble = nil, nil
	return outcomes, trouble
}

// Close implements relay.Broker.
func (p *Publisher) Close() {
	p.stream.mu.Lock()
	defer p.stream.mu.Unlock()
	p.open, p.session, p.outcomes, p.trouble = false, nil, nil, nil
	select {
	case <-p.signals:
	default:
	}
}

// reach returns an error if the stream cannot be reached. The caller holds mu.
func (p *Publisher) reach(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return stream.Classify(ctx.Err())
	case !p.open:
		return stream.Classify(nats.ErrInvalidConnection)
	}
	return nil
}

// Begin implements relay.Publisher.
func (p *Publisher) Begin(ctx context.Context, outbox string, term int64, first bool) (relay.Session, history.Fence, error) {
	s := p.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := p.reach(ctx); err != nil {
		return nil, history.Fence{}, err
	}
	fence := history.Fence{Created: s.created, Absent: true}
	for i, m := range s.messages {
		if m.term == 0 || m.outbox != outbox {
			continue
		}
		if m.term > term {
			return nil, history.Fence{}, &history.DeposedError{Term: m.term, Ours: term}
		}
		fence.Former = uint64(i + 1)
	}
	if !first || fence.Former > 0 {
		s.messages, fence.Absent = append(s.messages, message{outbox: outbox, term: term}), false
	}
	fence.Sequence = uint64(len(s.messages))
	fence.Last, fence.First = fence.Sequence, min(fence.Sequence, 1)
	p.session = &streamSession{publisher: p, fence: fence}
	return p.session, fence, nil
}

// streamSession is a session of a Publisher.
type streamSession struct {
	publisher *Publisher
	fence     history.Fence
}

// errNotSent is the error of what was not sent.
var errNotSent = errors.New("not published: the session of the publisher is over, or its lease")

func (s *streamSession) Publish(event *stream.Event) error {
	p := s.publisher
	p.stream.mu.Lock()
	defer p.stream.mu.Unlock()
	if p.session != s || p.guarded != nil && !p.guarded() {
		return &stream.Error{Fault: stream.FaultWeather, Err: errNotSent, Refused: true}
	}
	p.outcomes = append(p.outcomes, p.stream.store(event))
	p.signal()
	return nil
}

// store stores an event, and returns its outcome. The caller holds mu.
func (s *Stream) store(event *stream.Event) publisher.Outcome {
	if s.refuse != nil {
		if fault := s.refuse(event); fault != nil {
			return publisher.Outcome{Seq: event.Seq, Err: fault}
		}
	}
	outcome := publisher.Outcome{Seq: event.Seq}
	if at := slices.IndexFunc(s.messages, func(m message) bool { return m.term == 0 && m.id == event.ID }); at >= 0 {
		outcome.Stored, outcome.Duplicate = uint64(at+1), true
		return outcome
	}
	s.messages = append(s.messages, message{seq: event.Seq, id: event.ID, size: len(event.Data)})
	outcome.Stored = uint64(len(s.messages))
	if s.loseAck {
		s.loseAck = false
		return publisher.Outcome{Seq: event.Seq, Err: stream.Classify(fmt.Errorf("no acknowledgement: %w", nats.ErrTimeout))}
	}
	return outcome
}

func (s *streamSession) BatchWindow() int                         { return 0 }
func (s *streamSession) PublishOrdered(event *stream.Event) error { return s.Publish(event) }
func (s *streamSession) Flush()                                   {}
func (s *streamSession) Finish()                                  {}
func (s *streamSession) Alone() bool                              { return false }
func (s *streamSession) VerifyFirst() bool                        { return false }

func (s *streamSession) Scan(ctx context.Context, above uint64, visit func(history.Found) error) error {
	p := s.publisher
	p.stream.mu.Lock()
	err := p.reach(ctx)
	messages := slices.Clone(p.stream.messages)
	p.stream.mu.Unlock()
	if err != nil {
		return err
	}
	for i := above; i+1 < s.fence.Sequence && i < uint64(len(messages)); i++ {
		if err := visit(found(messages[i], i+1)); err != nil {
			return err
		}
	}
	return nil
}

func found(m message, sequence uint64) history.Found {
	return history.Found{Event: m.term == 0, Seq: m.seq, ID: m.id, Stored: sequence, Size: m.size}
}

func (s *streamSession) Find(ctx context.Context, sequence uint64) (history.Found, error) {
	p := s.publisher
	p.stream.mu.Lock()
	defer p.stream.mu.Unlock()
	if err := p.reach(ctx); err != nil {
		return history.Found{}, err
	}
	if sequence == 0 || sequence > uint64(len(p.stream.messages)) {
		return history.Found{}, nil
	}
	return found(p.stream.messages[sequence-1], sequence), nil
}

func (s *streamSession) Verify(ctx context.Context, before history.State, acked uint64) (history.State, error) {
	p := s.publisher
	p.stream.mu.Lock()
	defer p.stream.mu.Unlock()
	if err := p.reach(ctx); err != nil {
		return history.State{}, err
	}
	state := history.State{Created: p.stream.created, Last: uint64(len(p.stream.messages))}
	if state.Last < max(before.Last, acked) {
		return state, &stream.LostError{Reason: fmt.Sprintf("stream %q ends at sequence %d, after %d", StreamName, state.Last, max(before.Last, acked))}
	}
	return state, nil
}
