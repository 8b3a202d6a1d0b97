package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// raise exchanges until the floor has passed all that is in the table but for what a fetch leaves out.
func (f *fixture) raise(t *testing.T, above int64, kinds, ids []string) {
	t.Helper()
	fetch := &store.Fetch{Rows: 100, Bytes: 1 << 20, BlockedTypes: kinds, BlockedIDs: ids}
	for deadline := time.Now().Add(20 * time.Second); ; {
		f.insert(t, event("filler"))
		reply := f.exchange(t, store.Request{Fetch: fetch})
		var seqs []int64
		for _, row := range reply.Rows {
			seqs = append(seqs, row.Seq)
			fetch.Highest = max(fetch.Highest, row.Seq)
		}
		if reply = f.exchange(t, store.Request{Settled: []store.Settled{{Seqs: seqs}}, Fetch: fetch}); reply.Floor > above {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the floor stays at %d, want above %d", reply.Floor, above)
		}
	}
}

// seqsOf fetches from a seq on and returns the seqs of an aggregate's rows.
func (f *fixture) seqsOf(t *testing.T, id string, from int64) (seqs []int64) {
	t.Helper()
	for _, row := range f.exchange(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, Back: true, BackTo: from}}).Rows {
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
	blockedAt := f.exchange(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20}}).Floor
	refused := query[int64](t, f, `update outbox set retry_at = now() + interval '1 second' where aggregate_id = 'x' returning seq`)
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("x"))
	kinds, ids := []string{"User"}, []string{"x"}
	f.raise(t, refused+1, kinds, ids)
	f.exchange(t, store.Request{Checkpoint: 1, ScanFrom: &blockedAt})
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
			f.exchange(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: refused, ID: id}, Attempts: 1, Reason: "refused"}}})
			if err := late.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.raise(t, refused, nil, nil)
			f.exchange(t, store.Request{Checkpoint: 1})
			if n, err := take(t, f.Outbox, refused); err != nil || n != 1 {
				t.Fatalf("%d were taken, error %v", n, err)
			}
			if from := query[int64](t, f, `select scan_from from outbox_relay`); from >= refused {
				t.Errorf("the next term looks from %d on, want below %d", from, refused)
			}
			rows := f.exchange(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, Highest: refused + 1000}}).Rows
			if len(rows) == 0 || rows[0].Seq >= refused || rows[0].AggregateID != "x" {
				t.Errorf("the next fetch has %+v, want first the row below %d", rows, refused)
			}
		})
	}
}
