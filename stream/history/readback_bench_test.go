package history_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// BenchmarkScan reads back 300,000 events with 256 bytes of payload, through a consumer and by direct gets.
func BenchmarkScan(b *testing.B) {
	const events = 300_000
	server := streamtest.Start(b)
	opened, err := publisher.New(publisher.Options{Connect: stream.ConnectOptions{URL: server.URL()}, Setup: stream.Setup{Stream: "OUTBOX", Create: true}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(opened.Close)
	if _, err := opened.Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	p := publishertest.Begin(b, opened)
	known := 0
	for sent := range events {
		ev := publishertest.Event(int64(sent + 1))
		ev.Data = make([]byte, 256)
		if err := p.PublishOrdered(ev); err != nil {
			b.Fatal(err)
		}
		for sent-known >= p.BatchWindow()-1 || sent == events-1 && known < events {
			if sent == events-1 {
				p.Finish()
			}
			p.Flush()
			<-p.Outcomes()
			outcomes, _ := p.Collect(nil)
			known += len(outcomes)
		}
	}
	end, err := p.Fence(b.Context(), "bench", 1)
	if err != nil {
		b.Fatal(err)
	}
	read := func(b *testing.B) {
		b.Helper()
		for b.Loop() {
			begun := time.Now()
			found := 0
			if err := p.History().Scan(b.Context(), 0, end, func(f history.Found) error {
				if f.Event {
					found++
				}
				return nil
			}); err != nil || found != events {
				b.Fatalf("found %d, %v", found, err)
			}
			b.ReportMetric(events/time.Since(begun).Seconds(), "events/s")
		}
	}
	b.Run("consumer", read)
	js := server.JetStream(b)
	str, err := js.Stream(b.Context(), "OUTBOX")
	if err != nil {
		b.Fatal(err)
	}
	config := str.CachedInfo().Config
	config.MaxConsumers = 1
	if _, err := js.UpdateStream(b.Context(), config); err != nil {
		b.Skip(err) // Before 2.15 it cannot be changed.
	}
	if _, err := js.CreateConsumer(b.Context(), "OUTBOX", jetstream.ConsumerConfig{Durable: "only"}); err != nil {
		b.Fatal(err)
	}
	b.Run("direct", read)
}
