package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/store"
)

// cemetery is an outbox with seqs 1 to 6, all but 3 of which are dead; 5 and 6 share an id.
func cemetery(t *testing.T) (f *fixture, twin uuid.UUID) {
	t.Helper()
	f = newFixture(t, store.Options{})
	twin = uuid.New()
	events := []store.Event{
		{Topic: "users", AggregateType: "User", AggregateID: "1", EventType: "e1", Data: []byte("one"), Headers: map[string]string{"k": "v"}},
		{Topic: "users", AggregateType: "User", AggregateID: "2", EventType: "e2", Data: []byte("two")},
		{Topic: "users", AggregateType: "User", AggregateID: "1", EventType: "e3", Data: []byte("three")},
		{Topic: "users", AggregateType: "Group", AggregateID: "1", EventType: "e4", Data: []byte("four")},
		{ID: twin, Topic: "orders", AggregateType: "Order", AggregateID: "1", EventType: "e5", Data: []byte("five")},
		{ID: twin, Topic: "orders", AggregateType: "Order", AggregateID: "1", EventType: "e6", Data: []byte("six")},
	}
	f.insert(t, events...)
	var dead []store.Failure
	for _, seq := range []int64{5, 1, 6, 2, 4} {
		dead = append(dead, store.Failure{Seq: seq, Attempts: 3, Reason: "refused " + events[seq-1].EventType})
	}
	f.exchange(t, store.Request{Dead: dead})
	return f, twin
}

func letterSeqs(letters []store.DeadLetter) []int64 {
	seqs := make([]int64, len(letters))
	for i := range letters {
		seqs[i] = letters[i].Seq
	}
	return seqs
}

// dead returns the seqs of all dead letters.
func (f *fixture) dead(t *testing.T) []int64 {
	t.Helper()
	return query[[]int64](t, f, `select coalesce(array_agg(seq order by seq), '{}') from outbox_dead`)
}

func TestDeadLettersAreListed(t *testing.T) {
	f, _ := cemetery(t)
	tests := []struct {
		name   string
		filter store.DeadFilter
		want   []int64
	}{
		{"all", store.DeadFilter{}, []int64{1, 2, 4, 5, 6}},
		{"topic", store.DeadFilter{Topic: "users"}, []int64{1, 2, 4}},
		{"aggregate type", store.DeadFilter{AggregateType: "User"}, []int64{1, 2}},
		{"aggregate ID", store.DeadFilter{AggregateID: "1"}, []int64{1, 4, 5, 6}},
		{"everything", store.DeadFilter{Topic: "users", AggregateType: "User", AggregateID: "1"}, []int64{1}},
		{"nothing", store.DeadFilter{Topic: "users", AggregateType: "Order"}, nil},
		{"no pattern", store.DeadFilter{Topic: "user%"}, nil},
		{"no SQL", store.DeadFilter{Topic: "' or true --"}, nil},
		{"first page", store.DeadFilter{Limit: 2}, []int64{1, 2}},
		{"second page", store.DeadFilter{Limit: 2, After: 2}, []int64{4, 5}},
		{"last page", store.DeadFilter{Limit: 2, After: 5}, []int64{6}},
		{"past the end", store.DeadFilter{Limit: 2, After: 6}, nil},
		{"page of a filter", store.DeadFilter{Topic: "users", Limit: 2, After: 1}, []int64{2, 4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			letters, err := f.DeadLetters(t.Context(), tt.filter, true)
			if err != nil {
				t.Fatal(err)
			}
			if got := letterSeqs(letters); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if len(letters) > 0 && len(letters[0].Data) == 0 {
				t.Error("the payload is missing")
			}
		})
	}
	letters, err := f.DeadLetters(t.Context(), store.DeadFilter{}, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, letter := range letters {
		if len(letter.Data) != 0 {
			t.Errorf("seq %d comes with %d bytes of payload, want none", letter.Seq, len(letter.Data))
		}
	}
}

func TestDeadLetterIsShown(t *testing.T) {
	f, twin := cemetery(t)
	bySeq, err := f.DeadLetter(t.Context(), store.DeadKey{Seq: 1})
	if err != nil {
		t.Fatal(err)
	}
	byID, err := f.DeadLetter(t.Context(), store.DeadKey{ID: bySeq.ID})
	if err != nil {
		t.Fatal(err)
	}
	for by, got := range map[string]store.DeadLetter{"seq": bySeq, "id": byID} {
		if got.Seq != 1 || got.Topic != "users" || got.AggregateType != "User" || got.AggregateID != "1" || got.EventType != "e1" ||
			string(got.Data) != "one" || string(got.Headers) != `{"k": "v"}` || got.Attempts != 3 || got.LastError != "refused e1" ||
			time.Since(got.CreatedAt).Abs() > time.Minute || got.DiedAt.Before(got.CreatedAt) {
			t.Errorf("by %s: got %+v", by, got)
		}
	}
	if _, err := f.DeadLetter(t.Context(), store.DeadKey{ID: twin}); err != nil {
		t.Errorf("an id of two letters: %v", err)
	}
	for _, key := range []store.DeadKey{{}, {Seq: 3}, {Seq: 99}, {ID: uuid.New()}} {
		_, err := f.DeadLetter(t.Context(), key)
		if !errors.Is(err, store.ErrNoDeadLetter) || !strings.Contains(err.Error(), key.String()) || store.Fatal(err) {
			t.Errorf("%s: got error %v, want ErrNoDeadLetter that names the key", key, err)
		}
	}
}

func TestRequeue(t *testing.T) {
	f, twin := cemetery(t)
	const kept = `- 'attempts' - 'last_error' - 'died_at' - 'retry_at' - 'given_up_at' - 'letter'`
	before := query[string](t, f, `select jsonb_agg(to_jsonb(d) `+kept+` order by seq)::text from outbox_dead d where seq in (2, 5, 6)`)

	n, err := f.Requeue(t.Context(), store.DeadKey{Seq: 2}, store.DeadKey{ID: twin})
	if n != 3 || err != nil {
		t.Fatalf("got %d letters and error %v, want 3: one by seq, two by their id", n, err)
	}
	if after := query[string](t, f, `select jsonb_agg(to_jsonb(o) `+kept+` order by seq)::text from outbox o where seq <> 3`); after != before {
		t.Errorf("came back as  %s\nwant %s", after, before)
	}
	rows := f.fetch(t)
	if got, want := seqs(rows), []int64{2, 3, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, row := range rows {
		if row.Attempts != 0 {
			t.Errorf("seq %d has %d attempts, want a fresh start", row.Seq, row.Attempts)
		}
	}
	if got, want := f.dead(t), []int64{1, 4}; !slices.Equal(got, want) {
		t.Errorf("dead are %v, want %v", got, want)
	}
	// New events still get seqs of their own.
	f.insert(t, event("7"))
	if got, want := seqs(f.fetch(t)), []int64{2, 3, 5, 6, 7}; !slices.Equal(got, want) {
		t.Errorf("after another insert: got %v, want %v", got, want)
	}
}

func TestDiscard(t *testing.T) {
	f, twin := cemetery(t)
	n, err := f.Discard(t.Context(), store.DeadKey{Seq: 2}, store.DeadKey{ID: twin})
	if n != 3 || err != nil {
		t.Fatalf("got %d letters and error %v, want 3", n, err)
	}
	if got, want := f.dead(t), []int64{1, 4}; !slices.Equal(got, want) {
		t.Errorf("dead are %v, want %v", got, want)
	}
	if got, want := f.inserted(t), []int64{3}; !slices.Equal(got, want) {
		t.Errorf("in the outbox are %v, want %v", got, want)
	}
}

func TestDecisionsAreAllOrNothing(t *testing.T) {
	f, _ := cemetery(t)
	keys := []store.DeadKey{{Seq: 1}, {Seq: 2}, {Seq: 3}}
	for name, decide := range map[string]func() (int, error){
		"requeue": func() (int, error) { return f.Requeue(t.Context(), keys...) },
		"discard": func() (int, error) { return f.Discard(t.Context(), keys...) },
	} {
		n, err := decide()
		if n != 0 || !errors.Is(err, store.ErrNoDeadLetter) || !strings.Contains(err.Error(), "seq 3") {
			t.Errorf("%s: got %d letters and error %v, want 0 and that there is no seq 3", name, n, err)
		}
		if got, want := f.dead(t), []int64{1, 2, 4, 5, 6}; !slices.Equal(got, want) {
			t.Errorf("%s: dead are %v, want %v", name, got, want)
		}
		if got, want := f.inserted(t), []int64{3}; !slices.Equal(got, want) {
			t.Errorf("%s: in the outbox are %v, want %v", name, got, want)
		}
	}
	for name, decide := range map[string]func() (int, error){
		"requeue": func() (int, error) { return f.Requeue(t.Context()) },
		"discard": func() (int, error) { return f.Discard(t.Context()) },
	} {
		if n, err := decide(); n != 0 || err != nil {
			t.Errorf("%s of nothing: got %d letters and error %v", name, n, err)
		}
	}
}

// A letter may have been requeued and have died again.
func TestDiesTwice(t *testing.T) {
	f, _ := cemetery(t)
	if _, err := f.Requeue(t.Context(), store.DeadKey{Seq: 1}); err != nil {
		t.Fatal(err)
	}
	f.exchange(t, store.Request{Dead: []store.Failure{{Seq: 1, Attempts: 1, Reason: "refused again"}}})
	letter, err := f.DeadLetter(t.Context(), store.DeadKey{Seq: 1})
	if err != nil {
		t.Fatal(err)
	}
	if letter.Attempts != 1 || letter.LastError != "refused again" {
		t.Errorf("got %d attempts, %q, want those of its second life", letter.Attempts, letter.LastError)
	}
}

func TestDeadLettersWithoutTheTable(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.exec(t, `drop table outbox_dead`)
	_, list := f.DeadLetters(t.Context(), store.DeadFilter{}, true)
	_, show := f.DeadLetter(t.Context(), store.DeadKey{Seq: 1})
	_, requeue := f.Requeue(t.Context(), store.DeadKey{Seq: 1})
	_, discard := f.Discard(t.Context(), store.DeadKey{Seq: 1})
	for operation, err := range map[string]error{"list": list, "show": show, "requeue": requeue, "discard": discard} {
		if !errors.Is(err, store.ErrNoTable) || !strings.Contains(err.Error(), operation) {
			t.Errorf("%s: got %v, want ErrNoTable", operation, err)
		}
	}
}
