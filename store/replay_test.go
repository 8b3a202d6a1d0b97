package store_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
)

// library is an outbox whose archive has events 1 to 4, published after 10, 20, 30 and 40, an hour apart and the
// latest just now. The term that published them goes on, and its checkpoint is after all of them.
func library(t *testing.T) (f *fixture, events []store.Row) {
	t.Helper()
	f = newFixture(t, store.Options{Retain: 24 * time.Hour})
	f.begin(t)
	f.putBack(t, nil, store.Checkpoint{Created: time.Now().Truncate(time.Microsecond), Sequence: 1, Before: 1})
	f.insert(t,
		store.Event{Topic: "users", AggregateType: "User", AggregateID: "1", EventType: "e1", Data: []byte{0, 255}, Headers: map[string]string{"k": "v"}},
		store.Event{Topic: "users", AggregateType: "User", AggregateID: "2", EventType: "e2", Data: []byte("two")},
		store.Event{Topic: "users", AggregateType: "Group", AggregateID: "1", EventType: "e3", Data: []byte("three")},
		store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "1", EventType: "e4"},
	)
	events = f.fetch(t)
	var settled []store.Settled
	for i := range events {
		settled = append(settled, store.Settled{Seqs: []int64{events[i].Seq}, After: uint64(10 * (i + 1))})
	}
	f.roundTrip(t, store.Request{Settled: settled, Checkpoint: 100})
	f.roundTrip(t, store.Request{Checkpoint: 101})
	f.exec(t, `update outbox_published set published_at = clock_timestamp() - (4 - seq) * interval '1 hour'`)
	return f, events
}

func (f *fixture) replay(t *testing.T, filter store.ReplayFilter, newIDs bool) int {
	t.Helper()
	replayed, err := f.Replay(t.Context(), filter, newIDs)
	if err != nil {
		t.Fatal(err)
	}
	return replayed.Back
}

// inArchive returns the seqs of all rows in the archive.
func (f *fixture) inArchive(t *testing.T) []int64 {
	t.Helper()
	return query[[]int64](t, f, `select coalesce(array_agg(seq order by seq), '{}') from outbox_published`)
}

func TestPublishedIsListed(t *testing.T) {
	f, events := library(t)
	const hour = time.Hour
	ago := func(d time.Duration) store.Moment { return store.Moment{Ago: d} }
	at := func(d time.Duration) store.Moment {
		return store.Moment{Time: query[time.Time](t, f, `select clock_timestamp()`).Add(-d)}
	}
	tests := []struct {
		name   string
		filter store.ReplayFilter
		want   []int64
	}{
		{"all", store.ReplayFilter{}, []int64{1, 2, 3, 4}},
		{"topic", store.ReplayFilter{Topic: "users"}, []int64{1, 2, 3}},
		{"aggregate type", store.ReplayFilter{AggregateType: "User"}, []int64{1, 2}},
		{"aggregate ID", store.ReplayFilter{AggregateID: "1"}, []int64{1, 3, 4}},
		{"one aggregate", store.ReplayFilter{Topic: "users", AggregateType: "User", AggregateID: "1"}, []int64{1}},
		{"no SQL", store.ReplayFilter{Topic: "' or true --"}, nil},
		{"since a time ago", store.ReplayFilter{Since: ago(90 * time.Minute)}, []int64{3, 4}},
		{"since a time", store.ReplayFilter{Since: at(90 * time.Minute)}, []int64{3, 4}},
		{"until a time ago", store.ReplayFilter{Until: ago(90 * time.Minute)}, []int64{1, 2}},
		{"until a time", store.ReplayFilter{Until: at(90 * time.Minute)}, []int64{1, 2}},
		{"between", store.ReplayFilter{Since: ago(150 * time.Minute), Until: at(hour / 2), Topic: "users"}, []int64{2, 3}},
		{"ids", store.ReplayFilter{IDs: []uuid.UUID{events[3].ID, events[0].ID, uuid.New()}}, []int64{1, 4}},
		{"ids of a topic", store.ReplayFilter{IDs: []uuid.UUID{events[3].ID, events[0].ID}, Topic: "orders"}, []int64{4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			listed, total, err := f.Published(t.Context(), tt.filter, 0)
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for _, e := range listed {
				got = append(got, e.Seq)
			}
			if !slices.Equal(got, tt.want) || total != len(tt.want) {
				t.Errorf("got %v of %d, want %v", got, total, tt.want)
			}
		})
	}
	page, total, err := f.Published(t.Context(), store.ReplayFilter{}, 1)
	if err != nil || len(page) != 1 || total != 4 {
		t.Fatalf("a page of one: got %d of %d, %v, want 1 of 4", len(page), total, err)
	}
	e := page[0]
	if e.Seq != 1 || e.ID != events[0].ID || e.Topic != "users" || e.AggregateType != "User" || e.AggregateID != "1" || e.EventType != "e1" ||
		string(e.Headers) != `{"k": "v"}` || !e.CreatedAt.Time.Equal(events[0].CreatedAt) || e.Stream != "s" ||
		(time.Since(e.PublishedAt.Time)-3*hour).Abs() > time.Minute {
		t.Errorf("got %+v", e)
	}
}

// Without new ids events come back as they were, for a relay that looks at the stream first.
func TestReplay(t *testing.T) {
	f, events := library(t)
	before := f.inArchive(t)
	if got := f.replay(t, store.ReplayFilter{Topic: "none"}, false); got != 0 {
		t.Errorf("replayed %d events of no topic", got)
	}
	if _, err := f.leader(t).RoundTrip(t.Context(), store.Request{Fetch: &store.Fetch{Rows: 1, Bytes: 1}}); err != nil {
		t.Errorf("a replay of nothing ended the term: %v", err)
	}

	if got := f.replay(t, store.ReplayFilter{Since: store.Moment{Ago: 150 * time.Minute}}, false); got != 3 {
		t.Errorf("replayed %d events, want 3", got)
	}
	if got, want := f.inArchive(t), before[:1]; !slices.Equal(got, want) {
		t.Errorf("the archive has %v, want %v", got, want)
	}
	// The leader must not publish what it has not looked for.
	if response, err := f.leader(t).RoundTrip(t.Context(), store.Request{Fetch: &store.Fetch{Rows: 1000, Bytes: 1 << 30}}); err == nil {
		t.Errorf("the term goes on, and has fetched %v", seqs(response.Rows))
	}
	term := f.begin(t)
	if got := term.Checkpoint; got.Before != 20 || got.Sequence != 101 {
		t.Errorf("the next term begins with the checkpoints %d and %d, want 101 and, for event 2, 20", got.Sequence, got.Before)
	}
	rows := f.fetch(t)
	if got, want := seqs(rows), []int64{2, 3, 4}; !slices.Equal(got, want) {
		t.Fatalf("the outbox has %v, want %v", got, want)
	}
	for i, row := range rows {
		if want := events[i+1]; row.ID != want.ID || row.Topic != want.Topic || row.AggregateID != want.AggregateID || row.EventType != want.EventType ||
			string(row.Data) != string(want.Data) || string(row.Headers) != string(want.Headers) || !row.CreatedAt.Equal(want.CreatedAt) {
			t.Errorf("came back as  %+v\nwant %+v", row, want)
		}
	}

	// Again: they are not in the archive any more, and then they are.
	if got := f.replay(t, store.ReplayFilter{Topic: "orders"}, false); got != 0 {
		t.Errorf("replayed %d events that wait, want 0", got)
	}
	f.roundTrip(t, store.Request{Settled: []store.Settled{{Seqs: []int64{2, 3, 4}, After: 200}}})
	if got := f.inArchive(t); !slices.Equal(got, before) {
		t.Errorf("at last the archive has %v, want %v", got, before)
	}
}

// With new ids events are new ones in their old order, and disturb nobody.
func TestReplayWithNewIDs(t *testing.T) {
	f, events := library(t)
	f.insert(t, event("5"))
	if got := f.replay(t, store.ReplayFilter{Topic: "users"}, true); got != 3 {
		t.Errorf("replayed %d events, want 3", got)
	}
	if got, want := f.inArchive(t), []int64{1, 2, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("the archive has %v, want %v", got, want)
	}
	rows := f.fetch(t) // By the same term.
	if got, want := seqs(rows), []int64{5, 6, 7, 8}; !slices.Equal(got, want) {
		t.Fatalf("the outbox has %v, want %v", got, want)
	}
	ids := map[uuid.UUID]bool{}
	for _, e := range events {
		ids[e.ID] = true
	}
	for i, row := range rows[1:] {
		if ids[row.ID] {
			t.Errorf("seq %d has the id of another", row.Seq)
		}
		ids[row.ID] = true
		if want := events[i]; row.Topic != want.Topic || row.AggregateType != want.AggregateType || row.AggregateID != want.AggregateID || row.EventType != want.EventType ||
			string(row.Data) != string(want.Data) || string(row.Headers) != string(want.Headers) || !row.CreatedAt.Equal(want.CreatedAt) {
			t.Errorf("came back as  %+v\nwant %+v", row, want)
		}
	}
	if got := f.replay(t, store.ReplayFilter{IDs: []uuid.UUID{events[0].ID}}, true); got != 1 {
		t.Errorf("replayed %d events once more, want 1", got)
	}
}

func TestReplayIsAllOrNothing(t *testing.T) {
	f, events := library(t)
	missing := uuid.New()
	for _, newIDs := range []bool{false, true} {
		n, err := f.Replay(t.Context(), store.ReplayFilter{IDs: []uuid.UUID{events[0].ID, missing}}, newIDs)
		if n.Back != 0 || !errors.Is(err, store.ErrNotArchived) || !strings.Contains(err.Error(), missing.String()) || strings.Contains(err.Error(), events[0].ID.String()) {
			t.Errorf("with new ids %v: got %+v and %v, want ErrNotArchived that names the missing one", newIDs, n, err)
		}
	}
	if got := f.inserted(t); len(got) != 0 {
		t.Errorf("the outbox has %v, want nothing", got)
	}
}

// An event is in one place: a relay that gave it up twice would find its grave taken.
func TestReplayLeavesTheDeadAndTheLiving(t *testing.T) {
	f, _ := library(t)
	f.exec(t, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error)
    select seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, 1, 'refused' from outbox_published where seq = 1;
insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (2, 't', 'a', '1', 'e', '')`)
	if got := f.replay(t, store.ReplayFilter{}, false); got != 2 {
		t.Errorf("replayed %d events, want 2", got)
	}
	if got, want := f.inserted(t), []int64{2, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("the outbox has %v, want %v", got, want)
	}
	if got, want := f.inArchive(t), []int64{1, 2}; !slices.Equal(got, want) {
		t.Errorf("the archive has %v, want %v", got, want)
	}
}

// A term that begins while a replay is under way does not know of it, so it ends with it.
func TestReplayEndsATermThatHasJustBegun(t *testing.T) {
	f, _ := library(t)
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The replay comes upon this.
	if _, err := tx.Exec(t.Context(), `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (4, 't', 'a', '1', 'e', '')`); err != nil {
		t.Fatal(err)
	}
	replayed := make(chan error, 1)
	go func() {
		_, err := f.Replay(t.Context(), store.ReplayFilter{}, false)
		replayed <- err
	}()
	observer := connect(t, f.dsn)
	eventually(t, "the replay waits", func() bool {
		var waits bool
		err := observer.QueryRow(t.Context(), `
select exists (select from pg_stat_activity where datname = current_database() and application_name = 'outbox-relay admin' and wait_event_type = 'Lock')`).Scan(&waits)
		return err == nil && waits
	})
	if got := f.begin(t).Checkpoint.Before; got != 100 {
		t.Errorf("a term begins with the checkpoint %d, want 100", got)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "replay", replayed); err != nil {
		t.Fatal(err)
	}
	if response, err := f.leader(t).RoundTrip(t.Context(), store.Request{Fetch: &store.Fetch{Rows: 1000, Bytes: 1 << 30}}); err == nil {
		t.Errorf("the term goes on, and has fetched %v", seqs(response.Rows))
	}
	if got := f.begin(t).Checkpoint.Before; got != 10 {
		t.Errorf("the next term begins with the checkpoint %d, want 10", got)
	}
}

// A relay of another outbox in the same database goes on, and so does a leader of this one elsewhere.
func TestReplayEndsNoOtherLeader(t *testing.T) {
	f, _ := library(t)
	other := open(t, f.dsn, store.Options{Table: store.Table{Name: "other"}})
	t.Cleanup(func() { _ = other.Close(context.WithoutCancel(t.Context())) })
	if err := other.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	elect := func(o *store.Outbox) {
		t.Helper()
		err := o.Session().Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, `select pg_advisory_lock(42, $1)`, o.Table().LockKey())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	elect(f.Outbox)
	elect(other)
	_, mine := f.Session().LastRoundTrip()
	_, theirs := other.Session().LastRoundTrip()
	if got := f.replay(t, store.ReplayFilter{}, false); got != 4 {
		t.Errorf("replayed %d events, want 4", got)
	}
	ping := func(o *store.Outbox) (generation uint64) {
		for range 2 { // The first may find that the connection is gone.
			_ = o.Session().Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) })
		}
		_, generation = o.Session().LastRoundTrip()
		return generation
	}
	if got := ping(other); got != theirs {
		t.Errorf("the other outbox's leader has session %d, want still %d", got, theirs)
	}
	if got := ping(f.Outbox); got == mine {
		t.Errorf("the leader has still session %d, want another", got)
	}
}

// The relay's grants suffice, and a role that may not end the relay's session is told what it can do.
func TestReplayByOtherRoles(t *testing.T) {
	f, _ := library(t)
	suffix := query[string](t, f, `select md5(random()::text)`)
	relay, operator := "relay_"+suffix, "operator_"+suffix
	for _, role := range []string{relay, operator} {
		f.exec(t, `create role `+role+` login; `+f.Table().Grants(role))
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := f.conn.Exec(ctx, `drop owned by `+relay+`, `+operator+`; drop role `+relay+`, `+operator); err != nil {
			t.Error(err)
		}
	})
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	leader := &fixture{Outbox: open(t, f.dsn+"&user="+relay, store.Options{Retain: time.Hour}), dsn: f.dsn, conn: f.conn}
	t.Cleanup(func() { _ = leader.Close(context.WithoutCancel(t.Context())) })
	leader.begin(t)

	n, err := open(t, f.dsn+"&user="+operator, store.Options{}).Replay(t.Context(), store.ReplayFilter{Topic: "users"}, false)
	if n.Back != 0 || !errors.Is(err, store.ErrPrivilege) || !strings.Contains(err.Error(), "replay as that role") || strings.Contains(err.Error(), "GRANT") {
		t.Errorf("by another role: got %+v and %v, want what to do", n, err)
	}
	if got := leader.inserted(t); len(got) != 0 {
		t.Errorf("nevertheless the outbox has %v", got)
	}
	if got := leader.replay(t, store.ReplayFilter{Topic: "users"}, false); got != 3 {
		t.Errorf("replayed %d events as the relay's role, want 3", got)
	}
	if got := leader.replay(t, store.ReplayFilter{Topic: "orders"}, true); got != 1 {
		t.Errorf("replayed %d events with new ids, want 1", got)
	}
}

// The relay is told to look again.
func TestReplayWakesTheRelay(t *testing.T) {
	f, _ := library(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	woken := make(chan struct{}, 100)
	ended := make(chan error, 1)
	go func() { ended <- f.Listen(ctx, func() { woken <- struct{}{} }) }()
	await(t, "first look", woken) // As LISTEN is in force.
	for _, newIDs := range []bool{true, false} {
		f.replay(t, store.ReplayFilter{}, newIDs)
		await(t, "wake-up", woken)
	}
	cancel()
	if err := await(t, "end of listening", ended); err != nil {
		t.Error(err)
	}
}

func TestReplayWithoutTheTable(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.exec(t, `drop table outbox_published`)
	_, _, list := f.Published(t.Context(), store.ReplayFilter{}, 0)
	_, replay := f.Replay(t.Context(), store.ReplayFilter{}, false)
	_, anew := f.Replay(t.Context(), store.ReplayFilter{}, true)
	for operation, err := range map[string]error{"list the archive": list, "replay": replay, "replay: ": anew} {
		if !errors.Is(err, store.ErrNoTable) || !strings.Contains(err.Error(), operation) {
			t.Errorf("%s: got %v, want ErrNoTable", operation, err)
		}
	}
}

// A seq is nobody's name: where the sequence was restarted, other events have the seqs of those in the archive. None of them
// is lost by a replay.
func TestReplayAfterTheSequenceWasRestarted(t *testing.T) {
	f, events := library(t)
	f.exec(t, `alter table outbox alter seq restart with 1`)
	f.insert(t, event("new"), event("newer")) // Seqs 1 and 2.
	f.exec(t, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error)
    select 3, gen_random_uuid(), topic, aggregate_type, aggregate_id, event_type, data, created_at, 1, 'refused' from outbox_published where seq = 1;
insert into outbox_published (part, stream, after, seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at)
    select part, stream, 50, seq, gen_random_uuid(), topic, aggregate_type, aggregate_id, event_type, data, created_at from outbox_published where seq = 4`)
	got, err := f.Replay(t.Context(), store.ReplayFilter{}, false)
	if err != nil {
		t.Fatal(err)
	}
	// 1 and 2 are taken by other events, 3 is free (a dead letter's seq is no obstacle), and so is 4 for one of two.
	if want := (store.Replayed{Back: 2, Left: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := f.inArchive(t), []int64{1, 2, 4}; !slices.Equal(got, want) {
		t.Errorf("the archive has %v, want %v", got, want)
	}
	all := query[int](t, f, `select count(distinct id) from (select id from outbox union all select id from outbox_published) e`)
	if all != len(events)+1+2 {
		t.Errorf("there are %d events in the archive and the outbox, want %d", all, len(events)+1+2)
	}
}
