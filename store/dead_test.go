package store_test

import (
	"context"
	"errors"
	"math"
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
		dead = append(dead, store.Failure{Ref: store.Ref{Seq: seq}, Attempts: 3, Reason: "refused " + events[seq-1].EventType})
	}
	f.roundTrip(t, store.Request{Dead: dead})
	return f, twin
}

// after is the place after all dead letters of a seq.
func after(seq int64) *store.DeadPlace { return &store.DeadPlace{Seq: seq, Letter: math.MaxInt64} }

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
		{"second page", store.DeadFilter{Limit: 2, After: after(2)}, []int64{4, 5}},
		{"last page", store.DeadFilter{Limit: 2, After: after(5)}, []int64{6}},
		{"past the end", store.DeadFilter{Limit: 2, After: after(6)}, nil},
		{"page of a filter", store.DeadFilter{Topic: "users", Limit: 2, After: after(1)}, []int64{2, 4}},
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
			time.Since(got.CreatedAt.Time).Abs() > time.Minute || got.DiedAt.Time.Before(got.CreatedAt.Time) ||
			got.DataSize != 3 || got.Letter == 0 || got.Kept || len(got.Cut) != 0 {
			t.Errorf("by %s: got %+v", by, got)
		}
	}
	if _, err := f.DeadLetter(t.Context(), store.DeadKey{ID: twin}); !errors.Is(err, store.ErrSeveralDeadLetters) {
		t.Errorf("an id of two letters: got %v, want %v", err, store.ErrSeveralDeadLetters)
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
	f.roundTrip(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: 1}, Attempts: 1, Reason: "refused again"}}})
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

// Two dead letters may have one seq: where the sequence was restarted, or the same event died twice. Each is kept, and can be named.
func TestTwoDeadLettersOfOneSeq(t *testing.T) {
	f, _ := cemetery(t)
	f.exec(t, `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (1, 'users', 'User', '1', 'again', '')`)
	f.roundTrip(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: 1}, Attempts: 1, Reason: "refused as well"}}})
	letters, err := f.DeadLetters(t.Context(), store.DeadFilter{Limit: 2}, false)
	if err != nil || len(letters) != 2 || letters[0].Seq != 1 || letters[1].Seq != 1 || letters[0].Letter >= letters[1].Letter {
		t.Fatalf("got %+v, %v, want two letters of seq 1", letters, err)
	}
	rest, err := f.DeadLetters(t.Context(), store.DeadFilter{Limit: 2, After: &store.DeadPlace{Seq: 1, Letter: letters[0].Letter}}, false)
	if err != nil || len(rest) != 2 || rest[0].Letter != letters[1].Letter || rest[1].Seq != 2 {
		t.Errorf("after the first of them: got %+v, %v, want the second one and seq 2", rest, err)
	}
	for name, do := range map[string]func(key store.DeadKey) error{
		"show":    func(key store.DeadKey) error { _, err := f.DeadLetter(t.Context(), key); return err },
		"requeue": func(key store.DeadKey) error { _, err := f.Requeue(t.Context(), key); return err },
		"discard": func(key store.DeadKey) error { _, err := f.Discard(t.Context(), key); return err },
	} {
		err := do(store.DeadKey{Seq: 1})
		if !errors.Is(err, store.ErrSeveralDeadLetters) || !strings.Contains(err.Error(), letters[0].Key().String()) || !strings.Contains(err.Error(), letters[1].Key().String()) {
			t.Errorf("%s: got %v, want an error that names both", name, err)
		}
	}
	if got, err := f.DeadLetter(t.Context(), letters[1].Key()); err != nil || got.EventType != "again" {
		t.Errorf("got %+v, %v, want the second letter", got, err)
	}
	// Both may come back: the second finds its seq taken.
	if n, err := f.Requeue(t.Context(), letters[0].Key(), letters[1].Key()); n != 2 || err != nil {
		t.Fatalf("requeued %d, %v, want 2", n, err)
	}
	rows := f.fetch(t)
	if got, want := seqs(rows), []int64{1, 3, 7}; !slices.Equal(got, want) || rows[0].EventType != "e1" || rows[2].EventType != "again" {
		t.Errorf("got %v, want %v, the last of which is the second letter", rows, want)
	}
}

// What was given up and could not be moved is as much of a dead letter as the others.
func TestDeadLettersThatStayedInTheOutbox(t *testing.T) {
	f, _ := cemetery(t)
	f.exec(t, `update outbox set given_up_at = clock_timestamp(), attempts = 9, last_error = 'too long for the index' where seq = 3`)
	letters, err := f.DeadLetters(t.Context(), store.DeadFilter{}, false)
	if got, want := letterSeqs(letters), []int64{1, 2, 3, 4, 5, 6}; err != nil || !slices.Equal(got, want) {
		t.Fatalf("listed %v, %v, want %v", got, err, want)
	}
	if got := letters[2]; !got.Kept || got.Letter != 0 || got.Attempts != 9 || got.LastError != "too long for the index" || time.Since(got.DiedAt.Time) > time.Minute {
		t.Errorf("got %+v", got)
	}
	got, err := f.DeadLetter(t.Context(), letters[2].Key())
	if err != nil || !got.Kept || string(got.Data) != "three" {
		t.Errorf("shown: %+v, %v", got, err)
	}
	if n, err := f.Requeue(t.Context(), letters[2].Key()); n != 1 || err != nil {
		t.Fatalf("requeued %d, %v", n, err)
	}
	if rows := f.fetch(t); len(rows) != 1 || rows[0].Seq != 3 || rows[0].Attempts != 0 {
		t.Errorf("fetched %+v, want seq 3 with a fresh start", rows)
	}
	f.exec(t, `update outbox set given_up_at = clock_timestamp() where seq = 3`)
	if n, err := f.Discard(t.Context(), store.DeadKey{Seq: 3}); n != 1 || err != nil {
		t.Errorf("discarded %d, %v", n, err)
	}
	if got := f.inserted(t); len(got) != 0 {
		t.Errorf("the outbox has %v, want nothing", got)
	}
	// One that has the seq of a dead letter can be told from it.
	f.exec(t, `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data, given_up_at) overriding system value values (1, 't', 'a', '1', 'twin', '', now())`)
	if _, err := f.DeadLetter(t.Context(), store.DeadKey{Seq: 1}); !errors.Is(err, store.ErrSeveralDeadLetters) || !strings.Contains(err.Error(), "outbox:1") {
		t.Errorf("got %v, want %v that names outbox:1", err, store.ErrSeveralDeadLetters)
	}
	if got, err := f.DeadLetter(t.Context(), store.DeadKey{Seq: 1, Kept: true}); err != nil || got.EventType != "twin" {
		t.Errorf("got %+v, %v, want the one in the outbox", got, err)
	}
	if n, err := f.Requeue(t.Context(), store.DeadKey{Seq: 1, Kept: true}); n != 1 || err != nil {
		t.Errorf("requeued %d, %v", n, err)
	}
	f.exec(t, `delete from outbox`)
	// A row that waits is no dead letter, whatever the key.
	f.insert(t, event("8"))
	if _, err := f.Discard(t.Context(), store.DeadKey{Seq: 7}); !errors.Is(err, store.ErrNoDeadLetter) {
		t.Errorf("got %v, want %v", err, store.ErrNoDeadLetter)
	}
}

// The terms to come must look for what came back, and the relay is told where it is.
func TestRequeueLowersTheScan(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, f *fixture){
		"requeue": func(t *testing.T, f *fixture) {
			t.Helper()
			if _, err := f.Requeue(t.Context(), store.DeadKey{Seq: 4}, store.DeadKey{Seq: 2}); err != nil {
				t.Fatal(err)
			}
		},
		"replay": func(t *testing.T, f *fixture) {
			t.Helper()
			f.exec(t, `insert into outbox_published (part, stream, after, seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at)
                       values (0, 's', 0, 2, gen_random_uuid(), 't', 'a', '1', 'e', '', now())`)
			f.replay(t, store.ReplayFilter{}, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := cemetery(t)
			f.begin(t)
			f.exec(t, `update outbox_relay set scan_from = 1000`)
			listener := connect(t, f.dsn)
			if _, err := listener.Exec(t.Context(), `listen `+query[string](t, f, `select substring(prosrc from 'outbox_[0-9a-f]{16}') from pg_proc where proname = 'outbox_wake'`)); err != nil {
				t.Fatal(err)
			}
			do(t, f)
			if got := query[int64](t, f, `select scan_from from outbox_relay`); got > 2 {
				t.Errorf("the next term begins its scan at %d, want at most 2", got)
			}
			for {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				n, err := listener.WaitForNotification(ctx)
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				if n.Payload == "rescan:2" {
					break
				}
			}
		})
	}
}

// What the broker would not take is not put back, unless somebody insists.
func TestRequeueOfTooLargeEvents(t *testing.T) {
	f, _ := cemetery(t)
	f.begin(t)
	f.exec(t, `update outbox_relay set max_payload = 4`) // "five" fits, "three" would not.
	f.exec(t, `update outbox_dead set data = 'a payload of 23 bytes..' where seq = 2`)
	_, err := f.Requeue(t.Context(), store.DeadKey{Seq: 1}, store.DeadKey{Seq: 2})
	tooLarge, ok := errors.AsType[*store.TooLargeError](err)
	if !ok || len(tooLarge.Keys) != 1 || tooLarge.Size != 23 || tooLarge.Max != 4 || !strings.Contains(err.Error(), "23 bytes") || !strings.Contains(err.Error(), "at most 4") {
		t.Fatalf("got %v, want the sizes", err)
	}
	if got, want := f.dead(t), []int64{1, 2, 4, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("dead are %v, want %v", got, want)
	}
	if n, err := f.RequeueWith(t.Context(), store.RequeueOptions{AnySize: true}, store.DeadKey{Seq: 2}); n != 1 || err != nil {
		t.Errorf("insisted: got %d, %v", n, err)
	}
}

// Whatever the table can hold is listed and shown, and nothing of it makes the rest invisible.
func TestDeadLettersOfAnyContent(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.exec(t, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at, attempts, last_error, died_at) values
  (-9223372036854775808, '00000000-0000-0000-0000-000000000000', '', '', '', '', '', 'null', 'infinity', -2147483648, '', '-infinity'),
  (0, gen_random_uuid(), 't', 'a', 'b', 'c', '', '[1]', '4713-01-01 BC', 2147483647, '', '294276-12-31'),
  (5, gen_random_uuid(), repeat('é', 5000), repeat('x', 200000000), 'b', 'c', decode(repeat('00', 30000000), 'hex'), jsonb_build_object('k', repeat('y', 20000000)), now(), 1, repeat('z', 100000), now())`)
	letters, err := f.DeadLetters(t.Context(), store.DeadFilter{}, false)
	if err != nil || len(letters) != 3 {
		t.Fatalf("got %d letters, %v, want 3", len(letters), err)
	}
	first, second, third := &letters[0], &letters[1], &letters[2]
	if first.CreatedAt.String() != "infinity" || first.DiedAt.String() != "-infinity" || first.Attempts != math.MinInt32 || string(first.Headers) != "null" {
		t.Errorf("got %+v", first)
	}
	if second.CreatedAt.String() != "4713-01-01T00:00:00Z BC" || second.DiedAt.String() != "294276-12-31T00:00:00Z" || string(second.Headers) != "[1]" {
		t.Errorf("got %+v", second)
	}
	if want := []string{"topic", "aggregate_type", "last_error", "headers"}; !slices.Equal(third.Cut, want) || third.Topic != strings.Repeat("é", 2000) || len(third.AggregateType) != 2000 ||
		third.Headers != nil || third.DataSize != 30_000_000 {
		t.Errorf("cut are %v, want %v; the topic has %d bytes, the type %d, the headers %d, the payload %d", third.Cut, want, len(third.Topic), len(third.AggregateType), len(third.Headers), third.DataSize)
	}
	shown, err := f.DeadLetter(t.Context(), third.Key())
	if err != nil || !slices.Equal(shown.Cut, []string{"aggregate_type", "headers", "data"}) || len(shown.Data) != 16<<20 || len(shown.LastError) != 100000 {
		t.Errorf("shown: cut are %v, %d bytes of payload, %d of the error, %v", shown.Cut, len(shown.Data), len(shown.LastError), err)
	}
}

// A database that does not know its encoding holds any bytes.
func TestDeadLettersOfNoEncoding(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.exec(t, `create database `+"ascii_"+query[string](t, f, `select current_database()`)+` encoding 'SQL_ASCII' template template0 locale 'C'`)
	name := "ascii_" + query[string](t, f, `select current_database()`)
	t.Cleanup(func() {
		if _, err := f.conn.Exec(context.WithoutCancel(t.Context()), `drop database `+name+` with (force)`); err != nil {
			t.Error(err)
		}
	})
	g := newFixtureAt(t, strings.Replace(f.dsn, "/"+strings.TrimPrefix(name, "ascii_"), "/"+name, 1), store.Options{})
	if got := query[string](t, g, `select getdatabaseencoding()`); got != "SQL_ASCII" {
		t.Fatalf("the database is in %s", got)
	}
	g.exec(t, `insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error) values (1, gen_random_uuid(), E'a\xffb', 'a', 'b', 'c', '', now(), 1, '')`)
	letters, err := g.DeadLetters(t.Context(), store.DeadFilter{}, false)
	if err != nil || len(letters) != 1 || letters[0].Topic != "a�b" {
		t.Errorf("got %+v, %v", letters, err)
	}
}

// The columns of the tables have different collations, one of which takes capitals for small letters. Nothing is refused,
// and aggregates are told apart byte by byte.
func TestCollations(t *testing.T) {
	for name, sql := range map[string]string{
		"of the outbox":       `alter table outbox alter aggregate_id type text collate "C", alter aggregate_type type text collate "POSIX", alter topic type text collate "C"`,
		"of the dead letters": `alter table outbox_dead alter aggregate_id type text collate "C", alter aggregate_type type text collate "POSIX", alter topic type text collate "C"`,
		"of both": `
create collation anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
alter table outbox alter aggregate_id type text collate anycase, alter aggregate_type type text collate "C", alter topic type text collate anycase;
alter table outbox_dead alter aggregate_id type text collate "C", alter aggregate_type type text collate anycase`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, store.Options{HoldDead: true, Retain: time.Hour})
			if _, err := f.conn.Exec(t.Context(), sql); err != nil {
				if strings.Contains(err.Error(), "ICU") {
					t.Skip("needs ICU")
				}
				t.Fatal(err)
			}
			f.begin(t)
			f.insert(t, event("x"), event("x"), event("X"), event("y"))
			large := event("Y")
			large.Data = make([]byte, 100<<10)
			f.insert(t, large, event("Y"))
			response := f.roundTrip(t, store.Request{
				Dead:  []store.Failure{{Ref: store.Ref{Seq: 1}, Attempts: 1, Reason: "refused"}, {Ref: store.Ref{Seq: 5}, Attempts: 1, Reason: "refused", Size: 100 << 10}},
				Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, BlockedTypes: []string{"User"}, BlockedIDs: []string{"Z"}},
			})
			if got := ids(response.Rows); !slices.Equal(got, []string{"X", "y"}) {
				t.Errorf("fetched are %v, want X and y: x and Y are held", got)
			}
			for _, id := range []string{"x", "Y"} {
				letters, err := f.DeadLetters(t.Context(), store.DeadFilter{AggregateID: id, Topic: "users"}, true)
				if err != nil || len(letters) != 1 {
					t.Fatalf("%d dead letters of %s, error %v; want one", len(letters), id, err)
				}
				if n, err := f.Discard(t.Context(), letters[0].Key()); err != nil || n != 1 {
					t.Fatalf("%d discarded, error %v; want one", n, err)
				}
			}
			if got := ids(f.fetch(t)); !slices.Equal(got, []string{"x", "X", "y", "Y"}) {
				t.Errorf("fetched are %v, want all that waits", got)
			}
			if _, _, err := f.Published(t.Context(), store.ReplayFilter{Topic: "users", AggregateID: "x"}, 10); err != nil {
				t.Error(err)
			}
		})
	}
}
