package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
)

// begin begins a term for stream s.
func (f *fixture) begin(tb testing.TB) *store.Term {
	tb.Helper()
	term, err := f.Begin(tb.Context(), "s", "me", 0)
	if err != nil {
		tb.Fatal(err)
	}
	return term
}

// archived returns what the archive has above a sequence, in seq order.
func (f *fixture) archived(tb testing.TB, above uint64) []store.Archived {
	tb.Helper()
	events, err := f.leader(tb).Archive(tb.Context(), above)
	if err != nil {
		tb.Fatal(err)
	}
	slices.SortFunc(events, func(a, b store.Archived) int { return int(a.Seq - b.Seq) })
	return events
}

func (f *fixture) putBack(tb testing.TB, lost []store.Archived, checkpoint store.Checkpoint) int {
	tb.Helper()
	n, err := f.leader(tb).PutBack(tb.Context(), lost, checkpoint)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

func refs(events []store.Archived) []int64 {
	out := make([]int64, len(events))
	for i, e := range events {
		out[i] = e.Seq
	}
	return out
}

// What was settled comes back from the archive as it was: the same place, the same id, all that it carries.
func TestPutBack(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.begin(t)
	e := event("2")
	e.ID, e.Headers, e.Data = uuid.New(), map[string]string{"a": "b"}, []byte{0, 255}
	f.insert(t, event("1"), e, event("3"), event("4"))
	before := f.fetch(t)
	f.roundTrip(t, store.Request{Settled: []store.Settled{{Seqs: []int64{1, 2}, After: 10}, {Seqs: []int64{3}, After: 20}}})

	if got, want := refs(f.archived(t, 0)), []int64{1, 2, 3}; !slices.Equal(got, want) {
		t.Fatalf("the archive has %v, want %v", got, want)
	}
	if got, want := refs(f.archived(t, 11)), []int64{3}; !slices.Equal(got, want) {
		t.Errorf("after 11 the archive has %v, want %v", got, want)
	}
	lost := f.archived(t, 0)[1:]
	checkpoint := store.Checkpoint{Created: time.Now().Truncate(time.Microsecond), Sequence: 7, Before: 5}
	if got := f.putBack(t, lost, checkpoint); got != 2 {
		t.Errorf("put back %d events, want 2", got)
	}
	if got, want := refs(f.archived(t, 0)), []int64{1}; !slices.Equal(got, want) {
		t.Errorf("then the archive has %v, want %v", got, want)
	}
	if got, want := fmt.Sprint(f.fetch(t)), fmt.Sprint(before[1:]); got != want {
		t.Errorf("then the outbox has\n%s, want\n%s", got, want)
	}
	if term := f.begin(t); !term.Checkpoint.Created.Equal(checkpoint.Created) || term.Checkpoint.Sequence != 7 || term.Checkpoint.Before != 5 || term.First {
		t.Errorf("the next term begins with %+v, want the checkpoint %+v", term, checkpoint)
	}
	// Again, as after an answer that was lost: it is in the outbox by now.
	if got := f.putBack(t, lost, store.Checkpoint{}); got != 0 {
		t.Errorf("put back %d events again, want none", got)
	}
}

// An event is found by its place and its id: after a restore another may have the same place.
func TestSettleFound(t *testing.T) {
	for _, retain := range []time.Duration{0, time.Hour} {
		t.Run(retain.String(), func(t *testing.T) {
			f := newFixture(t, store.Options{Retain: retain})
			f.begin(t)
			f.insert(t, event("1"), event("2"), event("3"))
			rows := f.fetch(t)
			settled, _, err := f.leader(t).Settle(t.Context(), []store.Ref{
				{Seq: 1, ID: rows[0].ID}, {Seq: 2, ID: uuid.New()}, {Seq: 99, ID: uuid.New()},
			}, 5)
			if err != nil || settled != 1 {
				t.Errorf("settled %d, %v, want 1", settled, err)
			}
			if got, want := f.inserted(t), []int64{2, 3}; !slices.Equal(got, want) {
				t.Errorf("left are %v, want %v", got, want)
			}
			want := []int64{1}
			if retain == 0 {
				want = []int64{}
			}
			if got := refs(f.archived(t, 5)); !slices.Equal(got, want) {
				t.Errorf("the archive has %v, want %v", got, want)
			}
		})
	}
}

// Many are found at once in a table that Postgres takes for empty, as it was when it was vacuumed last. To compare each
// pair to each row takes longer than the four seconds that the relay gives it.
func TestSettleFoundAmongMany(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.begin(t)
	const rows = 60_000
	insert := fmt.Sprintf(`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 'users', 'User', '1', 'UserChanged', '' from generate_series(1, %d)`, rows)
	for _, sql := range []string{`alter table outbox set (autovacuum_enabled = off)`, insert, `delete from outbox`, `vacuum analyze outbox`, insert} {
		f.exec(t, sql)
	}
	var found []store.Ref
	for _, row := range f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: rows, Bytes: 1 << 30}}).Rows {
		if row.Seq%2 == 0 {
			found = append(found, store.Ref{Seq: row.Seq, ID: row.ID})
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for some := range slices.Chunk(found, 2000) {
		for _, want := range []int{len(some), 0} {
			if settled, _, err := f.term.Settle(ctx, some, 5); err != nil || settled != want {
				t.Fatalf("settled %d, %v, want %d", settled, err, want)
			}
		}
	}
	if got := len(f.archived(t, 5)); got != len(found) {
		t.Errorf("the archive has %d, want %d", got, len(found))
	}
}

// The checkpoint moves with what is settled, and keeps its predecessor.
func TestCheckpoint(t *testing.T) {
	f := newFixture(t, store.Options{AdoptStream: true})
	first := f.begin(t)
	if !first.First || first.Checkpoint != (store.Checkpoint{}) || first.Number != 1 || first.OutboxID == uuid.Nil {
		t.Errorf("the first term begins with %+v", first)
	}
	created := time.Now().Truncate(time.Microsecond)
	f.putBack(t, nil, store.Checkpoint{Created: created, Sequence: 10, Before: 10})
	f.roundTrip(t, store.Request{Checkpoint: 20})
	f.roundTrip(t, store.Request{Checkpoint: 30})
	second := f.begin(t)
	if got := second.Checkpoint; !got.Created.Equal(created) || got.Sequence != 30 || got.Before != 20 || second.First {
		t.Errorf("the second term begins with %+v, want the checkpoints 30 and 20", second)
	}
	if second.OutboxID != first.OutboxID || second.Number != 2 {
		t.Errorf("the second term begins with %+v, want the same outbox and number 2", second)
	}
	if later, err := f.Begin(t.Context(), "s", "me", 17); err != nil || later.Number != 17 {
		t.Errorf("a term of at least 17: got %+v, %v", later, err)
	}
	if other, err := f.Begin(t.Context(), "another", "me", 0); err != nil || !other.First || other.OutboxID == first.OutboxID {
		t.Errorf("for another stream: got %+v, %v, want a first term under a name of its own", other, err)
	}
}

// A leader that was replaced without knowing it must not move the checkpoint.
func TestDeposedLeaderRecordsNothing(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.begin(t)
	created := time.Now().Truncate(time.Microsecond)
	f.putBack(t, nil, store.Checkpoint{Created: created, Sequence: 10, Before: 10})
	other := open(t, f.dsn, store.Options{})
	t.Cleanup(func() { _ = other.Close(context.WithoutCancel(t.Context())) })
	if _, err := other.Begin(t.Context(), "s", "other", 0); err != nil {
		t.Fatal(err)
	}
	if response, err := f.leader(t).RoundTrip(t.Context(), store.Request{Checkpoint: 20}); err == nil {
		t.Errorf("it recorded a checkpoint: %+v", response)
	}
	if n, err := f.leader(t).PutBack(t.Context(), nil, store.Checkpoint{Created: created, Sequence: 30, Before: 30}); err == nil {
		t.Errorf("it put back %d events and recorded a checkpoint", n)
	}
	if got := f.begin(t).Checkpoint; got.Sequence != 10 {
		t.Errorf("the checkpoint is %d, want 10", got.Sequence)
	}
}

// A stream that was created anew has sequences of its own: what the archive knows of the former ones means nothing.
func TestCheckpointOfAnotherStream(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.begin(t)
	now := time.Now().Truncate(time.Microsecond)
	f.putBack(t, nil, store.Checkpoint{Created: now, Sequence: 10, Before: 10})
	f.insert(t, event("1"), event("2"))
	f.roundTrip(t, store.Request{Settled: []store.Settled{{Seqs: []int64{1, 2}, After: 10}}})
	f.putBack(t, f.archived(t, 0)[:1], store.Checkpoint{Created: now.Add(time.Second), Sequence: 3, Before: 3})
	if got := f.archived(t, 0); len(got) != 1 || got[0].Seq != 2 || got[0].After != 0 {
		t.Errorf("the archive has %+v, want event 2 after 0", got)
	}
}

// Each part of the archive is emptied when its events are older than is to be retained, and not before.
func TestArchiveIsEmptiedInTurn(t *testing.T) {
	const retain = 2 * time.Second
	f := newFixture(t, store.Options{Retain: retain})
	f.begin(t)
	settledAt := make(map[int64]time.Time)
	gone := 0
	eventually(t, "three events have left the archive", func() bool {
		f.insert(t, event("1"))
		rows := f.fetch(t)
		before := time.Now()
		f.roundTrip(t, store.Request{Settled: settledSeqs(seqs(rows))})
		settledAt[rows[0].Seq] = before
		kept := refs(f.archived(t, 0))
		for seq, at := range settledAt {
			age := time.Since(at)
			switch there := slices.Contains(kept, seq); {
			case there && age > 5*retain: // One and a half times, on a machine that has nothing else to do.
				t.Fatalf("event %d is still in the archive after %v", seq, age)
			case !there && age < retain:
				t.Fatalf("event %d has left the archive after %v, want at least %v", seq, age, retain)
			case !there:
				delete(settledAt, seq)
				gone++
			}
		}
		return gone >= 3
	})
}

// Somebody who reads the archive for long, such as a backup, holds up neither the relay nor its archive.
func TestArchiveWaitsForNoReader(t *testing.T) {
	f := newFixture(t, store.Options{Retain: 10 * time.Millisecond})
	f.begin(t)
	reader := connect(t, f.dsn)
	if _, err := reader.Exec(t.Context(), `begin; select from outbox_published`); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		f.insert(t, event("1"))
		rows := f.fetch(t)
		start := time.Now()
		f.roundTrip(t, store.Request{Settled: settledSeqs(seqs(rows))})
		if took := time.Since(start); took > time.Second {
			t.Errorf("a round trip took %v", took)
		}
	}
	if got := len(f.archived(t, 0)); got != 5 {
		t.Errorf("the archive has %d events, want 5", got)
	}
}

// Without retain what is left of an archive goes.
func TestArchiveTurnedOff(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.begin(t)
	f.insert(t, event("1"), event("2"))
	f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{1})})
	off := open(t, f.dsn, store.Options{})
	t.Cleanup(func() { _ = off.Close(context.WithoutCancel(t.Context())) })
	if _, err := begin(t, off, "s").RoundTrip(t.Context(), store.Request{Settled: settledSeqs([]int64{2})}); err != nil {
		t.Fatal(err)
	}
	if got := query[int](t, f, `select count(*)::int from outbox_published`); got != 0 {
		t.Errorf("%d events are left in the archive", got)
	}
}

// The grants that are named suffice for all that the relay does.
func TestGrantsSuffice(t *testing.T) {
	f := newFixture(t, store.Options{})
	role := "relay_" + query[string](t, f, `select md5(random()::text)`)
	f.exec(t, `create role `+role+` login`)
	f.exec(t, f.Table().Grants(role))
	t.Cleanup(func() {
		if _, err := f.conn.Exec(context.WithoutCancel(t.Context()), `drop owned by `+role+`; drop role `+role); err != nil {
			t.Error(err)
		}
	})
	var log strings.Builder
	outbox := open(t, f.dsn+"&user="+role, store.Options{Retain: time.Nanosecond, Logger: textLogger(&log)})
	limited := &fixture{Outbox: outbox, dsn: f.dsn, conn: f.conn}
	defer func() { _ = outbox.Close(context.WithoutCancel(t.Context())) }()
	limited.begin(t)
	f.insert(t, event("1"), event("2"), event("3"), event("4"))
	limited.roundTrip(t, store.Request{Settled: settledSeqs([]int64{1}), Failed: []store.Failure{{Ref: store.Ref{Seq: 2}, Attempts: 1}}, Dead: []store.Failure{{Ref: store.Ref{Seq: 3}, Attempts: 1}}, Checkpoint: 5})
	limited.putBack(t, limited.archived(t, 0), store.Checkpoint{Created: time.Now(), Sequence: 1})
	if _, err := limited.Requeue(t.Context(), store.DeadKey{Seq: 3}); err != nil {
		t.Error(err)
	}
	if log.Len() > 0 {
		t.Errorf("it complains: %s", log.String())
	}
}

// Two who put the same back, or one who does it twice, do it once.
func TestPutBackBesideTheRowItself(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.begin(t)
	f.insert(t, event("1"))
	f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{1})})
	lost := f.archived(t, 0)
	err := pgx.BeginFunc(t.Context(), f.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (1, 't', 'a', '1', 'e', '')`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f.putBack(t, lost, store.Checkpoint{})
	if got, want := f.inserted(t), []int64{1}; !slices.Equal(got, want) {
		t.Errorf("the outbox has %v, want %v", got, want)
	}
}

// Somebody has deleted the record of terms. Whoever leads next does not take itself for the first, unless nothing shows that
// it is not.
func TestRecordDeleted(t *testing.T) {
	for name, tt := range map[string]struct {
		retain time.Duration
		before func(t *testing.T, f *fixture)
		first  bool
		part   int
	}{
		"nothing was inserted": {time.Hour, func(*testing.T, *fixture) {}, true, 0},
		"nothing was settled":  {time.Hour, func(t *testing.T, f *fixture) { t.Helper(); f.insert(t, event("1")) }, true, 0},
		"what was settled is archived": {time.Hour, func(t *testing.T, f *fixture) {
			t.Helper()
			f.exec(t, `
insert into outbox_published (part, stream, after, seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at)
values (2, 'S', 0, 7, gen_random_uuid(), 't', 'a', '1', 'e', '', now())`)
		}, false, 2},
		"another stream's events are archived": {time.Hour, func(t *testing.T, f *fixture) {
			t.Helper()
			f.exec(t, `
insert into outbox_published (part, stream, after, seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at)
values (2, 'T', 0, 7, gen_random_uuid(), 't', 'a', '1', 'e', '', now())`)
		}, true, 0},
		"the first seqs are gone": {0, func(t *testing.T, f *fixture) {
			t.Helper()
			f.insert(t, event("1"), event("2"))
			f.exec(t, `delete from outbox where seq = 1`)
		}, false, 0},
		"all seqs are gone": {0, func(t *testing.T, f *fixture) {
			t.Helper()
			f.insert(t, event("1"))
			f.exec(t, `delete from outbox`)
		}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, store.Options{Retain: tt.retain})
			tt.before(t, f)
			term, err := f.Begin(t.Context(), "S", "me", 0)
			if err != nil || term.First != tt.first || term.Checkpoint != (store.Checkpoint{}) {
				t.Errorf("the term is %+v, error %v; want that it is the first: %v", term, err, tt.first)
			}
			if got := query[int](t, f, `select part from outbox_relay`); got != tt.part {
				t.Errorf("part %d is filled, want %d", got, tt.part)
			}
		})
	}
}

// The same process knows what the outbox is called in the stream.
func TestRecordDeletedUnderALeader(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	first, err := f.Begin(t.Context(), "S", "me", 0)
	if err != nil {
		t.Fatal(err)
	}
	f.exec(t, `delete from outbox_relay`)
	second, err := f.Begin(t.Context(), "S", "me", 0)
	if err != nil || second.OutboxID != first.OutboxID || second.Number <= first.Number {
		t.Errorf("the second term is %+v, error %v; want outbox %v and a number above %d", second, err, first.OutboxID, first.Number)
	}
}
