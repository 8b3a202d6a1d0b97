package store_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

func (f *fixture) gauges(t *testing.T, gauge *store.Gauge) store.Gauges {
	t.Helper()
	found, err := gauge.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestGauges(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour, HoldDead: true})
	gauge := f.Gauge()
	t.Cleanup(func() { gauge.Close(context.WithoutCancel(t.Context())) })
	none := store.Count{Exact: true}
	if got := f.gauges(t, gauge); got.Pending != none || got.Oldest != 0 || got.Dead != none || got.Held != 0 || got.Retrying != 0 || got.Archived != none || got.ArchiveBytes <= 0 {
		t.Errorf("of empty tables: %+v", got)
	}

	f.begin(t)
	f.insert(t, event("1"), event("2"), event("2"), event("3"), event("3"), event("4"))
	f.roundTrip(t, store.Request{
		Settled: settledSeqs([]int64{1}),
		Dead:    []store.Failure{{Ref: store.Ref{Seq: 2, ID: f.id(t, 2)}, Attempts: 1, Reason: "refused"}},
		Failed:  []store.Failure{{Ref: store.Ref{Seq: 4, ID: f.id(t, 4)}, Attempts: 1, Wait: time.Minute}, {Ref: store.Ref{Seq: 5, ID: f.id(t, 5)}, Attempts: 1, Wait: time.Minute}},
	})
	f.exec(t, `update outbox set created_at = created_at - interval '1 hour' where seq = 3`)
	f.exec(t, `update outbox set created_at = '-infinity' where seq = 4`)
	one := store.Count{Rows: 1, Exact: true}
	got := f.gauges(t, gauge)
	if want := (store.Count{Rows: 4, Exact: true}); got.Pending != want || got.Oldest < time.Hour || got.Oldest > time.Hour+time.Minute {
		t.Errorf("%+v are pending since %v, want %+v since an hour ago", got.Pending, got.Oldest, want)
	}
	if got.Dead != one || got.Held != 1 || got.Retrying != 1 || got.Archived != one {
		t.Errorf("got %+v, want one dead letter, held aggregate, retried aggregate and archived event", got)
	}

	f.exec(t, `update outbox set given_up_at = clock_timestamp() where seq = 6`)
	if got := f.gauges(t, gauge); got.Pending.Rows != 3 || got.Dead.Rows != 2 || got.Held != 2 {
		t.Errorf("a row that could not be moved: %+v, want it among the dead letters", got)
	}
}

// A backlog is estimated, without statistics, and the estimate follows it down.
func TestGaugesOfABacklog(t *testing.T) {
	f := newFixture(t, store.Options{})
	gauge := f.Gauge()
	t.Cleanup(func() { gauge.Close(context.WithoutCancel(t.Context())) })
	f.exec(t, `alter table outbox set (autovacuum_enabled = off)`)
	// Every second transaction was rolled back, or its event is published already.
	f.exec(t, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 'users', 'User', '1', 'e', '{}' from generate_series(1, 200000);
delete from outbox where seq % 2 = 0`)
	for left := 100_000; left > 10_000; left -= 30_000 {
		f.exec(t, `delete from outbox where seq <= (select max(seq) from outbox) - `+strconv.Itoa(2*left))
		got := f.gauges(t, gauge).Pending
		if got.Exact || float64(got.Rows) < 0.95*float64(left) || float64(got.Rows) > 1.05*float64(left) {
			t.Errorf("%d events are pending, and the gauge says %+v", left, got)
		}
	}
	f.exec(t, `delete from outbox where seq <= (select max(seq) from outbox) - 20000`)
	if got, want := f.gauges(t, gauge).Pending, (store.Count{Rows: 10_000, Exact: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A gauge that has lost its connection makes another one.
func TestGaugeConnectsAgain(t *testing.T) {
	f := newFixture(t, store.Options{})
	gauge := f.Gauge()
	t.Cleanup(func() { gauge.Close(context.WithoutCancel(t.Context())) })
	f.gauges(t, gauge)
	f.exec(t, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'outbox-relay admin' and datname = current_database()`)
	if _, err := gauge.Read(t.Context()); err == nil {
		t.Fatal("the gauge was read on a connection that is gone")
	}
	f.gauges(t, gauge)
}
