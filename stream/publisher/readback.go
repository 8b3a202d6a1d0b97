package publisher

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/await"
	"github.com/go-outbox/go-outbox/stream/history"
)

// ReadsBack reports that the publisher can tell what the stream holds. Package relay
// asks, since a publisher that wraps this one may not be able to.
func (p *Publisher) ReadsBack() bool { return true }

// History returns what the stream holds, over the publisher's connection. A caller that
// publishes uses the methods below instead: from fences and from Verify the publisher
// learns what to expect of the stream.
func (p *Publisher) History() *history.History { return p.history }

// Fence is history.History.Fence. Ordered batches of this publisher are those of this
// fence from then on.
func (p *Publisher) Fence(ctx context.Context, outbox string, term int64) (history.Fence, error) {
	return p.fenced(p.history.Fence(ctx, outbox, term))
}

// Unfenced is Fence for an outbox that has never published to the stream: see
// history.History.Unfenced.
func (p *Publisher) Unfenced(ctx context.Context, outbox string, term int64) (history.Fence, error) {
	return p.fenced(p.history.Unfenced(ctx, outbox, term))
}

// fenced notes a fence.
func (p *Publisher) fenced(f history.Fence, err error) (history.Fence, error) {
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.known.fenced(f)
	}
	return f, err
}

// Scan is history.History.Scan.
func (p *Publisher) Scan(ctx context.Context, above uint64, fence history.Fence, visit func(history.Found) error) error {
	return p.history.Scan(ctx, above, fence, visit)
}

// Find is history.History.Find.
func (p *Publisher) Find(ctx context.Context, sequence uint64) (history.Found, error) {
	return p.history.Find(ctx, sequence)
}

// Verify is history.History.Verify. If the stream is what it was, the publisher counts
// on that for a second (Alone), and MaxData is as new.
func (p *Publisher) Verify(ctx context.Context, previous history.State, acked uint64) (history.State, error) {
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
