package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// raise makes round trips until the floor has passed all that is in the table but for what a fetch leaves out.
func (f *fixture) raise(t *testing.T, above int64, kinds, ids []string) {
	t.Helper()
	fetch := &store.Fetch{Rows: 100, Bytes: 1 << 20, BlockedTypes: kinds, BlockedIDs: ids}
	for deadline := time.Now().Add(20 * time.Second); ; {
		f.insert(t, event("filler"))
		response := f.roundTrip(t, store.Request{Fetch: fetch})
		var seqs []int64
		for _, row := range response.Rows {
			seqs = append(seqs, row.Seq)
			fetch.Highest = max(fetch.Highest, row.Seq)
		}
		if response = f.roundTrip(t, store.Request{Settled: []store.Settled{{Seqs: seqs}}, Fetch: fetch}); response.Floor > above {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the floor stays at %d, want above %d", response.Floor, above)
		}
	}
}

// seqsOf fetches from a seq on and returns the seqs of an aggregate's rows.
func (f *fixture) seqsOf(t *testing.T, id string, from int64) (seqs []int64) {
	t.Helper()
	for _, row := range f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, Back: true, BackTo: from}}).Rows {
		if row.AggregateID == id {
			seqs = append(seqs, row.Seq)
		}
	}
	return seqs
}

// When an aggregate goes on that a term began with as blocked, all its rows come: also those before the one for which it waits.
func TestBlockedFromTheFirstRowOn(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("x"), event("x"), event("x"))
	f.exec(t, `update outbox set retry_at = now() + interval '1 hour' where seq = 2`)
	term, err := f.Begin(t.Context(), "S", "one", 0)
	if err != nil || len(term.Blocked) != 1 {
		t.Fatalf("began with %+v, error %v; want one blocked aggregate", term, err)
	}
	f.raise(t, 3, []string{term.Blocked[0].AggregateType}, []string{term.Blocked[0].AggregateID})
	if got := f.seqsOf(t, "x", term.Floor); !slices.Equal(got, []int64{1, 2, 3}) {
		t.Errorf("got rows %v, want 1 to 3", got)
	}
}

// A row of a blocked aggregate that commits late is where the relay was told to go back to, in this term and the next.
func TestLateRowOfABlockedAggregate(t *testing.T) {
	f := newFixture(t, store.Options{})
	if _, err := f.Begin(t.Context(), "S", "one", 0); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("filler"))
	f.raise(t, 1, nil, nil)
	late, err := connect(t, f.dsn).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Insert(t.Context(), late, event("x")); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("x"))
	blockedAt := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20}}).Floor
	refused := query[int64](t, f, `update outbox set retry_at = now() + interval '1 second' where aggregate_id = 'x' returning seq`)
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("x"))
	kinds, ids := []string{"User"}, []string{"x"}
	f.raise(t, refused+1, kinds, ids)
	f.roundTrip(t, store.Request{Checkpoint: 1, ScanFrom: &blockedAt})
	for what, from := range map[string]int64{"in this term": blockedAt, "in the next": query[int64](t, f, `select scan_from from outbox_relay`)} {
		if got := f.seqsOf(t, "x", from); len(got) != 3 || got[0] >= refused {
			t.Errorf("%s: got rows %v, want three, the first of them below %d", what, got, refused)
		}
	}
}

// A row that was held back for a dead letter's sake may have a lower seq than that. When the letter is requeued or discarded,
// it comes before what the aggregate produces later, whether or not the relay hears of that.
func TestLateRowOfAHeldAggregate(t *testing.T) {
	for name, take := range map[string]func(t *testing.T, o *store.Outbox, seq int64) (int, error){
		"discarded": func(t *testing.T, o *store.Outbox, seq int64) (int, error) {
			t.Helper()
			return o.Discard(t.Context(), store.DeadKey{Seq: seq})
		},
		"requeued": func(t *testing.T, o *store.Outbox, seq int64) (int, error) {
			t.Helper()
			return o.Requeue(t.Context(), store.DeadKey{Seq: seq})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, store.Options{HoldDead: true})
			if _, err := f.Begin(t.Context(), "S", "one", 0); err != nil {
				t.Fatal(err)
			}
			late, err := connect(t, f.dsn).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Insert(t.Context(), late, event("x")); err != nil {
				t.Fatal(err)
			}
			f.insert(t, event("x"))
			refused := query[int64](t, f, `select seq from outbox where aggregate_id = 'x'`)
			id := query[[16]byte](t, f, `select id from outbox where aggregate_id = 'x'`)
			f.roundTrip(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: refused, ID: id}, Attempts: 1, Reason: "refused"}}})
			if err := late.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.raise(t, refused, nil, nil)
			f.roundTrip(t, store.Request{Checkpoint: 1})
			if n, err := take(t, f.Outbox, refused); err != nil || n != 1 {
				t.Fatalf("%d were taken, error %v", n, err)
			}
			if from := query[int64](t, f, `select scan_from from outbox_relay`); from >= refused {
				t.Errorf("the next term looks from %d on, want below %d", from, refused)
			}
			rows := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, Highest: refused + 1000}}).Rows
			if len(rows) == 0 || rows[0].Seq >= refused || rows[0].AggregateID != "x" {
				t.Errorf("the next fetch has %+v, want first the row below %d", rows, refused)
			}
		})
	}
}

// Of more aggregates than can be left out by name, one goes on just before a fetch, and the relay has not heard of it yet.
// The fetch has the aggregate's rows from the first on, or none.
func TestHeldAggregateGoesOnUnheard(t *testing.T) {
	for name, take := range map[string]func(t *testing.T, o *store.Outbox, seq int64) (int, error){
		"discarded": func(t *testing.T, o *store.Outbox, seq int64) (int, error) {
			t.Helper()
			return o.Discard(t.Context(), store.DeadKey{Seq: seq})
		},
		"requeued": func(t *testing.T, o *store.Outbox, seq int64) (int, error) {
			t.Helper()
			return o.Requeue(t.Context(), store.DeadKey{Seq: seq})
		},
	} {
		for _, checkpoint := range []uint64{0, 9} { // Is one recorded along with the fetch?
			t.Run(fmt.Sprintf("%s, checkpoint %d", name, checkpoint), func(t *testing.T) {
				f := newFixture(t, store.Options{HoldDead: true})
				f.insert(t, event("x"), event("x"))
				if _, err := f.Begin(t.Context(), "S", "one", 0); err != nil {
					t.Fatal(err)
				}
				f.roundTrip(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: 1}, Attempts: 1, Reason: "refused"}}})
				// So many others are held that this one is not left out by name: its name is too long for that, too.
				f.exec(t, `update outbox set aggregate_id = repeat('x', 300); update outbox_dead set aggregate_id = repeat('x', 300)`)
				f.raise(t, 2, nil, nil)
				f.roundTrip(t, store.Request{Checkpoint: 5})
				f.raise(t, 10, nil, nil) // What is recorded is below it, as it mostly is.
				f.insert(t, event("y"))
				f.exec(t, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'User', repeat('x', 300), 'E', 'x')`)

				other, err := store.Open(f.dsn, store.Options{HoldDead: true}) // The command is another process.
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close(t.Context())
				if n, err := take(t, other, 1); err != nil || n != 1 {
					t.Fatalf("%d were taken, error %v", n, err)
				}
				var got []int64
				request := store.Request{Checkpoint: checkpoint, Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, Highest: 1000}}
				for _, row := range f.roundTrip(t, request).Rows {
					if row.AggregateType == "User" && len(row.AggregateID) == 300 {
						got = append(got, row.Seq)
					}
				}
				want := query[[]int64](t, f, `select array_agg(seq order by seq) from outbox where octet_length(aggregate_id) = 300`)
				if !slices.Equal(got, want) {
					t.Errorf("the fetch has rows %v of the aggregate, want %v", got, want)
				}
				// Once is enough: the next fetches begin where they did before.
				from := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, Held: got, Highest: 1000}}).Floor
				if len(want) > 0 && from > want[0] {
					t.Errorf("the floor is %d, above row %d, which is held", from, want[0])
				}
			})
		}
	}
}

// A fetch that goes back and stays returns the rows below the floor, and the floor remains where it was.
func TestGoBackAndStay(t *testing.T) {
	f := newFixture(t, store.Options{})
	if _, err := f.Begin(t.Context(), "S", "one", 0); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("hot"), event("hot"), event("hot"))
	kinds, ids := []string{"User"}, []string{"hot"}
	f.raise(t, 3, kinds, ids)
	before := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, BlockedTypes: kinds, BlockedIDs: ids}}).Floor
	response := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 2, Bytes: 1 << 20, Back: true, BackTo: 2, Stay: true}})
	if len(response.Rows) != 2 || response.Rows[0].Seq != 2 || response.Rows[1].Seq != 3 || !response.Full {
		t.Errorf("got %+v, want rows 2 and 3", response.Rows)
	}
	if response.Floor < before {
		t.Errorf("the floor was %d and is %d", before, response.Floor)
	}
	if again := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20}}); slices.ContainsFunc(again.Rows, func(r store.Row) bool { return r.AggregateID == "hot" }) {
		t.Errorf("the next fetch begins below the floor: %+v", again.Rows)
	}
}

// Rows that were put back while their aggregate was left out are told to whoever leaves it out.
func TestPutBackIsTold(t *testing.T) {
	f := newFixture(t, store.Options{})
	if _, err := f.Begin(t.Context(), "S", "one", 0); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("x"))
	seq, id := query[int64](t, f, `select seq from outbox`), query[[16]byte](t, f, `select id from outbox`)
	f.roundTrip(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: seq, ID: id}, Attempts: 1, Reason: "refused"}}})
	kinds, ids := []string{"User"}, []string{"x"}
	f.raise(t, seq+2, kinds, ids)
	if n, err := f.Requeue(t.Context(), store.DeadKey{Seq: seq}); err != nil || n != 1 {
		t.Fatalf("%d were put back, error %v", n, err)
	}
	response := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, BlockedTypes: kinds, BlockedIDs: ids, Highest: seq + 1000}})
	if response.Floor > seq {
		t.Errorf("row %d was put back, and the response's floor is %d", seq, response.Floor)
	}
}
