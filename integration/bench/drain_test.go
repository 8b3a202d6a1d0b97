package bench_test

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	eventSize  = 256
	aggregates = 10_000
)

// fill inserts n events, spread over so many aggregates.
func fill(w *harness.World, conn *pgx.Conn, n, aggregates, size int) {
	w.Helper()
	w.Exec(conn, `alter table outbox disable trigger all`)
	w.Exec(conn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
		select 'bench', 'Account', (i % $2::int)::text, 'Changed', convert_to(repeat('x', $3::int), 'UTF8') from generate_series(1, $1::int) i`, n, aggregates, size)
	w.Exec(conn, `alter table outbox enable trigger all`)
	w.Exec(conn, `vacuum analyze outbox`)
	w.Exec(conn, `checkpoint`)
}

// BenchmarkDrain measures how fast a backlog leaves. The baseline, in the same run, is the loop that one would write in
// an afternoon: select a page, publish it asynchronously with the same headers, wait, delete it, commit. BENCH_EVENTS
// sets the backlog of the cases that do not name one.
func BenchmarkDrain(b *testing.B) {
	n, err := strconv.Atoi(os.Getenv("BENCH_EVENTS"))
	if err != nil {
		n = 200_000
	}
	standard := backlog{n, aggregates, eventSize}
	baseline := 0.0
	b.Run("loop", func(b *testing.B) {
		baseline = benchmarkDrain(b, standard, 0, false, func(w *harness.World, js jetstream.JetStream, _ *pgx.Conn, _ int) {
			afternoonLoop(w, js)
		})
	})
	for _, c := range []struct {
		name    string
		backlog backlog
		horizon bool
		retain  string
	}{
		{"relay", standard, false, "0s"},
		{"relay, archive", standard, false, "5m"},
		{"relay, held horizon", standard, true, "0s"},
		{"relay, 10 aggregates", backlog{n, 10, eventSize}, false, "0s"},
		{"relay, 1 aggregate", backlog{n, 1, eventSize}, false, "0s"},
		{"relay, 1 KiB", backlog{n, aggregates, 1 << 10}, false, "0s"},
		{"relay, 16 KiB", backlog{n / 20, aggregates, 16 << 10}, false, "0s"},
		{"relay, 1 MiB less headers", backlog{100, aggregates, 1<<20 - 4096}, false, "0s"},
		{"relay, 1M events", backlog{1_000_000, aggregates, eventSize}, false, "0s"},
	} {
		b.Run(c.name, func(b *testing.B) {
			benchmarkDrain(b, c.backlog, baseline, c.horizon, func(w *harness.World, js jetstream.JetStream, conn *pgx.Conn, total int) {
				relayDrain(w, js, conn, total, "OUTBOX_RETAIN="+c.retain)
			})
		})
	}
}

// backlog is what is to be drained.
type backlog struct{ events, aggregates, size int }

// benchmarkDrain measures drain, reports it beside the baseline, and returns its rate. Each backlog has a world of its own:
// a relay that found another's traffic in the stream would read it back first. The total that drain gets is how many
// messages the stream then holds.
func benchmarkDrain(b *testing.B, load backlog, baseline float64, horizon bool, drain func(w *harness.World, js jetstream.JetStream, conn *pgx.Conn, total int)) float64 {
	b.Helper()
	for b.Loop() {
		b.StopTimer()
		w := harness.NewWorld(b, harness.Options{})
		w.Command("migrate")
		conn, js := w.Connect(), w.JetStream()
		if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: 10 * time.Minute, AllowBatchPublish: true}); err != nil {
			b.Fatal(err)
		}
		if horizon {
			holder := w.Connect()
			w.Exec(holder, `begin; select pg_current_xact_id()`)
		}
		fill(w, conn, load.events, load.aggregates, load.size)
		b.StartTimer()
		drain(w, js, conn, load.events)
	}
	rate := float64(load.events) * float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "events/s")
	if baseline > 0 {
		b.ReportMetric(rate/baseline, "×loop")
	}
	return rate
}

// relayDrain has a relay of its own drain the outbox; only the time that it leads counts.
func relayDrain(w *harness.World, js jetstream.JetStream, conn *pgx.Conn, total int, settings ...string) {
	w.Helper()
	b, ok := w.TB.(*testing.B)
	if !ok {
		w.Fatal("not a benchmark")
	}
	b.StopTimer()
	before := total - waiting(w, conn)
	relay := w.Relay(append(settings, "OUTBOX_LOGGING_LEVEL=info")...)
	relay.Leads()
	b.StartTimer()
	drained(w, js, conn, total)
	b.StopTimer()
	cpu, resident := relay.Usage()
	b.ReportMetric(cpu.Seconds()*1e6/float64(total-before), "µsCPU/event")
	b.ReportMetric(resident/1e6, "MB-RSS")
	relay.Stop()
	b.StartTimer()
}

func waiting(w *harness.World, conn *pgx.Conn) (n int) {
	w.Helper()
	if err := conn.QueryRow(w.Context(), `select count(*) from outbox`).Scan(&n); err != nil {
		w.Fatal(err)
	}
	return n
}

// drained waits until the stream holds so many messages and the outbox is empty. The stream is asked first: looking
// for the last row among many deleted ones would take the database's time.
func drained(w *harness.World, js jetstream.JetStream, conn *pgx.Conn, total int) {
	w.Helper()
	harness.Eventually(w.TB, time.Minute, "all events in the stream", func() bool {
		stream, err := js.Stream(w.Context(), "OUTBOX")
		return err == nil && stream.CachedInfo().State.Msgs >= uint64(total)
	})
	w.Settled(conn, time.Minute)
}

func afternoonLoop(w *harness.World, js jetstream.JetStream) {
	w.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, w.DSN)
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close(ctx)
	for {
		tx, err := conn.Begin(ctx)
		if err != nil {
			w.Fatal(err)
		}
		rows, err := tx.Query(ctx, `select seq, id::text, topic, aggregate_type, aggregate_id, event_type, data, created_at from outbox order by seq limit 1000`)
		if err != nil {
			w.Fatal(err)
		}
		var seqs []int64
		for rows.Next() {
			var seq int64
			var id, topic, kind, aggregate, event string
			var data []byte
			var created time.Time
			if err := rows.Scan(&seq, &id, &topic, &kind, &aggregate, &event, &data, &created); err != nil {
				w.Fatal(err)
			}
			_, err := js.PublishMsgAsync(&nats.Msg{
				Subject: strings.Join([]string{"outbox", topic, kind, aggregate}, "."), Data: data,
				Header: nats.Header{
					"Nats-Msg-Id": {id}, "Outbox-Seq": {strconv.FormatInt(seq, 10)}, "Outbox-Topic": {topic}, "Outbox-Aggregate-Type": {kind},
					"Outbox-Aggregate-Id": {aggregate}, "Outbox-Event-Type": {event}, "Outbox-Created-At": {created.UTC().Format(time.RFC3339Nano)},
				},
			})
			if err != nil {
				w.Fatal(err)
			}
			seqs = append(seqs, seq)
		}
		if err := rows.Err(); err != nil {
			w.Fatal(err)
		}
		if len(seqs) == 0 {
			return
		}
		<-js.PublishAsyncComplete()
		if _, err := tx.Exec(ctx, `delete from outbox where seq = any($1)`, seqs); err != nil {
			w.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			w.Fatal(err)
		}
	}
}
