package bench_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// BenchmarkLatency measures the time from the return of an event's commit to its arrival at a JetStream consumer, at a
// steady rate. An event may arrive before its producer knows of the commit; that counts as 0. The maximum is what eight
// producers get through, one event a transaction, as fast as they can, with relay, servers and consumer beside them.
func BenchmarkLatency(b *testing.B) {
	for _, rate := range []int{100, 300, 1000, 0} {
		name := fmt.Sprintf("%d a second", rate)
		if rate == 0 {
			name = "70 % of the maximum"
		}
		b.Run(name, func(b *testing.B) {
			w := harness.NewWorld(b, harness.Options{})
			relay := w.Relay("OUTBOX_LOGGING_LEVEL=info")
			harness.Eventually(b, 10*time.Second, "the relay is ready", func() bool { return relay.Get("/readyz") == 200 })
			if rate == 0 {
				const all = 30_000
				start := time.Now()
				steady(w, 1_000_000, all)
				rate = int(0.7 * all / time.Since(start).Seconds())
				report(b, float64(rate), "events/s")
			}
			var took []time.Duration
			for b.Loop() {
				took = append(took, steady(w, rate, 10*rate)...)
			}
			slices.Sort(took)
			report(b, took[len(took)/2].Seconds()*1e3, "p50-ms")
			report(b, took[len(took)*99/100].Seconds()*1e3, "p99-ms")
			report(b, took[len(took)-1].Seconds()*1e3, "max-ms")
		})
	}
}

// steady commits n events at a rate and returns how long each took to arrive.
func steady(w *harness.World, rate, n int) []time.Duration {
	w.Helper()
	const producers = 8
	pool, err := pgxpool.New(w.Context(), w.DSN+"&pool_max_conns="+strconv.Itoa(producers))
	if err != nil {
		w.Fatal(err)
	}
	defer pool.Close()

	var mu sync.Mutex // Protects what follows.
	committed, arrived := make([]time.Time, n), make([]time.Time, n)
	done := make(chan struct{})
	left := n

	stream, err := w.JetStream().Stream(w.Context(), "OUTBOX")
	if err != nil {
		w.Fatal(err)
	}
	consumer, err := stream.OrderedConsumer(w.Context(), jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
	if err != nil {
		w.Fatal(err)
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		at := time.Now()
		i, err := strconv.Atoi(string(m.Data()))
		if err != nil {
			w.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		arrived[i] = at
		if left--; left == 0 {
			close(done)
		}
	})
	if err != nil {
		w.Fatal(err)
	}
	defer consuming.Stop()

	var wg sync.WaitGroup
	next := make(chan int)
	for range producers {
		wg.Go(func() {
			for i := range next {
				_, err := pool.Exec(context.WithoutCancel(w.Context()), `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('bench', 'Account', $1, 'Changed', $2)`,
					strconv.Itoa(i%aggregates), []byte(strconv.Itoa(i)))
				at := time.Now()
				if err != nil {
					w.Error(err)
				}
				mu.Lock()
				committed[i] = at
				mu.Unlock()
			}
		})
	}
	start := time.Now()
	for i := range n {
		harness.Pause(w.Context(), time.Until(start.Add(time.Duration(i)*time.Second/time.Duration(rate))))
		next <- i
	}
	close(next)
	wg.Wait()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		w.Fatalf("%d of %d events did not arrive", left, n)
	}
	took := make([]time.Duration, n)
	for i := range took {
		took[i] = max(arrived[i].Sub(committed[i]), 0)
	}
	return took
}
