package publisher_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestBatch(t *testing.T) {
	server := streamtest.Start(t)
	p := publishertest.Open(t, server)
	if p.BatchWindow() == 0 {
		t.Fatal("no ordered batches on a stream of our own")
	}
	next := 1
	for _, n := range []int{1, 2, 499, 500, 501, 1700} {
		for range n {
			publishertest.SendOrdered(t, p, publishertest.Event(int64(next)))
			next++
		}
		p.Finish()
		for seq, o := range publishertest.Collect(t, p, n) {
			if o.Err != nil {
				t.Errorf("event %d: %v", seq, o.Err)
			}
		}
	}
	if got, want := publishertest.Payloads(t, server), publishertest.Numbers(next-1); !slices.Equal(got, want) {
		t.Errorf("the stream holds %d messages %.100q…, want 1 to %d", len(got), got, next-1)
	}

	// The same again: all are duplicates, and acknowledged.
	for seq := range int64(600) {
		publishertest.SendOrdered(t, p, publishertest.Event(seq+1))
	}
	p.Finish()
	for seq, o := range publishertest.Collect(t, p, 600) {
		if o.Err != nil {
			t.Errorf("event %d again: %v", seq, o.Err)
		}
	}
	if got := publishertest.Payloads(t, server); len(got) != next-1 {
		t.Errorf("the stream holds %d messages after duplicates, want %d", len(got), next-1)
	}
}

// Whatever stops a batch at message k: all before it is stored, nothing after it.
func TestBatchStops(t *testing.T) {
	large := func(seq int64) *stream.Event {
		ev := publishertest.Event(seq)
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
		{"full", func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 3, jetstream.DiscardNew }, 4, publishertest.Event, stream.FaultSetup},
		{"full at once", func(c *jetstream.StreamConfig) { c.MaxBytes, c.Discard = 10, jetstream.DiscardNew }, 1, publishertest.Event, stream.FaultSetup},
		{"full for a while", func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard, c.MaxAge = 3, jetstream.DiscardNew, time.Hour }, 4, publishertest.Event, stream.FaultWeather},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := streamtest.Start(t)
			config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, AllowBatchPublish: true, Duplicates: time.Minute}
			tt.change(&config)
			if _, err := server.JetStream(t).CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			p := publishertest.Open(t, server)
			for seq := int64(1); seq <= 6; seq++ {
				ev := publishertest.Event(seq)
				if seq == tt.at {
					ev = tt.stop(seq)
				}
				publishertest.SendOrdered(t, p, ev)
			}
			p.Finish()
			for seq, o := range publishertest.Collect(t, p, 6) {
				switch {
				case seq < tt.at && o.Err != nil:
					t.Errorf("event %d, before the failed one: %v", seq, o.Err)
				case seq == tt.at && (o.Err == nil || o.Err.Fault != tt.fault || o.Retry):
					t.Errorf("the failed one: got %v, want a fault of the %v", o.Err, tt.fault)
				case seq > tt.at && (o.Err == nil || o.Err.Fault == stream.FaultRow || o.Retry != (tt.fault == stream.FaultRow)):
					t.Errorf("event %d, after the failed one: %v, retry %v", seq, o.Err, o.Retry)
				}
			}
			if got, want := publishertest.Payloads(t, server), publishertest.Numbers(int(tt.at)-1); !slices.Equal(got, want) {
				t.Errorf("the stream holds %q, want %q", got, want)
			}
			// And a further batch works.
			if tt.fault == stream.FaultRow {
				publishertest.SendOrdered(t, p, publishertest.Event(7))
				p.Finish()
				if o := publishertest.Collect(t, p, 1)[7]; o.Err != nil {
					t.Error(o.Err)
				}
			}
		})
	}
}

// What the client itself refuses is not part of the batch, which goes on.
func TestBatchLocalRefusal(t *testing.T) {
	server := streamtest.Start(t, streamtest.MaxPayload(1000))
	p := publishertest.Open(t, server)
	publishertest.SendOrdered(t, p, publishertest.Event(1))
	large := publishertest.Event(2)
	large.Data = make([]byte, 2000)
	if err := p.PublishOrdered(large); err == nil || stream.Classify(err).Fault != stream.FaultRow {
		t.Errorf("got %v, want the row's fault", err)
	}
	publishertest.SendOrdered(t, p, publishertest.Event(3))
	p.Finish()
	for seq, o := range publishertest.Collect(t, p, 2) {
		if o.Err != nil {
			t.Errorf("event %d: %v", seq, o.Err)
		}
	}
	if got, want := fmt.Sprint(publishertest.Payloads(t, server)), "[1 3]"; got != want {
		t.Errorf("the stream holds %s, want %s", got, want)
	}
}

// When the server goes, every event of the open batch has an outcome, and after its return they can be sent again.
func TestBatchServerStops(t *testing.T) {
	server := streamtest.Start(t)
	p := publishertest.Open(t, server)
	for seq := range int64(700) {
		publishertest.SendOrdered(t, p, publishertest.Event(seq+1))
	}
	server.Stop()
	open, refused := []int64{}, 0
	for seq, o := range publishertest.Collect(t, p, 700) {
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
		publishertest.SendOrdered(t, p, publishertest.Event(seq))
	}
	p.Finish()
	for seq, o := range publishertest.Collect(t, p, len(open)) {
		if o.Err != nil {
			t.Errorf("event %d: %v", seq, o.Err)
		}
	}
	if got, want := publishertest.Payloads(t, server), publishertest.Numbers(700); !slices.Equal(got, want) {
		t.Errorf("the stream holds %d messages, want 1 to 700 in order", len(got))
	}
}

// When the stream no longer takes batches, their events are sent again at once, each by itself.
func TestBatchFallsBack(t *testing.T) {
	server := streamtest.Start(t)
	p := publishertest.Open(t, server)
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
		publishertest.SendOrdered(t, p, publishertest.Event(seq+1))
	}
	p.Finish()
	for seq, o := range publishertest.Collect(t, p, 3) {
		if o.Err == nil || !o.Retry {
			t.Errorf("event %d: %v, retry %v; want it to be sent again at once", seq, o.Err, o.Retry)
		}
	}
	if n := p.BatchWindow(); n != 0 {
		t.Errorf("%d events may be in flight in a batch, which the stream does not take", n)
	}
	for seq := range int64(3) {
		if err := p.Publish(publishertest.Event(seq + 1)); err != nil {
			t.Fatal(err)
		}
	}
	for seq, o := range publishertest.Collect(t, p, 3) {
		if o.Err != nil {
			t.Errorf("event %d by itself: %v", seq, o.Err)
		}
	}
	if got, want := publishertest.Payloads(t, server), publishertest.Numbers(3); !slices.Equal(got, want) {
		t.Errorf("the stream holds %q, want %q", got, want)
	}
}
