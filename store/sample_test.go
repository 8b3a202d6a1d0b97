package store_test

import (
	"testing"

	"github.com/go-outbox/go-outbox/store"
)

// There is one of each kind of pending event, and none of what was given up or is too long to be shown.
func TestSamples(t *testing.T) {
	f := newFixture(t, store.Options{})
	if got, err := f.Samples(t.Context(), 10); err != nil || len(got) != 0 {
		t.Fatalf("of an empty outbox: %v, %v", got, err)
	}
	f.exec(t, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, given_up_at) values
		('a', 'A', '1', 'E', '', null), ('a', 'A', '2', 'E', '', null), ('b', 'A', '1', 'E', '', null), ('a', 'A', '1', 'F', '', null),
		('gone', 'A', '1', 'E', '', now()), (repeat('x', 2000), 'A', '1', 'E', '', null)`)
	got, err := f.Samples(t.Context(), 10)
	want := []store.Sample{{Topic: "a", AggregateType: "A", AggregateID: "1", EventType: "E"}, {Topic: "a", AggregateType: "A", AggregateID: "1", EventType: "F"}, {Topic: "b", AggregateType: "A", AggregateID: "1", EventType: "E"}}
	if err != nil || len(got) != len(want) {
		t.Fatalf("got %v, %v; want %v", got, err, want)
	}
	for i := range want {
		if want[i].AggregateID = got[i].AggregateID; got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
	if got, err := f.Samples(t.Context(), 2); err != nil || len(got) != 2 {
		t.Errorf("two at most: got %v, %v", got, err)
	}
}
