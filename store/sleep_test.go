package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// sleeper is a relay's wake-up side: it listens, and its channel holds a token when it was woken.
type sleeper struct {
	*fixture

	woken chan struct{}
}

// listen starts listening, and returns once LISTEN is in force.
func listen(tb testing.TB, f *fixture) *sleeper {
	tb.Helper()
	s := &sleeper{fixture: f, woken: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(tb.Context())
	done := make(chan error, 1)
	go func() { done <- f.Listen(ctx, s.wake) }()
	tb.Cleanup(func() {
		cancel()
		if err := await(tb, "end of Listen", done); err != nil {
			tb.Errorf("Listen returned %v after its context had ended, want nil", err)
		}
	})
	await(tb, "call of wake after LISTEN", s.woken)
	return s
}

func (s *sleeper) wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// sleep makes one attempt to fall asleep, with the fetch that belongs to it.
func (s *sleeper) sleep(tb testing.TB) bool {
	tb.Helper()
	return s.roundTrip(tb, store.Request{Sleep: store.FallAsleep, Fetch: page(0)}).Asleep
}

// quiet verifies that what do does notifies nobody: notifications are delivered in the order of the commits, so
// that one sent afterwards is the first to be heard.
func (f *fixture) quiet(tb testing.TB, what string, do func()) {
	tb.Helper()
	channel := query[string](tb, f, `select substring(prosrc from 'pg_notify\(''([^'']+)''') from pg_proc where proname = 'outbox_wake'`)
	conn := connect(tb, f.dsn)
	if _, err := conn.Exec(tb.Context(), `listen `+pgx.Identifier{channel}.Sanitize()); err != nil {
		tb.Fatal(err)
	}
	do()
	f.exec(tb, `select pg_notify('`+channel+`', 'the end')`)
	for heard := 0; ; heard++ {
		n, err := conn.WaitForNotification(tb.Context())
		if err != nil {
			tb.Fatal(err)
		}
		if n.Payload == "the end" {
			if heard > 0 {
				tb.Errorf("%s: it notified %d times, want never", what, heard)
			}
			return
		}
	}
}

func TestInsertWakesTheSleeping(t *testing.T) {
	t.Parallel()
	s := listen(t, newFixture(t, store.Options{}))

	s.quiet(t, "before the relay ever slept", func() { s.insert(t, event("1")) })

	if !s.sleep(t) {
		t.Fatal("could not fall asleep, and nobody was inserting")
	}
	s.insert(t, event("2"))
	await(t, "wake-up by an insert", s.woken)
	s.exec(t, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 't', 'a', n::text, 'e', '' from generate_series(1, 10) n`)
	await(t, "wake-up by plain SQL", s.woken)

	response := s.roundTrip(t, store.Request{Sleep: store.WakeUp, Fetch: page(0)})
	if response.Asleep || len(response.Rows) != 12 {
		t.Errorf("after waking up: got asleep %v and %d rows, want awake and 12", response.Asleep, len(response.Rows))
	}
	s.quiet(t, "while the relay is awake", func() { s.insert(t, event("3")) })
}

// Nobody's search_path makes the trigger call another function than Postgres' own.
func TestTriggerWithAnySearchPath(t *testing.T) {
	s := listen(t, newFixture(t, store.Options{}))
	s.exec(t, `
create schema evil;
create function evil.pg_current_xact_id() returns xid8 language sql as $$ select (1/0)::text::xid8 $$;
create function evil.pg_try_advisory_xact_lock_shared(bigint) returns boolean language sql as $$ select 1/0 = 0 $$;
create function evil.current_setting(text, boolean) returns text language sql as $$ select (1/0)::text $$;
create function evil.texteq(text, text) returns boolean language sql as $$ select 1/0 = 0 $$;
create function evil.pg_notify(text, text) returns void language sql as $$ select 1/0 $$;
create function evil.equal(text, text) returns boolean language sql as $$ select 1/0 = 0 $$;
create operator evil.= (leftarg = text, rightarg = text, function = evil.equal)`)
	conn := connect(t, s.dsn)
	if _, err := conn.Exec(t.Context(), `set search_path = evil, pg_catalog, public`); err != nil {
		t.Fatal(err)
	}
	for _, asleep := range []bool{false, true} {
		if asleep && !s.sleep(t) {
			t.Fatal("not asleep")
		}
		_, err := conn.Exec(t.Context(), `insert into public.outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', 'a', 'e', '')`)
		if err != nil {
			t.Errorf("asleep %v: %v", asleep, err)
		}
	}
	await(t, "notification", s.woken)
}

func TestKeepSleepKeepsIt(t *testing.T) {
	t.Parallel()
	s := listen(t, newFixture(t, store.Options{}))
	s.sleep(t)
	s.roundTrip(t, store.Request{Fetch: page(0)}) // A poll.
	s.insert(t, event("1"))
	await(t, "wake-up by an insert after a poll", s.woken)
}

// Between an insert that saw the relay awake and its commit, the relay cannot fall asleep: nobody would tell it.
func TestOpenInsertKeepsAwake(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		begin []string
		end   string
		want  int // Rows to be seen after the end.
	}{
		"committed":          {[]string{`begin`, insertSQL}, `commit`, 1},
		"rolled back":        {[]string{`begin`, insertSQL}, `rollback`, 0},
		"repeatable read":    {[]string{`begin isolation level repeatable read`, `select 1`, insertSQL}, `commit`, 1},
		"serializable":       {[]string{`begin isolation level serializable`, `select 1`, insertSQL}, `commit`, 1},
		"savepoint":          {[]string{`begin`, `savepoint a`, insertSQL, `release savepoint a`}, `commit`, 1},
		"savepoint, beside":  {[]string{`begin`, insertSQL, `savepoint a`, insertSQL, `rollback to savepoint a`}, `commit`, 1},
		"connection dropped": {[]string{`begin`, insertSQL}, ``, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &sleeper{fixture: newFixture(t, store.Options{})}
			conn := connect(t, s.dsn)
			for _, sql := range tt.begin {
				if _, err := conn.Exec(t.Context(), sql); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			for range 3 {
				if s.sleep(t) {
					t.Fatal("fell asleep over an open insert")
				}
			}
			if tt.end == "" {
				if err := conn.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else if _, err := conn.Exec(t.Context(), tt.end); err != nil {
				t.Fatal(err)
			}
			var response store.Response
			eventually(t, "the relay can fall asleep", func() bool {
				response = s.roundTrip(t, store.Request{Sleep: store.FallAsleep, Fetch: page(0)})
				return response.Asleep
			})
			// The fetch that comes with falling asleep sees what kept it awake.
			if len(response.Rows) != tt.want {
				t.Errorf("when it fell asleep it saw %d rows, want %d", len(response.Rows), tt.want)
			}
		})
	}
}

const insertSQL = `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'a', 'i', 'e', '')`

// A savepoint that was rolled back took its insert along, so nothing of it keeps the relay awake.
func TestRolledBackSavepointDoesNotKeepAwake(t *testing.T) {
	t.Parallel()
	s := &sleeper{fixture: newFixture(t, store.Options{})}
	conn := connect(t, s.dsn)
	for _, sql := range []string{`begin`, `savepoint a`, insertSQL, `rollback to savepoint a`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if !s.sleep(t) {
		t.Error("could not fall asleep")
	}
	s = listen(t, s.fixture)
	// And once it sleeps, an insert in the same transaction notifies.
	for _, sql := range []string{insertSQL, `commit`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "wake-up", s.woken)
}

// A relay that never polls sees every event of trickling producers: there is no gap between looking and sleeping
// in which one could be missed.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Parallel()
	server := storetest.Start(t, "max_prepared_transactions=10")
	f := newFixtureAt(t, server.DSN(), store.Options{})
	c := &consumer{sleeper: listen(t, f), seen: make(map[uuid.UUID]bool)}

	// Nothing follows the last commit of a round that could make up for a wake-up that it should have caused.
	const (
		rounds    = 80
		producers = 8
	)
	conns := make([]*pgx.Conn, producers)
	for i := range conns {
		conns[i] = connect(t, f.dsn)
	}
	for round := range rounds {
		var producing sync.WaitGroup
		for i, conn := range conns {
			producing.Go(func() {
				if err := trickle(t.Context(), conn, round+i); err != nil {
					t.Error(err)
				}
			})
		}
		deadline := time.Now().Add(patience)
		for len(c.seen) < (round+1)*producers && time.Now().Before(deadline) && !t.Failed() {
			c.step(t, deadline)
		}
		producing.Wait()
		if got, want := len(c.seen), (round+1)*producers; got != want {
			t.Fatalf("%v after round %d began: saw %d events, want %d", patience, round, got, want)
		}
	}
	t.Logf("slept %d times, and was kept awake %d times", c.slept, c.kept)
	if c.slept < rounds/4 {
		t.Errorf("slept %d times in %d rounds, which shows nothing", c.slept, rounds)
	}
}

// trickle commits one event after a short while, in a way that depends on n.
func trickle(ctx context.Context, conn *pgx.Conn, n int) error {
	id := uuid.New()
	insert := `insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data) values ('` + id.String() + `', 't', 'a', 'i', 'e', '')`
	// The producer's own business, between and in its transactions.
	sleep := func(most float64) string {
		return `select pg_sleep(` + strconv.FormatFloat(rand.Float64()*most, 'f', 6, 64) + `)`
	}
	before, within := sleep(0.01), sleep(0.003)
	ways := [][]string{
		{before, insert},
		{before, `begin`, insert, within, `commit`},
		{before, `begin isolation level repeatable read`, `select from outbox`, within, insert, within, `commit`},
		{before, `begin`, `savepoint a`, insertSQL, `rollback to a`, within, `savepoint b`, insert, `release b`, within, `commit`},
		{before, `begin`, `savepoint a`, insert, `savepoint b`, insertSQL, `rollback to b`, `release a`, within, `commit`},
		{before, `begin`, insert, within, `prepare transaction '` + id.String() + `'`, within, `commit prepared '` + id.String() + `'`},
	}
	for _, sql := range ways[n%len(ways)] {
		_, err := conn.Exec(ctx, sql)
		if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "0A000" {
			// A transaction that has notified cannot be prepared; it is an ordinary one then.
			_, err = conn.Exec(ctx, insert)
			return err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// consumer is a relay that never polls: it fetches when it was woken, or when it is not asleep.
type consumer struct {
	*sleeper

	asleep      bool
	settled     []int64
	highest     int64
	seen        map[uuid.UUID]bool
	slept, kept int
}

// step waits until a fetch may find something, at most until deadline, and makes it.
func (c *consumer) step(t *testing.T, deadline time.Time) {
	t.Helper()
	request := store.Request{Settled: settledSeqs(c.settled), Sleep: store.FallAsleep, Fetch: page(c.highest)}
	wait := 2 * time.Millisecond // The relay, too, takes naps while a producer keeps it awake.
	if c.asleep {
		c.slept++
		request.Sleep, wait = store.WakeUp, time.Until(deadline)
	} else {
		c.kept++
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-c.woken:
	case <-timer.C:
		if c.asleep {
			return
		}
	}
	response := c.roundTrip(t, request)
	c.asleep = response.Asleep
	c.settled = seqs(response.Rows)
	for _, row := range response.Rows {
		c.highest = max(c.highest, row.Seq)
		if c.seen[row.ID] {
			t.Errorf("seq %d was seen again", row.Seq)
		}
		c.seen[row.ID] = true
	}
}

// A prepared transaction is an open one, whoever it belongs to by now.
func TestPreparedTransactions(t *testing.T) {
	t.Parallel()
	f := newFixtureAt(t, storetest.Start(t, "max_prepared_transactions=10").DSN(), store.Options{})
	prepare := func(name string) {
		t.Helper()
		for _, sql := range []string{`begin`, insertSQL, `prepare transaction '` + name + `'`} {
			f.exec(t, sql)
		}
	}
	prepare("one")
	if f.roundTrip(t, store.Request{Sleep: store.FallAsleep, Fetch: page(0)}).Asleep {
		t.Fatal("fell asleep over a prepared insert")
	}
	f.exec(t, `commit prepared 'one'`)
	response := f.roundTrip(t, store.Request{Sleep: store.FallAsleep, Fetch: page(0)})
	if !response.Asleep || len(response.Rows) != 1 {
		t.Errorf("after its commit: got asleep %v and %d rows, want true and 1", response.Asleep, len(response.Rows))
	}
	f.roundTrip(t, store.Request{Sleep: store.WakeUp, Settled: settledSeqs(seqs(response.Rows))})

	// The floor stays below it, whoever else is in the way.
	if _, err := connect(t, f.dsn).Exec(t.Context(), `begin; select pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	prepare("two")
	r := busyReader(t, f)
	f.exec(t, `commit prepared 'two'`)
	r.finds(t, 1)
}

func TestListenConnectsAgain(t *testing.T) {
	t.Parallel()
	s := listen(t, newFixture(t, store.Options{}))
	if !s.sleep(t) {
		t.Fatal("could not fall asleep")
	}
	for range 2 {
		if n := query[int](t, s.fixture, `
			select count(pg_terminate_backend(pid)) from pg_stat_activity
			 where datname = current_database() and application_name = 'outbox-relay listen'`); n != 1 {
			t.Fatalf("ended %d listeners, want 1", n)
		}
		await(t, "call of wake after the new LISTEN", s.woken)
		s.insert(t, event("1"))
		await(t, "wake-up by an insert", s.woken)
	}
}

func TestListenSurvivesAnOutage(t *testing.T) {
	t.Parallel()
	outbox := open(t, "postgres://postgres@127.0.0.1:1/none?sslmode=disable", store.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := outbox.Listen(ctx, func() { t.Error("wake was called and nobody was there to listen to") }); err != nil {
		t.Errorf("got %v, want nil since it was stopped", err)
	}
}

// What is requeued comes back below the floor.
func TestRequeueIsSeenBelowTheFloor(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		options store.Options
		decide  func(f *fixture) (int, error)
		want    []int64
	}{
		"requeued":       {store.Options{}, func(f *fixture) (int, error) { return f.Requeue(t.Context(), store.DeadKey{Seq: 1}) }, []int64{1}},
		"requeued, held": {store.Options{HoldDead: true}, func(f *fixture) (int, error) { return f.Requeue(t.Context(), store.DeadKey{Seq: 1}) }, []int64{1, 2}},
		"discarded":      {store.Options{HoldDead: true}, func(f *fixture) (int, error) { return f.Discard(t.Context(), store.DeadKey{Seq: 1}) }, []int64{2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := listen(t, newFixture(t, tt.options))
			s.insert(t, event("1"), event("1"))
			settled := []int64(nil)
			if !tt.options.HoldDead {
				settled = []int64{2}
			}
			s.roundTrip(t, store.Request{Settled: settledSeqs(settled), Dead: []store.Failure{{Ref: store.Ref{Seq: 1}, Attempts: 3, Reason: "refused"}}})
			// Other events come and go, and the floor rises.
			highest := int64(2)
			for range 6 {
				s.insert(t, event("2"))
				rows := s.roundTrip(t, store.Request{Fetch: page(highest)}).Rows
				if len(rows) != 1 {
					t.Fatalf("got %v, want only what was just inserted", seqs(rows))
				}
				highest = rows[0].Seq
				s.roundTrip(t, store.Request{Settled: settledSeqs([]int64{highest}), Fetch: page(highest, highest)})
			}
			if n, err := tt.decide(s.fixture); n != 1 || err != nil {
				t.Fatalf("got %d letters and error %v, want 1", n, err)
			}
			await(t, "wake-up", s.woken)
			if got := seqs(s.roundTrip(t, store.Request{Fetch: page(highest)}).Rows); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
