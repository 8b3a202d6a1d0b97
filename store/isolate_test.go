package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// refuse makes Postgres refuse to do something to some rows of a table.
func (f *fixture) refuse(tb testing.TB, what, table, when string) {
	tb.Helper()
	f.exec(tb, fmt.Sprintf(`
create function refuse_%[1]s() returns trigger language plpgsql as $$ begin raise exception 'not %[1]s'; end $$;
create trigger refuse before %[1]s on %[2]s for each row when (%[3]s) execute function refuse_%[1]s()`, what, table, when))
}

func keptSeqs(kept []store.Kept) []int64 {
	var seqs []int64
	for _, k := range kept {
		seqs = append(seqs, k.Seq)
	}
	slices.Sort(seqs)
	return seqs
}

// What the database refuses for the sake of one row, is done for all others.
func TestOneRowIsKept(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	if _, err := f.Begin(t.Context(), "S", "me", 0); err != nil {
		t.Fatal(err)
	}
	var events []store.Event
	for i := range 40 {
		events = append(events, event(fmt.Sprint(i+1)))
	}
	f.insert(t, events...)
	f.refuse(t, "delete", "outbox", `old.seq = 7`)
	f.refuse(t, "insert", "outbox_dead", `new.seq = 21`)
	failure := func(seq int64) store.Failure {
		return store.Failure{Ref: store.Ref{Seq: seq}, Attempts: 3, Reason: "refused"}
	}
	response := f.roundTrip(t, store.Request{
		Settled: settledSeqs([]int64{5, 6, 7, 8}), Dead: []store.Failure{failure(20), failure(21)},
		Checkpoint: 99,
		Fetch:      &store.Fetch{Rows: 100, Bytes: 1 << 20, Highest: 40},
	})
	if got, want := keptSeqs(response.Kept), []int64{7, 21}; !slices.Equal(got, want) {
		t.Fatalf("kept are %v (%+v), want %v", got, response.Kept, want)
	}
	for _, k := range response.Kept {
		if k.Settle != (k.Seq == 7) || k.Marked != (k.Seq == 21) || k.Err == nil {
			t.Errorf("kept is %+v, want 7 as settled and 21 as marked, with what Postgres said", k)
		}
	}
	want := slices.DeleteFunc(between(1, 40), func(seq int64) bool { return slices.Contains([]int64{5, 6, 7, 8, 20, 21}, seq) })
	if got := seqs(response.Rows); !slices.Equal(got, want) {
		t.Errorf("fetched are %v, want %v: what is kept is still held, or marked", got, want)
	}
	if got := query[int](t, f, `select count(*) from outbox where given_up_at is not null and last_error like '%refused%not insert%'`); got != 1 {
		t.Errorf("%d rows are marked, with both reasons, want 1", got)
	}
	if got := query[int](t, f, `select count(*) from outbox_published`); got != 3 {
		t.Errorf("%d rows are archived, want the three that were settled", got)
	}
	if got := query[int64](t, f, `select checkpoint from outbox_relay`); got != 0 {
		t.Errorf("the checkpoint is %d, want none as long as a row is kept", got)
	}
}

func between(from, to int64) []int64 {
	var seqs []int64
	for seq := from; seq <= to; seq++ {
		seqs = append(seqs, seq)
	}
	return seqs
}

// A database that keeps what was deleted says nothing. The count does.
func TestDeletedRowsThatAreStillThere(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.insert(t, event("1"), event("2"), event("3"))
	if response := f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{1, 99})}); response.Remaining != nil {
		t.Errorf("a row that somebody else removed: %v", response.Remaining)
	}
	f.exec(t, `
create function keep() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger keep before delete on outbox for each row execute function keep()`)
	if response := f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{2})}); !errors.Is(response.Remaining, store.ErrKept) {
		t.Errorf("Remaining is %v, want %v", response.Remaining, store.ErrKept)
	}
	if _, _, err := f.leader(t).Settle(t.Context(), []store.Ref{{Seq: 3, ID: f.id(t, 3)}}, 1); !errors.Is(err, store.ErrKept) {
		t.Errorf("Settle: %v, want %v", err, store.ErrKept)
	}
}

// An archive that keeps nothing could give nothing back.
func TestArchiveThatKeepsNothing(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.begin(t)
	f.exec(t, `
create function lose() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger lose before insert on outbox_published_0 for each row execute function lose()`)
	f.insert(t, event("1"))
	if response := f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{1})}); !errors.Is(response.Remaining, store.ErrUnarchived) {
		t.Errorf("Remaining is %v, want %v", response.Remaining, store.ErrUnarchived)
	}
}

// Settle removes all that it can, too.
func TestSettleKeepsOne(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"), event("2"), event("3"))
	f.exec(t, `create table note (seq bigint references outbox); insert into note values (2)`)
	var refs []store.Ref
	for seq := range int64(3) {
		refs = append(refs, store.Ref{Seq: seq + 1, ID: f.id(t, seq+1)})
	}
	settled, kept, err := f.leader(t).Settle(t.Context(), refs, 1)
	if err != nil || settled != 2 || !slices.Equal(kept, refs[1:2]) {
		t.Errorf("got %d settled, %v kept, %v; want 2, and row 2", settled, kept, err)
	}
}

// What can never be published is not read, whatever its size; the rest of the page is.
func TestUnfitRowsAreNotRead(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"))
	f.exec(t, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers) values
	('t', 'A', '2', 'E', convert_to(repeat('x', 5000), 'UTF8'), null),
	('t', 'A', repeat('x', 70000), 'E', '', null),
	(repeat('t', 70000), 'A', '4', 'E', '', null),
	('t', 'A', '5', 'E', '', jsonb_build_object('a', repeat('h', 200000))),
	('t', 'A', '6', 'E', '', jsonb_build_object('a', repeat(md5('h'), 5000)))`)
	f.insert(t, event("7"))
	var rows []store.Row
	for highest := int64(0); ; highest = rows[len(rows)-1].Seq {
		response := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 17, MaxData: 1000, Held: seqs(rows), Highest: highest}})
		rows = append(rows, response.Rows...)
		if !response.Full {
			break
		}
	}
	if len(rows) != 7 {
		t.Fatalf("got %d rows, want 7", len(rows))
	}
	for i, want := range []struct {
		unfit    []string
		nameless bool
	}{
		{},
		{unfit: []string{"5000", "1000"}},
		{unfit: []string{"7000"}, nameless: true},
		{unfit: []string{"7000"}},
		{unfit: []string{"65536"}},
		{unfit: []string{"65536"}},
		{},
	} {
		r := rows[i]
		if (r.Unfit == "") != (want.unfit == nil) || r.Nameless != want.nameless || r.Size() > 1000 {
			t.Errorf("row %d: unfit %q, nameless %v, %d bytes; want %q, %v, next to nothing", r.Seq, r.Unfit, r.Nameless, r.Size(), want.unfit, want.nameless)
		}
		for _, part := range want.unfit {
			if !strings.Contains(r.Unfit, part) {
				t.Errorf("row %d is unfit since %q, want it to say %s", r.Seq, r.Unfit, part)
			}
		}
	}
}

// Nobody waits for a large payload to be copied among the dead letters.
func TestLargeRowsAreGivenUpInPlace(t *testing.T) {
	f := newFixture(t, store.Options{HoldDead: true})
	large := event("1")
	large.Data = make([]byte, 1<<20)
	f.insert(t, large, event("1"), event("2"))
	response := f.roundTrip(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: 1}, Attempts: 1, Reason: "too large", Size: 1 << 20}}, Fetch: page(0)})
	if got, want := seqs(response.Rows), []int64{3}; !slices.Equal(got, want) {
		t.Errorf("fetched are %v, want %v: aggregate 1 is held", got, want)
	}
	if got := query[string](t, f, `select last_error from outbox where given_up_at is not null`); got != "too large" {
		t.Errorf("given up for %q", got)
	}
	if got := query[int](t, f, `select count(*) from outbox_dead`); got != 0 {
		t.Errorf("%d dead letters, want none", got)
	}
}

// Under a running relay somebody drops the constraints.
func TestNullsAreTold(t *testing.T) {
	f := newFixture(t, store.Options{})
	columns := []string{"id", "topic", "aggregate_type", "aggregate_id", "event_type", "data", "created_at", "attempts"}
	f.insert(t, event("1"))
	for _, column := range columns {
		f.exec(t, `alter table outbox alter column `+column+` drop not null`)
		f.insert(t, event(column))
		f.exec(t, `update outbox set `+column+` = null where seq = (select max(seq) from outbox)`)
	}
	f.insert(t, event("2"))
	rows := f.fetch(t)
	if len(rows) != len(columns)+2 {
		t.Fatalf("got %d rows, want %d", len(rows), len(columns)+2)
	}
	for i, row := range rows {
		if unfit := i > 0 && i <= len(columns); (row.Unfit != "") != unfit {
			t.Errorf("row %d is unfit: %q, want that: %v", row.Seq, row.Unfit, unfit)
		}
	}
}

// A sequence that was set back gives seqs again: what is settled is the row that was fetched, and no other.
func TestSequenceSetBack(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	if _, err := f.Begin(t.Context(), "S", "me", 0); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("1"), event("2"), event("3"))
	old := f.roundTrip(t, store.Request{Fetch: page(0)}).Rows
	f.exec(t, `truncate outbox restart identity`)
	f.insert(t, event("new"))
	response := f.roundTrip(t, store.Request{Settled: settledSeqs(seqs(old)), Fetch: page(3)})
	if got, want := ids(response.Rows), []string{"new"}; !slices.Equal(got, want) || !errors.Is(response.Remaining, store.ErrKept) {
		t.Errorf("got rows %v and %v, want %v and %v", got, response.Remaining, want, store.ErrKept)
	}
	if n := query[int](t, f, `select count(*) from outbox_published`); n != 0 {
		t.Errorf("%d events are in the archive that were not settled", n)
	}
}

// An owner's index divides by zero for one row. That is that row's fault, and no sequence was set back.
func TestOwnersDivision(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	if _, err := f.Begin(t.Context(), "S", "me", 0); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("1"), event("odd"), event("3"))
	f.exec(t, `create index on outbox_published_0 ((1 / (octet_length(aggregate_id) - 3)))`)
	rows := f.roundTrip(t, store.Request{Fetch: page(0)}).Rows
	response := f.roundTrip(t, store.Request{Settled: settledSeqs(seqs(rows))})
	if len(response.Kept) != 1 || response.Kept[0].Seq != 2 || !response.Kept[0].Settle || response.Remaining != nil {
		t.Errorf("kept are %+v, and remaining %v; want the second row, and nothing else", response.Kept, response.Remaining)
	}
	if n := query[int](t, f, `select count(*) from outbox`); n != 1 {
		t.Errorf("%d rows are in the outbox, want one", n)
	}
}

// What is put back is what there is room for; the rest stays in the archive, and is named.
func TestPutBackByID(t *testing.T) {
	var log strings.Builder
	f := newFixture(t, store.Options{Retain: time.Hour, Logger: textLogger(&log)})
	f.begin(t)
	f.insert(t, event("1"), event("2"), event("3"))
	f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{1, 2, 3})})
	f.exec(t, `alter sequence outbox_seq_seq restart with 2`)
	f.insert(t, event("another"))
	if back := f.putBack(t, f.archived(t, 0), store.Checkpoint{}); back != 2 {
		t.Errorf("%d were put back, want 2", back)
	}
	if got := query[[]string](t, f, `select array_agg(aggregate_id order by seq) from outbox`); !slices.Equal(got, []string{"1", "another", "3"}) {
		t.Errorf("in the outbox are %v", got)
	}
	if got := query[[]string](t, f, `select array_agg(aggregate_id) from outbox_published`); !slices.Equal(got, []string{"2"}) {
		t.Errorf("in the archive are %v, want 2, whose seq another event has", got)
	}
	if got := log.String(); strings.Count(got, "has its seq") != 1 || !strings.Contains(got, "seq=2") {
		t.Errorf("the log does not name the event that stays: %s", got)
	}
}

// A table that inherits from the outbox may have rows with the seqs of others. They are nobody's events: not fetched, not
// removed, not counted, and the log names their table.
func TestRowsOfAnHeir(t *testing.T) {
	var log strings.Builder
	f := newFixture(t, store.Options{Retain: time.Hour, HoldDead: true, Logger: textLogger(&log)})
	f.exec(t, `
create table heir () inherits (outbox);
create table heir_of_the_dead () inherits (outbox_dead)`)
	f.begin(t)
	if got := log.String(); !strings.Contains(got, "heir") {
		t.Errorf("the log does not name the table: %s", got)
	}
	f.insert(t, event("1"), event("2"), event("3"))
	f.exec(t, `insert into heir select * from outbox`)
	if got := ids(f.fetch(t)); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("fetched are %v, want the outbox's own", got)
	}
	response := f.roundTrip(t, store.Request{
		Settled: settledSeqs([]int64{1}), Dead: []store.Failure{{Ref: store.Ref{Seq: 2}, Attempts: 1, Reason: "refused"}},
		Failed: []store.Failure{{Ref: store.Ref{Seq: 3}, Attempts: 1, Reason: "refused", Wait: time.Hour}},
	})
	if response.Remaining != nil || len(response.Kept) > 0 {
		t.Errorf("something remains: %v, %v", response.Remaining, response.Kept)
	}
	f.exec(t, `insert into heir_of_the_dead select * from outbox_dead`)
	if letters, err := f.DeadLetters(t.Context(), store.DeadFilter{}, true); err != nil || len(letters) != 1 {
		t.Errorf("%d dead letters, error %v; want one", len(letters), err)
	}
	if n, err := f.Requeue(t.Context(), store.DeadKey{Seq: 2}); err != nil || n != 1 {
		t.Errorf("%d requeued, error %v; want one", n, err)
	}
	if got := query[int](t, f, `select count(*) from heir where attempts = 0 and given_up_at is null`); got != 3 {
		t.Errorf("%d rows of the heir are as they were, want 3", got)
	}
	if got := query[int](t, f, `select count(*) from outbox_published`); got != 1 {
		t.Errorf("%d rows are archived, want 1", got)
	}
}
