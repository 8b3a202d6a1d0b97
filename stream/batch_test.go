package stream_test

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func newPublisher(t *testing.T, server *streamtest.Server) *stream.Publisher {
	t.Helper()
	template, err := stream.ParseTemplate(stream.DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	p, err := stream.NewPublisher(stream.PublisherOptions{
		Connect: stream.ConnectOptions{URL: server.URL()},
		Setup:   stream.Setup{Stream: "OUTBOX", Template: template, Create: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if _, err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func numbered(seq int64) *stream.Event {
	return &stream.Event{
		Seq: seq, ID: uuid.NewSHA1(uuid.NameSpaceOID, []byte(strconv.FormatInt(seq, 10))), Topic: "t", AggregateType: "A",
		AggregateID: "1", EventType: "E", Data: []byte(strconv.FormatInt(seq, 10)), CreatedAt: time.Unix(1, 0),
	}
}

// collect waits for the outcomes of n events, by seq.
func collect(t *testing.T, p *stream.Publisher, n int) map[int64]stream.Outcome {
	t.Helper()
	outcomes := make(map[int64]stream.Outcome, n)
	deadline := time.After(15 * time.Second)
	for len(outcomes) < n {
		select {
		case <-p.Outcomes():
		case <-deadline:
			t.Fatalf("%d of %d outcomes", len(outcomes), n)
		}
		known, _ := p.Collect(nil)
		for _, o := range known {
			if _, twice := outcomes[o.Seq]; twice {
				t.Errorf("event %d has two outcomes", o.Seq)
			}
			outcomes[o.Seq] = o
		}
	}
	return outcomes
}

func payloads(t *testing.T, server *streamtest.Server) []string {
	t.Helper()
	var out []string
	for _, m := range server.Messages(t, "OUTBOX") {
		out = append(out, string(m.Data))
	}
	return out
}

func numbers(to int) []string {
	var out []string
	for i := 1; i <= to; i++ {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

func sendInOrder(t *testing.T, p *stream.Publisher, events ...*stream.Event) {
	t.Helper()
	for _, ev := range events {
		if err := p.PublishInOrder(ev); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBatch(t *testing.T) {
	server := streamtest.Start(t)
	p := newPublisher(t, server)
	if p.Pipeline() == 0 {
		t.Fatal("no ordered batches on a stream of our own")
	}
	next := 1
	for _, n := range []int{1, 2, 499, 500, 501, 1700} {
		for range n {
			sendInOrder(t, p, numbered(int64(next)))
			next++
		}
		p.Finish()
		for seq, o := range collect(t, p, n) {
			if o.Err != nil {
				t.Errorf("event %d: %v", seq, o.Err)
			}
		}
	}
	if got, want := payloads(t, server), numbers(next-1); !slices.Equal(got, want) {
		t.Errorf("the stream holds %d messages %.100q…, want 1 to %d", len(got), got, next-1)
	}

	// The same again: all are duplicates, and acknowledged.
	for seq := range int64(600) {
		sendInOrder(t, p, numbered(seq+1))
	}
	p.Finish()
	for seq, o := range collect(t, p, 600) {
		if o.Err != nil {
			t.Errorf("event %d again: %v", seq, o.Err)
		}
	}
	if got := payloads(t, server); len(got) != next-1 {
		t.Errorf("the stream holds %d messages after duplicates, want %d", len(got), next-1)
	}
}

// Whatever stops a batch at message k: all before it is stored, nothing after it.
func TestBatchStops(t *testing.T) {
	large := func(seq int64) *stream.Event {
		ev := numbered(seq)
		ev.Data = make([]byte, 2000)
		return ev
	}
	tests := []struct {
		name   string
		change func(*jetstream.StreamConfig)
		at     int64
		stop   func(seq int64) *stream.Event
		fault  stream.Fault
	}{
		{"first too large", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 }, 1, large, stream.FaultRow},
		{"fourth too large", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 }, 4, large, stream.FaultRow},
		{"last too large", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 }, 6, large, stream.FaultRow},
		{"full", func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 3, jetstream.DiscardNew }, 4, numbered, stream.FaultSetup},
		{"full at once", func(c *jetstream.StreamConfig) { c.MaxBytes, c.Discard = 10, jetstream.DiscardNew }, 1, numbered, stream.FaultSetup},
		{"full for a while", func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard, c.MaxAge = 3, jetstream.DiscardNew, time.Hour }, 4, numbered, stream.FaultWeather},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := streamtest.Start(t)
			config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, AllowBatchPublish: true, Duplicates: time.Minute}
			tt.change(&config)
			if _, err := server.JetStream(t).CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			p := newPublisher(t, server)
			for seq := int64(1); seq <= 6; seq++ {
				ev := numbered(seq)
				if seq == tt.at {
					ev = tt.stop(seq)
				}
				sendInOrder(t, p, ev)
			}
			p.Finish()
			for seq, o := range collect(t, p, 6) {
				switch {
				case seq < tt.at && o.Err != nil:
					t.Errorf("event %d, before the failed one: %v", seq, o.Err)
				case seq == tt.at && (o.Err == nil || o.Err.Fault != tt.fault || o.Retry):
					t.Errorf("the failed one: got %v, want a fault of the %v", o.Err, tt.fault)
				case seq > tt.at && (o.Err == nil || o.Err.Fault == stream.FaultRow || o.Retry != (tt.fault == stream.FaultRow)):
					t.Errorf("event %d, after the failed one: %v, retry %v", seq, o.Err, o.Retry)
				}
			}
			if got, want := payloads(t, server), numbers(int(tt.at)-1); !slices.Equal(got, want) {
				t.Errorf("the stream holds %q, want %q", got, want)
			}
			// And a further batch works.
			if tt.fault == stream.FaultRow {
				sendInOrder(t, p, numbered(7))
				p.Finish()
				if o := collect(t, p, 1)[7]; o.Err != nil {
					t.Error(o.Err)
				}
			}
		})
	}
}

// What the client itself refuses is not part of the batch, which goes on.
func TestBatchLocalRefusal(t *testing.T) {
	server := streamtest.Start(t, streamtest.MaxPayload(1000))
	p := newPublisher(t, server)
	sendInOrder(t, p, numbered(1))
	large := numbered(2)
	large.Data = make([]byte, 2000)
	if err := p.PublishInOrder(large); err == nil || stream.Classify(err).Fault != stream.FaultRow {
		t.Errorf("got %v, want the row's fault", err)
	}
	sendInOrder(t, p, numbered(3))
	p.Finish()
	for seq, o := range collect(t, p, 2) {
		if o.Err != nil {
			t.Errorf("event %d: %v", seq, o.Err)
		}
	}
	if got, want := fmt.Sprint(payloads(t, server)), "[1 3]"; got != want {
		t.Errorf("the stream holds %s, want %s", got, want)
	}
}

// When the server goes, every event of the open batch has an outcome, and after its return they can be sent again.
func TestBatchServerStops(t *testing.T) {
	server := streamtest.Start(t)
	p := newPublisher(t, server)
	for seq := range int64(700) {
		sendInOrder(t, p, numbered(seq+1))
	}
	server.Stop()
	open, refused := []int64{}, 0
	for seq, o := range collect(t, p, 700) {
		if o.Err != nil {
			if o.Err.Fault != stream.FaultWeather {
				t.Errorf("event %d: got %v, a fault of the %v", seq, o.Err, o.Err.Fault)
			}
			if !o.Err.Ambiguous() {
				refused++
			}
			open = append(open, seq)
		}
	}
	if refused > 1 { // One may have been: the server said so before it went.
		t.Errorf("%d events are known to be unstored, although nobody said so", refused)
	}
	if len(open) == 0 {
		t.Error("all 700 were acknowledged, although the last 200 cannot have been")
	}
	server.Restart()
	slices.Sort(open)
	deadline := time.Now().Add(15 * time.Second)
	for {
		if _, err := p.Open(t.Context()); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	for _, seq := range open {
		sendInOrder(t, p, numbered(seq))
	}
	p.Finish()
	for seq, o := range collect(t, p, len(open)) {
		if o.Err != nil {
			t.Errorf("event %d: %v", seq, o.Err)
		}
	}
	if got, want := payloads(t, server), numbers(700); !slices.Equal(got, want) {
		t.Errorf("the stream holds %d messages, want 1 to 700 in order", len(got))
	}
}

// When the stream no longer takes batches, their events are sent again at once, each by itself.
func TestBatchFallsBack(t *testing.T) {
	server := streamtest.Start(t)
	p := newPublisher(t, server)
	js := server.JetStream(t)
	str, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	config := str.CachedInfo().Config
	config.AllowBatchPublish = false
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	for seq := range int64(3) {
		sendInOrder(t, p, numbered(seq+1))
	}
	p.Finish()
	for seq, o := range collect(t, p, 3) {
		if o.Err == nil || !o.Retry {
			t.Errorf("event %d: %v, retry %v; want it to be sent again at once", seq, o.Err, o.Retry)
		}
	}
	if n := p.Pipeline(); n != 0 {
		t.Errorf("%d events may be in flight in a batch, which the stream does not take", n)
	}
	for seq := range int64(3) {
		if err := p.Publish(numbered(seq + 1)); err != nil {
			t.Fatal(err)
		}
	}
	for seq, o := range collect(t, p, 3) {
		if o.Err != nil {
			t.Errorf("event %d by itself: %v", seq, o.Err)
		}
	}
	if got, want := payloads(t, server), numbers(3); !slices.Equal(got, want) {
		t.Errorf("the stream holds %q, want %q", got, want)
	}
}
