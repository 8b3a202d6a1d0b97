package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
)

// page asks for rows like a relay that has seen everything up to highest and still holds held.
func page(highest int64, held ...int64) *store.Fetch {
	return &store.Fetch{Rows: 1000, Bytes: 1 << 30, Highest: highest, Held: held}
}

// sized is an event with a payload of n bytes.
func sized(n int) store.Event {
	e := event("1")
	e.Data = make([]byte, n)
	return e
}

func TestSettleRemovesWhatItNames(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"), event("2"), event("3"), event("4"), event("5"))
	// 99 is not there, as after a request that is repeated because nobody knows whether it was carried out.
	for range 2 {
		f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{2, 4, 99})})
		if got, want := f.inserted(t), []int64{1, 3, 5}; !slices.Equal(got, want) {
			t.Errorf("left are %v, want %v", got, want)
		}
	}
}

// Seqs that are close together and others go to Postgres in different ways: either holds back, removes and archives the rows
// that it names, and none of those in between.
func TestSeqsNearAndFar(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.begin(t)
	f.exec(t, `
insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value
select seq, 'users', 'User', '1', 'UserChanged', '' from (
    select generate_series(1, 10) union all select generate_series(1000000, 1000099) union all select generate_series(9000000000, 9000000009)) s (seq)`)
	var named, others []int64
	for i, seq := range f.inserted(t) {
		if i%2 == 0 {
			named = append(named, seq)
		} else {
			others = append(others, seq)
		}
	}
	for _, near := range []bool{true, false} { // By the seq in the middle.
		rand.Shuffle(len(named), func(i, j int) { named[i], named[j] = named[j], named[i] })
		middle := slices.IndexFunc(named, func(seq int64) bool { return near == (1_000_000 <= seq && seq < 2_000_000) })
		named[middle], named[len(named)/2] = named[len(named)/2], named[middle]
		if got := seqs(f.roundTrip(t, store.Request{Fetch: page(9_999_999_999, named...)}).Rows); !slices.Equal(got, others) {
			t.Errorf("with %d in the middle of those in hand, fetched %v, want the others, %v", named[len(named)/2], got, others)
		}
	}
	f.roundTrip(t, store.Request{Settled: settledSeqs(named)})
	if got := f.inserted(t); !slices.Equal(got, others) {
		t.Errorf("left are %v, want %v", got, others)
	}
	slices.Sort(named)
	if got := refs(f.archived(t, 0)); !slices.Equal(got, named) {
		t.Errorf("the archive has %v, want %v", got, named)
	}
}

func TestFetchReturnsEachRowOnce(t *testing.T) {
	f := newFixture(t, store.Options{})
	late, err := connect(t, f.dsn).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Insert(t.Context(), late, event("late"), event("late")); err != nil {
		t.Fatal(err)
	}
	lost, err := connect(t, f.dsn).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Insert(t.Context(), lost, event("lost")); err != nil {
		t.Fatal(err)
	}
	f.insert(t, event("a"), event("b"))

	steps := []struct {
		name    string
		before  func() error
		request store.Request
		want    []int64
	}{
		{"what is committed", nil, store.Request{Fetch: page(0)}, []int64{4, 5}},
		{"held rows do not come again", nil, store.Request{Fetch: page(5, 4, 5)}, nil},
		{"nor do rows settled in the same round trip", nil, store.Request{Settled: settledSeqs([]int64{5}), Fetch: page(5, 4)}, nil},
		{"nor rows that were rolled back", func() error { return lost.Rollback(t.Context()) }, store.Request{Fetch: page(5, 4)}, nil},
		{"late commits come, from below those in hand", func() error { return late.Commit(t.Context()) }, store.Request{Fetch: page(5, 4)}, []int64{1, 2}},
		{"rows that were let go come again", nil, store.Request{Fetch: page(5, 1, 4)}, []int64{2}},
		{"all of them after a restart", nil, store.Request{Fetch: page(0)}, []int64{1, 2, 4}},
	}
	for _, step := range steps {
		if step.before != nil {
			if err := step.before(); err != nil {
				t.Fatal(err)
			}
		}
		if got := seqs(f.roundTrip(t, step.request).Rows); !slices.Equal(got, step.want) {
			t.Errorf("%s: got %v, want %v", step.name, got, step.want)
		}
	}
}

func TestFetchLeavesBlockedAggregatesOut(t *testing.T) {
	f := newFixture(t, store.Options{})
	other := func(id string) store.Event {
		e := event(id)
		e.AggregateType = "Order"
		return e
	}
	f.insert(t, event("1"), event("2"), other("1"), other("2"), event("1"))

	// The pairs count, not each half on its own.
	fetch := page(0)
	fetch.BlockedTypes, fetch.BlockedIDs = []string{"User", "Order"}, []string{"1", "2"}
	if got, want := seqs(f.roundTrip(t, store.Request{Fetch: fetch}).Rows), []int64{2, 3}; !slices.Equal(got, want) {
		t.Errorf("with User 1 and Order 2 blocked: got %v, want %v", got, want)
	}

	// Those rows are settled, new ones come and go; the floor rises over what is blocked.
	highest := int64(3)
	settled := []int64{2, 3}
	for range 5 {
		fetch.Highest = highest
		f.roundTrip(t, store.Request{Settled: settledSeqs(settled), Fetch: fetch})
		f.insert(t, event("3"))
		settled = seqs(f.roundTrip(t, store.Request{Fetch: fetch}).Rows)
		highest = settled[0]
	}
	again := page(highest)
	again.Back, again.BackTo = true, 1
	got := f.roundTrip(t, store.Request{Settled: settledSeqs(settled), Fetch: again}).Rows
	if want := []int64{1, 4, 5}; !slices.Equal(seqs(got), want) {
		t.Errorf("after they were unblocked: got %v, want %v", seqs(got), want)
	}
}

func TestPageIsBounded(t *testing.T) {
	f := newFixture(t, store.Options{})
	// The last is large and compresses well: what counts is what comes over the wire.
	f.insert(t, sized(1000), sized(1000), sized(0), sized(1000), sized(1<<20))
	small := sized(0)
	texts := len(small.Topic) + len(small.AggregateType) + len(small.AggregateID) + len(small.EventType)
	row := 1000 + texts
	tests := []struct {
		rows, bytes int
		highest     int64
		held        []int64
		want        int
		full        bool
	}{
		{rows: 10, bytes: 1 << 30, want: 5, full: false},
		{rows: 5, bytes: 1 << 30, want: 5, full: true},
		{rows: 2, bytes: 1 << 30, want: 2, full: true},
		{rows: 1, bytes: 1, want: 1, full: true},
		{rows: 10, bytes: row, want: 1, full: true},
		{rows: 10, bytes: row + 1, want: 2, full: true},
		{rows: 10, bytes: 2 * row, want: 2, full: true},
		{rows: 10, bytes: 2*row + 1, want: 3, full: true},
		{rows: 10, bytes: 2*row + texts, want: 3, full: true},
		{rows: 10, bytes: 3*row + texts, want: 4, full: true},
		{rows: 10, bytes: 3*row + texts + 1, want: 5, full: true},
		{rows: 10, bytes: 3*row + 2*texts + 1 + 1<<20, want: 5, full: false},
		// However large, one row there is.
		{rows: 10, bytes: 1000, highest: 4, held: []int64{1, 2, 3, 4}, want: 1, full: true},
		// The bounds are the page's: what is in hand does not count.
		{rows: 2, bytes: texts + 1, highest: 2, held: []int64{1, 2}, want: 2, full: true},
		{rows: 10, bytes: 1000, highest: 5, held: []int64{1, 2, 3, 4, 5}, want: 0, full: false},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%d rows, %d bytes after %d", tt.rows, tt.bytes, tt.highest), func(t *testing.T) {
			got := f.roundTrip(t, store.Request{Fetch: &store.Fetch{Rows: tt.rows, Bytes: tt.bytes, Highest: tt.highest, Held: tt.held}})
			if len(got.Rows) != tt.want || got.Full != tt.full {
				t.Errorf("got %d rows, full %v, want %d, %v", len(got.Rows), got.Full, tt.want, tt.full)
			}
			if !slices.IsSorted(seqs(got.Rows)) {
				t.Errorf("got seqs %v, want them in order", seqs(got.Rows))
			}
		})
	}
}

// Whatever the sizes, the pages together are the table.
func TestPagesDrainTheTable(t *testing.T) {
	f := newFixture(t, store.Options{})
	const rows = 400
	sizes := make([]int, rows)
	events := make([]store.Event, rows)
	for i := range events {
		sizes[i] = rand.IntN(200)
		if rand.IntN(20) == 0 {
			sizes[i] = rand.IntN(20_000)
		}
		events[i] = sized(sizes[i])
		for j := range events[i].Data {
			events[i].Data[j] = byte(i + j)
		}
	}
	f.insert(t, events...)

	fetch := page(0)
	for full := true; full; {
		fetch.Rows, fetch.Bytes = 1+rand.IntN(40), 1+rand.IntN(8000)
		response := f.roundTrip(t, store.Request{Fetch: fetch})
		full = response.Full
		total := 0
		for i, row := range response.Rows {
			want := events[row.Seq-1]
			if row.Seq != fetch.Highest+1 || !bytes.Equal(row.Data, want.Data) || row.Topic != want.Topic || row.EventType != want.EventType {
				t.Fatalf("after seq %d: got seq %d of %d bytes, want the next, as it was inserted", fetch.Highest, row.Seq, len(row.Data))
			}
			if i > 0 && total >= fetch.Bytes {
				t.Errorf("seq %d is in a page of %d bytes that may hold %d", row.Seq, total, fetch.Bytes)
			}
			total += len(row.Data)
			fetch.Highest = row.Seq
			fetch.Held = append(fetch.Held, row.Seq)
		}
		if len(response.Rows) > fetch.Rows {
			t.Errorf("got %d rows, want %d at most", len(response.Rows), fetch.Rows)
		}
		if full && len(response.Rows) == 0 {
			t.Fatal("got nothing although there is more")
		}
	}
	if fetch.Highest != rows {
		t.Errorf("the last seq was %d, want %d", fetch.Highest, rows)
	}
}

func TestFailedRowsAreMarked(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"), event("2"))
	failure := store.Failure{Ref: store.Ref{Seq: 1}, Attempts: 2, Wait: 90 * time.Minute, Reason: `maximum payload exceeded; ' "`}
	for range 2 { // Repeating it is harmless.
		rows := f.roundTrip(t, store.Request{Failed: []store.Failure{failure}, Fetch: page(0)}).Rows
		if len(rows) != 2 || rows[0].Attempts != 2 || rows[1].Attempts != 0 {
			t.Fatalf("got %+v, want the first of two rows with 2 attempts and the other with none", rows)
		}
	}
	if got := query[string](t, f, `select last_error from outbox where seq = 1`); got != failure.Reason {
		t.Errorf("got last_error %q, want %q", got, failure.Reason)
	}
	if got := query[time.Duration](t, f, `select retry_at - clock_timestamp() from outbox where seq = 1`); got > failure.Wait || got < failure.Wait-time.Minute {
		t.Errorf("it is due in %v, want %v", got, failure.Wait)
	}
	if !query[bool](t, f, `select retry_at is null and last_error is null from outbox where seq = 2`) {
		t.Error("the other row is marked, too")
	}
}

func TestBegin(t *testing.T) {
	f := newFixture(t, store.Options{AdoptStream: true})
	begin := func(stream, leader string) (int64, []store.Blocked) {
		t.Helper()
		term, err := f.Begin(t.Context(), stream, leader, 0)
		if err != nil {
			t.Fatal(err)
		}
		return term.Number, term.Blocked
	}
	for i, tt := range []struct {
		stream, leader string
		want           int64
	}{{"A", "one", 1}, {"A", "two", 2}, {"B", "two", 1}, {"A", "one", 3}} {
		term, blocked := begin(tt.stream, tt.leader)
		if term != tt.want || len(blocked) != 0 {
			t.Errorf("begin %d on %s: got term %d and blocked %v, want %d and none", i, tt.stream, term, blocked, tt.want)
		}
		if got := query[string](t, f, `select leader from outbox_relay where stream = $1`, tt.stream); got != tt.leader {
			t.Errorf("begin %d on %s: recorded is leader %q, want %q", i, tt.stream, got, tt.leader)
		}
	}
	if age := query[time.Duration](t, f, `select clock_timestamp() - max(leader_since) from outbox_relay`); age < 0 || age > time.Minute {
		t.Errorf("the leader leads for %v, want next to nothing", age)
	}

	f.insert(t, event("due"), event("one"), event("many"), event("many"), event("fine"))
	wait := func(seq int64, d time.Duration) store.Failure {
		return store.Failure{Ref: store.Ref{Seq: seq}, Attempts: 1, Wait: d, Reason: "refused"}
	}
	f.roundTrip(t, store.Request{Failed: []store.Failure{wait(1, 0), wait(2, time.Minute), wait(3, 49*time.Hour), wait(4, time.Minute)}})
	_, blocked := begin("A", "one")
	slices.SortFunc(blocked, func(a, b store.Blocked) int { return strings.Compare(a.AggregateID, b.AggregateID) })
	if len(blocked) != 2 {
		t.Fatalf("got %+v, want the aggregates many and one", blocked)
	}
	for i, want := range []store.Blocked{{"User", "many", 24 * time.Hour}, {"User", "one", time.Minute}} {
		got := blocked[i]
		if got.AggregateType != want.AggregateType || got.AggregateID != want.AggregateID || got.For > want.For || got.For < want.For-time.Minute/2 {
			t.Errorf("got %+v, want about %+v", got, want)
		}
	}
}

func TestBeginNeedsTheTables(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.exec(t, `drop table outbox_relay`)
	if _, err := f.Begin(t.Context(), "A", "one", 0); err == nil {
		t.Error("began without a table to record it in")
	}
	f.exec(t, `drop table outbox cascade`)
	if _, err := f.Begin(t.Context(), "A", "one", 0); !errors.Is(err, store.ErrNoTable) {
		t.Errorf("got %v, want ErrNoTable", err)
	}
}

func TestDeadRowsKeepEverything(t *testing.T) {
	f := newFixture(t, store.Options{})
	e := event("1")
	e.ID = uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	e.Data, e.Headers = []byte{0, 0xff}, map[string]string{"trace": `"x"`}
	f.insert(t, event("0"), e)
	f.exec(t, `update outbox set created_at = '2001-02-03 04:05:06.789012+00'`)
	const kept = `- 'attempts' - 'last_error' - 'retry_at' - 'died_at' - 'given_up_at' - 'letter'`
	before := query[string](t, f, `select (to_jsonb(o) `+kept+`)::text from outbox o where seq = 2`)

	for range 2 { // Repeating it is harmless.
		f.roundTrip(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: 2}, Attempts: 3, Wait: time.Hour, Reason: "too large"}}})
		if after := query[string](t, f, `select (to_jsonb(d) `+kept+`)::text from outbox_dead d`); after != before {
			t.Errorf("got  %s\nwant %s", after, before)
		}
	}
	if got := query[string](t, f, `select attempts || ' ' || last_error from outbox_dead`); got != "3 too large" {
		t.Errorf("got %q, want the attempts and the reason, %q", got, "3 too large")
	}
	if age := query[time.Duration](t, f, `select clock_timestamp() - died_at from outbox_dead`); age < 0 || age > time.Minute {
		t.Errorf("it died %v ago, want just now", age)
	}
	if got, want := f.inserted(t), []int64{1}; !slices.Equal(got, want) {
		t.Errorf("in the outbox are %v, want %v", got, want)
	}
}

func TestHoldDead(t *testing.T) {
	burial := []store.Failure{{Ref: store.Ref{Seq: 2}, Attempts: 3, Reason: "refused"}}
	insert := func(f *fixture) { f.insert(t, event("a"), event("dead"), event("b"), event("dead"), event("c")) }

	t.Run("off", func(t *testing.T) {
		f := newFixture(t, store.Options{})
		insert(f)
		if got, want := seqs(f.roundTrip(t, store.Request{Dead: burial, Fetch: page(0)}).Rows), []int64{1, 3, 4, 5}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	for name, tt := range map[string]struct {
		decide func(f *fixture) (int, error)
		want   []int64
	}{
		"until requeued":  {func(f *fixture) (int, error) { return f.Requeue(t.Context(), store.DeadKey{Seq: 2}) }, []int64{1, 2, 3, 4, 5}},
		"until discarded": {func(f *fixture) (int, error) { return f.Discard(t.Context(), store.DeadKey{Seq: 2}) }, []int64{1, 3, 4, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, store.Options{HoldDead: true})
			insert(f)
			if got, want := seqs(f.roundTrip(t, store.Request{Dead: burial, Fetch: page(0)}).Rows), []int64{1, 3, 5}; !slices.Equal(got, want) {
				t.Errorf("while the letter lies there: got %v, want %v", got, want)
			}
			if n, err := tt.decide(f); n != 1 || err != nil {
				t.Fatalf("got %d letters, error %v, want 1", n, err)
			}
			if got := seqs(f.fetch(t)); !slices.Equal(got, tt.want) {
				t.Errorf("afterwards: got %v, want %v", got, tt.want)
			}
		})
	}
}

// A round trip is one transaction: whichever part fails, the others have not happened.
func TestFailedRoundTripChangesNothing(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"), event("2"), event("3"))
	f.begin(t)
	f.exec(t, `alter table outbox_dead rename to taken_away`)
	request := store.Request{
		Settled: settledSeqs([]int64{1}),
		Failed:  []store.Failure{{Ref: store.Ref{Seq: 2, ID: f.id(t, 2)}, Attempts: 1, Wait: time.Hour, Reason: "refused"}},
		Dead:    []store.Failure{{Ref: store.Ref{Seq: 3, ID: f.id(t, 3)}, Attempts: 3, Reason: "refused"}},
		Fetch:   page(0),
	}
	response, err := f.leader(t).RoundTrip(t.Context(), request)
	if !errors.Is(err, store.ErrNoTable) || len(response.Rows) != 0 {
		t.Errorf("got response %+v and error %v, want none and that a table is missing", response, err)
	}
	if got := query[int](t, f, `select count(*) from outbox where attempts = 0 and last_error is null`); got != 3 {
		t.Errorf("%d rows are as they were, want 3", got)
	}

	f.exec(t, `alter table taken_away rename to outbox_dead`)
	if got, want := seqs(f.roundTrip(t, request).Rows), []int64{2}; !slices.Equal(got, want) {
		t.Errorf("the same again: got %v, want %v", got, want)
	}
}

func TestRoundTripWithoutTheTable(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.fetch(t)
	f.exec(t, `drop table outbox cascade`)
	if _, err := f.leader(t).RoundTrip(t.Context(), store.Request{Fetch: page(0)}); !errors.Is(err, store.ErrNoTable) {
		t.Errorf("got %v, want ErrNoTable", err)
	}
}

// A leader that is told to stop while Postgres is busy does not wait, and the rows of that round trip are as they
// were or as they should be.
func TestRoundTripEndsWithItsContext(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"))
	f.fetch(t)
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select from outbox for update`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.term.RoundTrip(ctx, store.Request{Settled: settledSeqs([]int64{1})})
		done <- err
	}()
	observer := connect(t, f.dsn)
	eventually(t, "the round trip waits for the row's lock", func() bool {
		waiting, err := collect[int](t, observer, `select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`)
		return err == nil && len(waiting) == 1
	})
	cancel()
	if err := await(t, "end of the round trip", done); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.begin(t) // The session has ended with the context.
	f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{1})})
	if got := f.inserted(t); len(got) != 0 {
		t.Errorf("left are %v, want none", got)
	}
}

func collect[T any](tb testing.TB, conn *pgx.Conn, sql string, args ...any) ([]T, error) {
	tb.Helper()
	rows, err := conn.Query(tb.Context(), sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

// The owner changes the type of a column under a relay that has read rows, measured and not, and written some. No row is to
// blame for it.
func TestColumnChangesItsType(t *testing.T) {
	for _, sql := range []string{
		`alter table outbox alter topic type varchar(100), alter aggregate_id type varchar(100), alter last_error type varchar(100)`,
		`alter table outbox_dead alter topic type varchar(100), alter last_error type varchar(100)`,
		`alter table outbox_published alter topic type varchar(100), alter aggregate_id type varchar(100)`,
	} {
		f := newFixture(t, store.Options{HoldDead: true, Retain: time.Hour})
		f.begin(t)
		round := func() {
			t.Helper()
			large := event("1")
			large.Data = make([]byte, 100<<10)
			conn := connect(t, f.dsn)
			for _, e := range []store.Event{event("1"), large, event("1"), event("1")} {
				if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return store.Insert(t.Context(), tx, e) }); err != nil {
					t.Fatal(err)
				}
			}
			rows := f.fetch(t)
			if len(rows) != 4 {
				t.Fatalf("%s: fetched are %v, want four rows", sql, rows)
			}
			for _, row := range rows {
				if row.Unfit != "" {
					t.Errorf("%s: row %d is unfit: %s", sql, row.Seq, row.Unfit)
				}
			}
			failure := func(i int) []store.Failure {
				return []store.Failure{{Ref: store.Ref{Seq: rows[i].Seq}, Attempts: 1, Reason: "refused"}}
			}
			response := f.roundTrip(t, store.Request{Settled: settledSeqs(seqs(rows[:2])), Failed: failure(2), Dead: failure(3), Fetch: page(0)})
			if len(response.Kept) > 0 || response.Remaining != nil {
				t.Errorf("%s: kept are %+v, and %v", sql, response.Kept, response.Remaining)
			}
			letters, err := f.DeadLetters(t.Context(), store.DeadFilter{}, true)
			if err != nil || len(letters) != 1 {
				t.Fatalf("%s: %d dead letters, error %v", sql, len(letters), err)
			}
			if n, err := f.Discard(t.Context(), letters[0].Key()); err != nil || n != 1 {
				t.Fatalf("%s: %d discarded, error %v", sql, n, err)
			}
			f.exec(t, `delete from outbox`)
			back, err := f.leader(t).PutBack(t.Context(), f.archived(t, 0), store.Checkpoint{})
			if err != nil { // The check's trigger was compiled for other types: it takes another session, and so another term.
				f.begin(t)
				back, err = f.leader(t).PutBack(t.Context(), f.archived(t, 0), store.Checkpoint{})
			}
			if back != 2 || err != nil {
				t.Errorf("%s: %d are put back, error %v; want 2", sql, back, err)
			}
			f.exec(t, `delete from outbox`)
		}
		round()
		f.exec(t, sql)
		round()
	}
}
