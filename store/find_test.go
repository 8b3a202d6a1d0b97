package store_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/store"
)

func (f *fixture) find(t *testing.T, key store.FindKey) []store.FoundEvent {
	t.Helper()
	found, err := f.Find(t.Context(), key, 100)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestFind(t *testing.T) {
	for _, hold := range []bool{false, true} {
		f := newFixture(t, store.Options{Retain: time.Hour, HoldDead: hold})
		f.begin(t)
		f.insert(t, event("done"), event("dead"), event("dead"), event("retried"), event("retried"), event("free"))
		ids := make([]uuid.UUID, 7)
		for seq := int64(1); seq <= 6; seq++ {
			ids[seq] = f.id(t, seq)
		}
		f.roundTrip(t, store.Request{
			Settled: []store.Settled{{Seqs: []int64{1}, After: 41}},
			Dead:    []store.Failure{{Ref: store.Ref{Seq: 2, ID: ids[2]}, Attempts: 5, Reason: "too large"}},
			Failed:  []store.Failure{{Ref: store.Ref{Seq: 4, ID: ids[4]}, Attempts: 1, Wait: time.Minute, Reason: "not now"}},
		})
		afterDead := store.FoundEvent{Place: store.PlacePending}
		if hold {
			afterDead = store.FoundEvent{Place: store.PlaceHeld, Behind: 2, Reason: "too large"}
		}
		for seq, want := range map[int64]store.FoundEvent{
			1: {Place: store.PlacePublished, Stream: "s", After: 41},
			2: {Place: store.PlaceDead, Attempts: 5, Reason: "too large", Letter: 1},
			3: afterDead,
			4: {Place: store.PlaceRetrying, Attempts: 1, Reason: "not now", Ahead: store.Count{Rows: 1}},
			5: {Place: store.PlaceWaiting, Behind: 4, Reason: "not now", Ahead: store.Count{Rows: 2}},
			6: {Place: store.PlacePending, Ahead: store.Count{Rows: 3}},
		} {
			for _, key := range []store.FindKey{{Seq: seq}, {ID: ids[seq]}} {
				found := f.find(t, key)
				if len(found) != 1 {
					t.Fatalf("%+v: found %+v, want one", key, found)
				}
				got := found[0]
				if got.Seq != seq || got.ID != ids[seq] || got.Place != want.Place || got.Behind != want.Behind || got.Reason != want.Reason || got.Attempts != want.Attempts ||
					got.Letter != want.Letter || got.Stream != want.Stream || got.After != want.After || got.Ahead.Rows != want.Ahead.Rows {
					t.Errorf("hold %v: %+v: got %+v, want %+v", hold, key, got, want)
				}
			}
		}
		found := f.find(t, store.FindKey{AggregateType: "User", AggregateID: "dead"})
		if len(found) != 2 || found[0].Seq != 3 || found[1].Place != store.PlaceDead {
			t.Errorf("the aggregate's events: %+v", found)
		}
		if found := f.find(t, store.FindKey{ID: uuid.New()}); len(found) != 0 {
			t.Errorf("an unknown id: %+v", found)
		}
	}
}
