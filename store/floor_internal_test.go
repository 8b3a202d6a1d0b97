package store

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest"
)

func TestFloorAdvance(t *testing.T) {
	type roundTrip struct {
		xmin, xid    uint64
		seen, lowest int64 // A lowest of 0 is none.
		want         int64 // The floor after it.
	}
	tests := []struct {
		name       string
		roundTrips []roundTrip
	}{
		{"rises to what had been seen once everybody of that time is gone", []roundTrip{
			{xmin: 10, xid: 20, seen: 100},
			{xmin: 19, xid: 30, seen: 200},
			{xmin: 20, xid: 31, seen: 200},
			{xmin: 21, xid: 32, seen: 300, want: 101},
			{xmin: 32, xid: 33, seen: 400, want: 101},
			{xmin: 33, xid: 34, seen: 500, want: 301},
		}},
		{"waits as long as one of them is there", []roundTrip{
			{xmin: 10, xid: 20, seen: 100},
			{xmin: 10, xid: 21, seen: 200},
			{xmin: 10, xid: 22, seen: 300},
			{xmin: 23, xid: 23, seen: 400, want: 101},
			{xmin: 24, xid: 24, seen: 500, want: 401},
		}},
		{"stays at the lowest row in hand when it is noted", []roundTrip{
			{xmin: 10, xid: 20, seen: 100, lowest: 40},
			{xmin: 21, xid: 21, seen: 100, want: 40},
		}},
		{"and when it rises: a row that was committed late", []roundTrip{
			{xmin: 10, xid: 20, seen: 100},
			{xmin: 21, xid: 21, seen: 100, lowest: 7, want: 7},
			{xmin: 22, xid: 22, seen: 100, want: 7},
			{xmin: 23, xid: 23, seen: 100, want: 101},
		}},
		{"never sinks", []roundTrip{
			{xmin: 10, xid: 20, seen: 100},
			{xmin: 21, xid: 21, seen: 100, want: 101},
			{xmin: 22, xid: 22, seen: 150, lowest: 120, want: 101},
			{xmin: 23, xid: 23, seen: 150, lowest: 60, want: 101},
			{xmin: 24, xid: 24, seen: 150, lowest: 60, want: 101},
			{xmin: 25, xid: 25, seen: 150, want: 101},
			{xmin: 26, xid: 26, seen: 150, want: 151},
		}},
		{"takes no note of round trips that wrote nothing, since they have no number", []roundTrip{
			{xmin: 10, xid: 0, seen: 100},
			{xmin: 30, xid: 0, seen: 100},
			{xmin: 30, xid: 30, seen: 200},
			{xmin: 31, xid: 0, seen: 200, want: 201},
		}},
		{"nor of those before anything was seen", []roundTrip{
			{xmin: 10, xid: 20, seen: -1},
			{xmin: 21, xid: 0, seen: 50},
			{xmin: 21, xid: 21, seen: 50},
			{xmin: 22, xid: 0, seen: 50, want: 51},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := floor{}
			for i, e := range tt.roundTrips {
				if e.lowest == 0 {
					e.lowest = math.MaxInt64
				}
				f.advance(e.xmin, e.xid, e.seen, e.lowest)
				if got := f.at; got != e.want {
					t.Fatalf("after round trip %d: got %d, want %d", i, got, e.want)
				}
			}
		})
	}
}

func TestFloorIsLowered(t *testing.T) {
	f := newFloor()
	f.lower(50) // It is lower already.
	f.advance(10, 20, 100, math.MaxInt64)
	f.advance(21, 21, 100, math.MaxInt64)
	if f.at != 101 {
		t.Fatalf("the floor is at %d, want 101", f.at)
	}
	f.advance(22, 22, 200, math.MaxInt64)
	f.lower(7)
	// What was proposed before says nothing about the rows from there on.
	f.advance(99, 0, 200, math.MaxInt64)
	if f.at != 7 {
		t.Errorf("the floor is at %d, want 7", f.at)
	}
}

func TestFloorIsStuckForAWhile(t *testing.T) {
	f := newFloor()
	if f.stuck(time.Now().Add(time.Hour)) {
		t.Error("without a candidate it is stuck")
	}
	f.advance(10, 20, 100, math.MaxInt64)
	proposed := f.proposed
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{
		{stuckAfter - 1, false},
		{stuckAfter, true},
		{stuckAfter + 1, false}, // It has just been looked at.
		{stuckAfter + lookAgain - 1, false},
		{stuckAfter + lookAgain, true},
	} {
		if got := f.stuck(proposed.Add(step.after)); got != step.want {
			t.Errorf("%v after the proposal: got %v, want %v", step.after, got, step.want)
		}
	}
	f.advance(21, 0, 100, math.MaxInt64)
	if f.stuck(proposed.Add(time.Hour)) {
		t.Error("after it has risen it is stuck")
	}
}

// With a transaction that keeps vacuum from its work, deleted rows stay in the index, and a scan from the head
// passes all of them. One from the floor does not.
func TestFloorSkipsTheDead(t *testing.T) {
	const dead = 50_000
	for name, hold := range map[string]string{
		"a reader holds the horizon": `begin isolation level repeatable read; select from outbox`,
		"a writer holds the horizon": `begin; select pg_current_xact_id()`,
	} {
		t.Run(name, func(t *testing.T) {
			dsn := storetest.NewDatabase(t)
			fetch := &lastFetch{}
			outbox, err := Open(dsn, Options{BeforeConnect: func(_ context.Context, config *pgx.ConnConfig) error {
				config.Tracer = fetch
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = outbox.Close(context.WithoutCancel(t.Context())) })
			if err := outbox.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			execute(t, dsn, hold)
			producer := execute(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
				select 'users', 'User', (n % 1000)::text, 'UserCreated', convert_to(repeat('x', 256), 'UTF8') from generate_series(1, $1::int) n`, dead)

			term, err := outbox.Begin(t.Context(), "s", "me", 0)
			if err != nil {
				t.Fatal(err)
			}
			request := Request{Fetch: &Fetch{Rows: 1000, Bytes: 1 << 30}}
			for settled := 0; settled < dead; {
				response, err := term.RoundTrip(t.Context(), request)
				if err != nil {
					t.Fatal(err)
				}
				settled += len(request.Settled)
				request.Settled = nil
				for _, row := range response.Rows {
					request.Settled = append(request.Settled, Settled{Seqs: []int64{row.Seq}})
					request.Fetch.Highest = row.Seq
				}
			}

			// Where a writer holds it, the floor rises only after a while, and with traffic.
			for deadline := time.Now().Add(20 * time.Second); term.floor.at < dead; {
				if time.Now().After(deadline) {
					t.Fatalf("the floor is at %d, want it above the %d dead", term.floor.at, dead)
				}
				if _, err := producer.Exec(t.Context(), `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'a', 'i', 'e', '')`); err != nil {
					t.Fatal(err)
				}
				time.Sleep(observeEvery) // A round trip observes no more often.
				for range 2 {
					response, err := term.RoundTrip(t.Context(), request)
					if err != nil {
						t.Fatal(err)
					}
					request.Settled = nil
					for _, row := range response.Rows {
						request.Settled = append(request.Settled, Settled{Seqs: []int64{row.Seq}})
						request.Fetch.Highest = row.Seq
					}
				}
			}
			request.Settled = nil

			at := term.floor.at
			if _, err := term.RoundTrip(t.Context(), request); err != nil {
				t.Fatal(err)
			}
			if start, ok := fetch.args[0].(int64); !ok || start != at {
				t.Errorf("the last fetch began at %v, want it at the floor, %d", fetch.args[0], at)
			}
			head, _ := fetch.cost(t, outbox, 0)
			floor, rows := fetch.cost(t, outbox, at)
			t.Logf("%d buffers from the head, %d from the floor, %d", head, floor, at)
			if floor*20 > head || rows != 0 {
				t.Errorf("a fetch from the floor, %d, touches %d buffers and finds %d rows, one from the head touches %d buffers; want less than a 20th", at, floor, rows, head)
			}
		})
	}
}

// execute runs a statement on a connection that stays open until the test ends, with its transaction if that
// was left open, and returns the connection.
func execute(t *testing.T, dsn, sql string, args ...any) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
	return conn
}

// lastFetch notes the statement by which a round trip fetches.
type lastFetch struct {
	sql  string
	args []any
}

func (*lastFetch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (*lastFetch) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (*lastFetch) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (f *lastFetch) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	f.sql, f.args = data.SQL, data.Args
}

func (*lastFetch) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// cost runs the fetch again on the session, from another start, and returns how many buffers it touched and how
// many rows it returned.
func (f *lastFetch) cost(t *testing.T, o *Outbox, start int64) (buffers, rows int64) {
	t.Helper()
	var plans []struct {
		Plan struct {
			Hit  int64   `json:"Shared Hit Blocks"`
			Read int64   `json:"Shared Read Blocks"`
			Rows float64 `json:"Actual Rows"` // A decimal since Postgres 18, "2.00".
		}
	}
	sql, args := f.sql, slices.Clone(f.args)
	args[0] = start
	err := o.session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		var plan []byte
		if err := conn.QueryRow(ctx, `explain (analyze, buffers, format json) `+sql, args...).Scan(&plan); err != nil {
			return err
		}
		return json.Unmarshal(plan, &plans)
	})
	if err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan.Hit + plans[0].Plan.Read, int64(plans[0].Plan.Rows)
}
