package bench_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// BenchmarkProducers measures what the outbox costs producers: eight clients, each transaction a change of their own and
// an event, as fast as they can. The baseline inserts the same into a table without a trigger; then into the outbox without
// a relay, and with one that publishes beside them, on the same processors. What the trigger alone costs, at more clients
// and against NOTIFY, is in store's BenchmarkTrigger.
func BenchmarkProducers(b *testing.B) {
	const clients, each = 8, 1000
	w := harness.NewWorld(b, harness.Options{})
	w.Command("migrate")
	conn := w.Connect()
	w.Exec(conn, `create table change (id bigint generated always as identity primary key, what text not null)`)
	w.Exec(conn, `create table bare (like outbox including all)`)
	took := func(table string) time.Duration {
		var producing sync.WaitGroup
		start := time.Now()
		for range clients {
			conn := w.Connect()
			producing.Go(func() {
				for range each {
					batch := &pgx.Batch{}
					batch.Queue(`insert into change (what) values ('something')`)
					batch.Queue(`insert into `+table+` (topic, aggregate_type, aggregate_id, event_type, data) values ('bench', 'Account', '17', 'Changed', $1)`, make([]byte, eventSize))
					if err := conn.SendBatch(b.Context(), batch).Close(); err != nil {
						b.Error(err)
					}
				}
				_ = conn.Close(context.WithoutCancel(b.Context())) // The world would keep it.
			})
		}
		producing.Wait()
		return time.Since(start)
	}
	var bare, stored, relayed time.Duration
	for b.Loop() {
		bare += took("bare")
		stored += took("outbox")
		relay := w.Relay("OUTBOX_LOGGING_LEVEL=info")
		w.Settled(conn, time.Minute)
		relayed += took("outbox")
		relay.Stop()
	}
	report(b, float64(clients*each*b.N)/bare.Seconds(), "tx/s")
	report(b, bare.Seconds()/stored.Seconds(), "outbox/bare")
	report(b, bare.Seconds()/relayed.Seconds(), "relayed/bare")
}

// BenchmarkIdle measures what a relay costs while it has nothing to do.
func BenchmarkIdle(b *testing.B) {
	w := harness.NewWorld(b, harness.Options{})
	relay := w.Relay("OUTBOX_LOGGING_LEVEL=info")
	harness.Eventually(b, 10*time.Second, "the relay is ready", func() bool { return relay.Get("/readyz") == 200 })
	conn := w.Connect()
	// Servers write their statistics down with some delay.
	transactions := func() (n float64) {
		harness.Pause(b.Context(), 2*time.Second)
		if err := conn.QueryRow(b.Context(), `select xact_commit + xact_rollback from pg_stat_database where datname = current_database()`).Scan(&n); err != nil {
			b.Fatal(err)
		}
		return n
	}
	var count float64
	var took, cpu time.Duration
	for b.Loop() {
		before, start := transactions(), time.Now()
		used, _ := relay.Usage()
		harness.Pause(b.Context(), 20*time.Second)
		count += transactions() - before - 1 // The query itself.
		took += time.Since(start)
		now, _ := relay.Usage()
		cpu += now - used
	}
	report(b, count/took.Seconds(), "tx/s")
	report(b, cpu.Seconds()*1e3/took.Seconds(), "ms-CPU/s")
}
