package publisher

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/await"
	"github.com/go-outbox/go-outbox/stream/history"
)

// A Session publishes events after a fence, and reads back what the stream held up to
// the fence. Begin returns one; it is over when the publisher begins the next or is
// closed, and then publishes nothing. Its methods belong to the goroutine that
// publishes, except Scan, Find and Verify, which may run beside it.
type Session struct {
	p     *Publisher
	fence history.Fence
}

// errSessionOver says that an event was not sent, since the fence before it is not the
// latest.
var errSessionOver = &stream.Error{Fault: stream.FaultWeather, Err: errors.New("not published: the session of the publisher is over"), Refused: true}

// Begin puts up a fence for an outbox's term, and returns the session after it: see
// history.History.Fence. For an outbox that has never published to the stream, first
// is true: see history.History.FirstFence. Ordered batches are those of this fence from
// then on, and an earlier session is over. Its error is that of Fence.
func (p *Publisher) Begin(ctx context.Context, outbox string, term int64, first bool) (*Session, history.Fence, error) {
	put := p.history.Fence
	if first {
		put = p.history.FirstFence
	}
	fence, err := put(ctx, outbox, term)
	if err != nil {
		return nil, fence, err
	}
	s := &Session{p, fence}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known.fenced(fence)
	p.session = s
	return s, fence, nil
}

// History returns what the stream holds, over the publisher's connection, for those who
// do not publish.
func (p *Publisher) History() *history.History { return p.history }

// Scan passes on the events that are stored after a sequence, up to the session's
// fence: see history.History.Scan.
func (s *Session) Scan(ctx context.Context, above uint64, visit func(history.Found) error) error {
	return s.p.history.Scan(ctx, above, s.fence, visit)
}

// Find is history.History.Find.
func (s *Session) Find(ctx context.Context, sequence uint64) (history.Found, error) {
	return s.p.history.Find(ctx, sequence)
}

// Verify is history.History.Verify. If the stream is what it was, the publisher counts
// on that for a second (Alone), and MaxData is as new.
func (s *Session) Verify(ctx context.Context, previous history.State, acked uint64) (history.State, error) {
	p := s.p
	state, err := p.history.Verify(ctx, previous, acked)
	if err != nil {
		return state, err
	}
	conn := p.requests.Current()
	if conn == nil {
		return history.State{}, stream.Classify(nats.ErrInvalidConnection)
	}
	maxPayload, err := await.Call(ctx, func() (int64, error) { return conn.MaxPayload(), nil })
	if err != nil {
		return history.State{}, stream.Classify(fmt.Errorf("read the state of stream %q: %w", p.Stream(), err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known.verified(state.Last)
	p.limits.maxPayload, p.limits.maxMessage = maxPayload, state.MaxMessage
	return state, nil
}
