package store

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

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
		term, err := o.Begin(t.Context(), "S", "me", 0)
		if err != nil {
			t.Fatal(err)
		}
		sweep := func(want int64) {
			t.Helper()
			for _, brief := range []bool{false, true} {
				found, err := term.sweep(t.Context(), brief)
				seq, lowered := o.back.take()
				if err != nil || found != (want > 0) || lowered != found || found && seq != want {
					t.Errorf("hold %v, brief %v: got %v, %d, %v; want %d", hold, brief, found, seq, err, want)
				}
			}
		}
		term.floorSeen.Store(math.MinInt64)
		sweep(0)
		term.floorSeen.Store(100)
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
	var term *Term
	begin := func() {
		t.Helper()
		if term, err = o.Begin(t.Context(), "S", "me", 0); err != nil {
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
			request := Request{Checkpoint: checkpoint, Fetch: &Fetch{Rows: 100, Bytes: 1 << 20, Highest: term.drawn}}
			if len(settled) > 0 {
				request.Settled = []Settled{{Seqs: settled}}
			}
			response, err := term.RoundTrip(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			settled = nil
			for _, row := range response.Rows {
				settled = append(settled, row.Seq)
			}
		}
		if _, err := term.RoundTrip(t.Context(), Request{Settled: []Settled{{Seqs: settled}}}); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for term.scanFrom < 3 {
		work(3)
		if time.Now().After(deadline) {
			t.Fatalf("the table says that scans begin at %d, the floor is at %d", term.scanFrom, term.floor.at)
		}
	}
	at := term.scanFrom
	begin()
	if term.floor.at != at {
		t.Errorf("the next term begins at %d, want %d", term.floor.at, at)
	}
	execute(t, dsn, `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (1, 't', 'A', '1', 'E', '')`)
	execute(t, dsn, `update outbox_relay set scan_from = least(scan_from, 1)`)
	work(1)
	if o.back.set {
		t.Error("it is to go back again")
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var left bool
	if err := conn.QueryRow(t.Context(), `select exists (select from outbox where seq = 1)`).Scan(&left); err != nil || left {
		t.Error("the row below the floor is not fetched along with the checkpoint that meets the lowering", err)
	}
	begin()
	if term.floor.at > 1 {
		t.Errorf("the next term begins at %d, want 1", term.floor.at)
	}
}

// A fetch that passes over a great many rows is not repeated from the same place: one is enough to raise the floor, if
// nobody is writing just then.
func TestFloorPassesManyRowsAtOnce(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	o, err := Open(dsn, Options{HoldDead: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(context.WithoutCancel(t.Context())) })
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	term, err := o.Begin(t.Context(), "S", "me", 0)
	if err != nil {
		t.Fatal(err)
	}
	execute(t, dsn, `insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error)
		values (1, gen_random_uuid(), 't', 'A', 'held', 'E', '', now(), 1, 'refused')`)
	execute(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 't', 'A', 'held', 'E', '' from generate_series(1, 1000)`)
	fetch := func() {
		t.Helper()
		if response, err := term.RoundTrip(t.Context(), Request{Fetch: &Fetch{Rows: 10, Bytes: 1 << 20}}); err != nil || len(response.Rows) > 0 {
			t.Fatalf("got %d rows, %v; want none", len(response.Rows), err)
		}
	}
	fetch()
	if term.floor.at > 0 {
		t.Fatalf("after a fast fetch that wrote nothing the floor is at %d, want 0", term.floor.at)
	}
	term.took = time.Minute
	execute(t, dsn, `begin; insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', 'held', 'E', '')`)
	fetch()
	if term.floor.at > 0 {
		t.Fatalf("beside a producer the floor is at %d, want 0", term.floor.at)
	}
	execute(t, dsn, `select pg_terminate_backend(pid) from pg_stat_activity where state = 'idle in transaction' and datname = current_database()`)
	for deadline := time.Now().Add(20 * time.Second); term.floor.at <= 1000 && time.Now().Before(deadline); {
		term.took = time.Minute
		fetch()
	}
	if term.floor.at <= 1000 {
		t.Errorf("after a slow fetch the floor is at %d, want it above the 1000 rows", term.floor.at)
	}
}

// A look that turns out not to be brief leaves the session at once, and is done again apart.
func TestSweepDoesNotHoldTheSession(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	o, err := Open(dsn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(context.WithoutCancel(t.Context())) })
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	term, err := o.Begin(t.Context(), "S", "me", 0)
	if err != nil {
		t.Fatal(err)
	}
	term.floorSeen.Store(100)
	locker, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = locker.Close(context.WithoutCancel(t.Context())) })
	if _, err := locker.Exec(t.Context(), `begin; lock table outbox in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	watcher, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = watcher.Close(context.WithoutCancel(t.Context())) })
	var session uint32
	if err := o.session.Do(t.Context(), func(_ context.Context, conn *pgx.Conn) error {
		session = conn.PgConn().PID()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := term.sweep(t.Context(), true)
		done <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if len(done) > 0 {
			t.Fatalf("the look ends with %v", <-done)
		}
		var apart bool // Within a transaction the view would always show the same.
		if err := watcher.QueryRow(t.Context(), `select exists (select from pg_stat_activity where wait_event_type = 'Lock' and pid <> $1)`, session).Scan(&apart); err != nil {
			t.Fatal(err)
		}
		if apart {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the look is not done again apart")
		}
	}
	start := time.Now()
	if err := o.session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }); err != nil || time.Since(start) > 2*time.Second {
		t.Errorf("the session answers after %v, error %v", time.Since(start), err)
	}
	if _, err := locker.Exec(t.Context(), `rollback`); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the look apart: %v", err)
	}
}

// The server's clock was set back since a part of the archive began to be filled. The part's turn ends no later for that.
func TestClockSetBack(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	o, err := Open(dsn, Options{Retain: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(context.WithoutCancel(t.Context())) })
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, since := range []string{"now() + interval '10 days'", "now() - interval '10 days'"} {
		if _, err := o.Begin(t.Context(), "S", "me", 0); err != nil {
			t.Fatal(err)
		}
		execute(t, dsn, `update outbox_relay set part_since = `+since+`, leader_since = `+since)
		term, err := o.Begin(t.Context(), "S", "me", 0)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(term.archive.filled); left > time.Minute || left < -time.Minute {
			t.Errorf("%s: the part is filled for another %v", since, left)
		}
	}
}
