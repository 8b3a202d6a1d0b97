package bench_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/integration/harness"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// BenchmarkBounds measures each server alone, while the other has nothing to do: how fast rows come and go through
// [store.Outbox], and events through [publisher.Publisher]. No relay can be faster than both together allow.
func BenchmarkBounds(b *testing.B) {
	load := standard(b)
	for _, retain := range []time.Duration{0, 5 * time.Minute} {
		b.Run("Postgres alone, retain "+retain.String(), func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				took += within(b, func(tb testing.TB) time.Duration {
					tb.Helper()
					w := harness.NewWorld(tb, harness.Options{NoNATS: true})
					w.CommandWith([]string{"OUTBOX_NATS_URL=nats://127.0.0.1:1"}, "migrate")
					fill(w, w.Connect(), load)
					return roundTrips(w, load, retain)
				})
			}
			report(b, float64(load.events*b.N)/took.Seconds(), "events/s")
		})
	}
	for _, batches := range []bool{true, false} {
		name := "JetStream alone, ordered batches"
		if !batches {
			name = "JetStream alone, asynchronous window"
		}
		b.Run(name, func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				took += within(b, func(tb testing.TB) time.Duration {
					tb.Helper()
					return publishAll(harness.NewWorld(tb, harness.Options{}), load, batches)
				})
			}
			report(b, float64(load.events*b.N)/took.Seconds(), "events/s")
		})
	}
}

// roundTrips fetches and settles a backlog, a page in each round trip, as if it had been published.
func roundTrips(w *harness.World, load backlog, retain time.Duration) time.Duration {
	w.Helper()
	outbox, err := store.Open(w.DSN, store.Options{Retain: retain})
	if err != nil {
		w.Fatal(err)
	}
	defer outbox.Close(context.WithoutCancel(w.Context()))
	term, err := outbox.Begin(w.Context(), "OUTBOX", "bench", 0)
	if err != nil {
		w.Fatal(err)
	}
	start := time.Now()
	request := store.Request{Fetch: &store.Fetch{Rows: relay.DefaultBatchSize, Bytes: relay.DefaultBatchBytes}}
	for settled := 0; settled < load.events; {
		response, err := term.RoundTrip(w.Context(), request)
		if err != nil {
			w.Fatal(err)
		}
		for _, s := range request.Settled {
			settled += len(s.Seqs)
		}
		request.Settled = nil
		if len(response.Rows) > 0 {
			seqs := make([]int64, len(response.Rows))
			for i, row := range response.Rows {
				seqs[i] = row.Seq
			}
			request.Settled = []store.Settled{{Seqs: seqs}}
			request.Fetch.Highest = seqs[len(seqs)-1]
		}
	}
	return time.Since(start)
}

// publishAll publishes as many events as a backlog has, one after the other without regard to aggregates.
func publishAll(w *harness.World, load backlog, batches bool) time.Duration {
	w.Helper()
	sender, err := publisher.New(publisher.Options{
		Connect:   stream.ConnectOptions{URL: w.URL()},
		Setup:     stream.Setup{Create: true},
		NoBatches: !batches,
	})
	if err != nil {
		w.Fatal(err)
	}
	defer sender.Close()
	if _, err := sender.Open(w.Context()); err != nil {
		w.Fatal(err)
	}
	session, _, err := sender.Begin(w.Context(), "bench", 1, true)
	if err != nil {
		w.Fatal(err)
	}
	const window = 4096
	limit, send := window, session.Publish
	if batches {
		limit, send = session.BatchWindow(), session.PublishOrdered
	}
	event := stream.Event{Topic: "bench", AggregateType: "Account", EventType: "Changed", Data: make([]byte, load.size), CreatedAt: time.Now()}
	ids := make([]string, load.aggregates)
	for i := range ids {
		ids[i] = strconv.Itoa(i)
	}
	var outcomes []publisher.Outcome
	m := warm(w, load)
	start := time.Now()
	for sent, stored := 0, 0; stored < load.events; {
		for sent < load.events && sent-stored < limit {
			event.Seq, event.ID, event.AggregateID = int64(sent+1), uuid.New(), ids[sent%len(ids)]
			if err := send(&event); err != nil {
				w.Fatal(err)
			}
			sent++
		}
		switch {
		case !batches:
		case sent == load.events:
			session.Finish()
		default:
			session.Flush()
		}
		<-sender.Outcomes()
		var trouble *stream.Error
		if outcomes, trouble = sender.Collect(outcomes[:0]); trouble != nil {
			w.Fatal(trouble)
		}
		for _, o := range outcomes {
			if o.Err != nil {
				w.Fatal(o.Err)
			}
		}
		stored += len(outcomes)
		m.give(w, stored)
	}
	return time.Since(start)
}
