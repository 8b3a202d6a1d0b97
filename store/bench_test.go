package store_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
)

// BenchmarkRoundTrip drains a backlog as the relay does, a thousand rows of 256 B in a round trip: it settles one page
// and fetches the next.
func BenchmarkRoundTrip(b *testing.B) {
	const rows, backlog = 1000, 100_000
	for _, bm := range []struct {
		name, hold string
		options    store.Options
	}{
		{"free", `select 1`, store.Options{}},
		{"reader-holds-horizon", `begin isolation level repeatable read; select from outbox`, store.Options{}},
		{"writer-holds-horizon", `begin; select pg_current_xact_id()`, store.Options{}},
		{"archive", `select 1`, store.Options{Retain: 5 * time.Minute}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			f := newFixture(b, bm.options)
			if _, err := connect(b, f.dsn).Exec(b.Context(), bm.hold); err != nil {
				b.Fatal(err)
			}
			request := store.Request{Fetch: &store.Fetch{Rows: rows, Bytes: 1 << 30}}
			settled := 0
			var fetched []int64
			for b.Loop() {
				if len(fetched) == 0 {
					b.StopTimer()
					f.exec(b, fmt.Sprintf(`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
						select 'users', 'User', (n %% 10000)::text, 'UserCreated', convert_to(repeat('x', 256), 'UTF8') from generate_series(1, %d) n`, backlog))
					request.Settled = nil
					fetched = f.page(b, &request)
					b.StartTimer()
				}
				settled += len(fetched)
				request.Settled = settledSeqs(fetched)
				fetched = f.page(b, &request)
			}
			b.ReportMetric(float64(settled)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// page makes a round trip and returns what it fetched, to be settled by the next.
func (f *fixture) page(tb testing.TB, request *store.Request) []int64 {
	tb.Helper()
	rows := f.roundTrip(tb, *request).Rows
	if len(rows) > 0 {
		request.Fetch.Highest = rows[len(rows)-1].Seq
	}
	return seqs(rows)
}

// BenchmarkTrigger compares what producers get done per second, each transaction being a change of their own and an
// event: without any trigger, with the outbox's while the relay is awake and while it is asleep, and with one that
// always notifies. Such a one holds a lock of the whole database while the log is flushed, so that its price rises with the
// time that a flush takes: here as long as the disk takes, and 2 ms, as on a disk in a network.
func BenchmarkTrigger(b *testing.B) {
	ways := []struct{ name, table string }{
		{"without", "bare"},
		{"awake", "outbox"},
		{"asleep", "outbox"},
		{"notify", "notifying"},
	}
	for _, load := range []struct {
		clients int
		flush   time.Duration
	}{{1, 0}, {8, 0}, {64, 0}, {8, 2 * time.Millisecond}, {64, 2 * time.Millisecond}} {
		b.Run(fmt.Sprintf("clients=%d,flush=%v", load.clients, load.flush), func(b *testing.B) {
			const each = 100
			s := listen(b, newFixture(b, store.Options{}))
			s.exec(b, `
create table change (id bigint generated always as identity primary key, what text not null);
create table bare (like outbox including all);
create table notifying (like outbox including all);
create function always() returns trigger language plpgsql as $$ begin perform pg_notify('always', ''); return null; end $$;
create trigger always after insert on notifying for each statement execute function always()`)
			conns := make([]*pgx.Conn, load.clients)
			for i := range conns {
				conns[i] = connect(b, s.dsn)
				slowFlush := fmt.Sprintf(`select set_config('commit_delay', '%d', false), set_config('commit_siblings', '0', false)`, load.flush.Microseconds())
				if _, err := conns[i].Exec(b.Context(), slowFlush); err != nil {
					b.Fatal(err)
				}
			}
			took := make(map[string]time.Duration)
			for b.Loop() {
				for _, way := range ways {
					sleep := store.WakeUp
					if way.name == "asleep" {
						sleep = store.FallAsleep
					}
					s.roundTrip(b, store.Request{Sleep: sleep})
					start := time.Now()
					var producing sync.WaitGroup
					for _, conn := range conns {
						producing.Go(func() {
							for range each {
								batch := &pgx.Batch{}
								batch.Queue(`insert into change (what) values ('something')`)
								batch.Queue(`insert into `+way.table+` (topic, aggregate_type, aggregate_id, event_type, data) values ('users', 'User', '17', 'UserCreated', $1)`, make([]byte, 256))
								if err := conn.SendBatch(b.Context(), batch).Close(); err != nil {
									b.Error(err)
								}
							}
						})
					}
					producing.Wait()
					took[way.name] += time.Since(start)
				}
			}
			b.ReportMetric(float64(load.clients*each*b.N)/took["without"].Seconds(), "tx/s")
			for _, way := range ways[1:] {
				b.ReportMetric(took["without"].Seconds()/took[way.name].Seconds(), way.name+"/without")
			}
			b.ReportMetric(took["notify"].Seconds()/took["awake"].Seconds(), "awake/notify")
		})
	}
}
