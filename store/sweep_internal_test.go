package store

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// Rows below the floor that no notification told of are found, and none that is blocked, held or given up.
func TestSweep(t *testing.T) {
	const insert = `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values `
	for _, hold := range []bool{false, true} {
		dsn := storetest.NewDatabase(t)
		o, err := Open(dsn, Options{HoldDead: hold})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = o.Close(context.WithoutCancel(t.Context())) })
		if err := o.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		execute(t, dsn, insert+`(10, 't', 'A', 'blocked', 'E', ''), (11, 't', 'A', 'blocked', 'E', ''), (12, 't', 'A', 'given up', 'E', ''),
			(13, 't', 'A', 'held', 'E', ''), (200, 't', 'A', 'above', 'E', '')`)
		execute(t, dsn, `update outbox set retry_at = now() + interval '1 hour', last_error = 'refused' where seq = 10`)
		execute(t, dsn, `update outbox set given_up_at = now(), last_error = 'refused' where seq = 12`)
		execute(t, dsn, `insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error)
			values (1, gen_random_uuid(), 't', 'A', 'held', 'E', '', now(), 1, 'refused')`)
		sweep := func(want int64) {
			t.Helper()
			found, seq, err := o.sweep(t.Context())
			if err != nil || found != (want > 0) || found && seq != want {
				t.Errorf("hold %v: got %v, %d, %v; want %d", hold, found, seq, err, want)
			}
		}
		o.floorSeen.Store(math.MinInt64)
		sweep(0)
		o.floorSeen.Store(100)
		if hold {
			sweep(0)
		} else {
			sweep(13)
		}
		execute(t, dsn, insert+`(5, 't', 'A', 'straggler', 'E', '')`)
		execute(t, dsn, `update outbox set retry_at = 'infinity', last_error = 'by its producer' where seq = 5`)
		sweep(5)
	}
}

// The floor that is recorded is where the next term begins, unless a command has put rows back below it meanwhile.
func TestScanFrom(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	o, err := Open(dsn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(context.WithoutCancel(t.Context())) })
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	begin := func() {
		t.Helper()
		if _, err := o.Begin(t.Context(), "S", "me", 0); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	checkpoint := uint64(0)
	work := func(turns int) {
		t.Helper()
		var settled []int64
		for range turns {
			execute(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`)
			checkpoint++
			request := Request{Checkpoint: checkpoint, Fetch: &Fetch{Rows: 100, Bytes: 1 << 20, Highest: o.drawn}}
			if len(settled) > 0 {
				request.Settled = []Settled{{Seqs: settled}}
			}
			reply, err := o.Exchange(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			settled = nil
			for _, row := range reply.Rows {
				settled = append(settled, row.Seq)
			}
		}
		if _, err := o.Exchange(t.Context(), Request{Settled: []Settled{{Seqs: settled}}}); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for o.scanFrom < 3 {
		work(3)
		if time.Now().After(deadline) {
			t.Fatalf("the table says that scans begin at %d, the floor is at %d", o.scanFrom, o.floor.at)
		}
	}
	at := o.scanFrom
	begin()
	if o.floor.at != at {
		t.Errorf("the next term begins at %d, want %d", o.floor.at, at)
	}
	execute(t, dsn, `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (1, 't', 'A', '1', 'E', '')`)
	execute(t, dsn, `update outbox_relay set scan_from = least(scan_from, 1)`)
	work(1)
	if to, ok := o.back.take(); !ok || to != 1 {
		t.Errorf("the lowering is noticed: %v, %d; want back to 1", ok, to)
	}
	begin()
	if o.floor.at != 1 {
		t.Errorf("the next term begins at %d, want 1", o.floor.at)
	}
}
