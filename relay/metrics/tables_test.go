package metrics_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/go-outbox/go-outbox/relay/metrics"
	"github.com/go-outbox/go-outbox/store"
)

// reader counts how often it is asked.
type reader struct {
	asked int
	found store.Gauges
	err   error
}

func (r *reader) Read(ctx context.Context) (store.Gauges, error) {
	r.asked++
	if _, bounded := ctx.Deadline(); !bounded {
		return store.Gauges{}, errors.New("the scrape would wait for ever")
	}
	return r.found, r.err
}

func TestTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry, tables := prometheus.NewRegistry(), &reader{err: errors.New("refused")}
		if err := metrics.Tables(registry, tables); err != nil {
			t.Fatal(err)
		}
		expect(t, registry, `outbox_relay_tables_up 0`)
		if n, err := testutil.GatherAndCount(registry, "outbox_relay_pending_events"); n != 0 || err != nil {
			t.Errorf("%d numbers of pending events before the tables were read: %v", n, err)
		}

		tables.err, tables.found = nil, store.Gauges{
			Pending: store.Count{Rows: 500, Exact: true}, Oldest: 7 * time.Second, Dead: store.Count{Rows: 3}, Held: 2, Retrying: 1,
			Archived: store.Count{Rows: 90_000}, ArchiveBytes: 1 << 20,
		}
		time.Sleep(5*time.Second - 1)
		expect(t, registry, `outbox_relay_tables_up 0`)
		time.Sleep(time.Nanosecond)
		expect(t, registry, `outbox_relay_tables_up 1`, `outbox_relay_pending_events 500`, `outbox_relay_oldest_pending_seconds 7`, `outbox_relay_dead_letters 3`,
			`outbox_relay_held_aggregates 2`, `outbox_relay_retrying_aggregates 1`, `outbox_relay_archive_events 90000`, `outbox_relay_archive_bytes 1.048576e+06`)
		if tables.asked != 2 {
			t.Errorf("the tables were asked %d times, want once in five seconds", tables.asked)
		}

		// While Postgres is away the events grow older.
		tables.err = errors.New("refused")
		time.Sleep(10 * time.Second)
		expect(t, registry, `outbox_relay_tables_up 0`, `outbox_relay_pending_events 500`, `outbox_relay_oldest_pending_seconds 17`)
	})
}
