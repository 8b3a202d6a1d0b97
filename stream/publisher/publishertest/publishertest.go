// Package publishertest gives tests a publisher that is open, events to publish, and what became of them. Every function
// fails the test rather than returning an error.
package publishertest

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// Outbox is the name of the outbox that Fence puts up fences for.
const Outbox = "5f6f4e5c-1b5e-4a37-9a1b-0d5f3c1f7a10"

// Publisher is a publisher with its latest session.
type Publisher struct {
	*publisher.Publisher
	*publisher.Session
}

// Begin returns an open publisher with a session of an outbox that has never published: there is no fence.
func Begin(tb testing.TB, p *publisher.Publisher) *Publisher {
	tb.Helper()
	begun := &Publisher{Publisher: p}
	if _, err := begun.FirstFence(tb.Context(), Outbox, 1); err != nil {
		tb.Fatal(err)
	}
	return begun
}

// Fence puts up a fence, and begins a session after it.
func (p *Publisher) Fence(ctx context.Context, outbox string, term int64) (history.Fence, error) {
	return p.begin(ctx, outbox, term, false)
}

// FirstFence begins a session of an outbox that has never published.
func (p *Publisher) FirstFence(ctx context.Context, outbox string, term int64) (history.Fence, error) {
	return p.begin(ctx, outbox, term, true)
}

func (p *Publisher) begin(ctx context.Context, outbox string, term int64, first bool) (history.Fence, error) {
	session, fence, err := p.Begin(ctx, outbox, term, first)
	if err == nil {
		p.Session = session
	}
	return fence, err
}

// Open returns a publisher to the stream OUTBOX, which it creates if it is absent, with a session (Begin). It is
// closed when the test ends.
func Open(tb testing.TB, server *streamtest.Server) *Publisher {
	tb.Helper()
	return Begin(tb, Connect(tb, server).Publisher)
}

// Connect is Open without a session: Fence or FirstFence begins the first.
func Connect(tb testing.TB, server *streamtest.Server) *Publisher {
	tb.Helper()
	p, err := publisher.New(publisher.Options{
		Connect: stream.ConnectOptions{URL: server.URL()},
		Setup:   stream.Setup{Stream: "OUTBOX", Create: true},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	if _, err := p.Open(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return &Publisher{Publisher: p}
}

// Event returns the event with this seq. The ID depends on the seq only; the payload is the seq as text.
func Event(seq int64) *stream.Event {
	return &stream.Event{
		Seq: seq, ID: uuid.NewSHA1(uuid.NameSpaceOID, []byte(strconv.FormatInt(seq, 10))), Topic: "t", AggregateType: "A",
		AggregateID: "1", EventType: "E", Data: []byte(strconv.FormatInt(seq, 10)), CreatedAt: time.Unix(1, 0),
	}
}

// SendOrdered publishes events in an ordered batch.
func SendOrdered(tb testing.TB, p *Publisher, events ...*stream.Event) {
	tb.Helper()
	for _, ev := range events {
		if err := p.PublishOrdered(ev); err != nil {
			tb.Fatal(err)
		}
	}
}

// Collect waits for the outcomes of n events, by seq.
func Collect(tb testing.TB, p *Publisher, n int) map[int64]publisher.Outcome {
	tb.Helper()
	outcomes := make(map[int64]publisher.Outcome, n)
	deadline := time.After(15 * time.Second)
	for len(outcomes) < n {
		select {
		case <-p.Outcomes():
		case <-deadline:
			tb.Fatalf("%d of %d outcomes", len(outcomes), n)
		}
		known, _ := p.Collect(nil)
		for _, o := range known {
			if _, twice := outcomes[o.Seq]; twice {
				tb.Errorf("event %d has two outcomes", o.Seq)
			}
			outcomes[o.Seq] = o
		}
	}
	return outcomes
}

// Payloads returns the payloads of all messages of the stream, in its order.
func Payloads(tb testing.TB, server *streamtest.Server) []string {
	tb.Helper()
	var out []string
	for _, m := range server.Messages(tb, "OUTBOX") {
		out = append(out, string(m.Data))
	}
	return out
}

// Numbers returns the payloads of the events 1 to n.
func Numbers(n int) []string {
	var out []string
	for i := 1; i <= n; i++ {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

// Fence puts up a fence.
func Fence(tb testing.TB, p *Publisher, term int64) history.Fence {
	tb.Helper()
	f, err := p.Fence(tb.Context(), Outbox, term)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

// Scan returns the seqs of the events that are stored after a sequence and before a fence. They must be such as
// Event makes.
func Scan(tb testing.TB, p *Publisher, above uint64, f history.Fence) (seqs []int64) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	err := p.History().Scan(ctx, above, f, func(found history.Found) error {
		if !found.Event {
			return nil // An earlier fence.
		}
		if found.ID == uuid.Nil || found.Stored == 0 || found.Size != len(strconv.FormatInt(found.Seq, 10)) {
			tb.Errorf("found %+v", found)
		}
		seqs = append(seqs, found.Seq)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return seqs
}
