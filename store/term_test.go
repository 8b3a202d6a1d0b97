package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// A producer may use two-phase commit whether the relay sleeps or not.
func TestPrepareWhileAsleep(t *testing.T) {
	t.Parallel()
	server := storetest.Start(t, "max_prepared_transactions=10")
	s := listen(t, newFixtureAt(t, server.DSN(), store.Options{}))
	if !s.sleep(t) {
		t.Fatal("could not fall asleep")
	}
	s.exec(t, `begin`)
	s.exec(t, `set local outbox.notify = off`) // Postgres prepares no transaction that has notified.
	s.exec(t, insertSQL)
	s.exec(t, `prepare transaction 'one'`)
	s.exec(t, `commit prepared 'one'`)
}

// A term begins awake, whatever became of the session in the term before: not every elector owns it.
func TestTermBeginsAwake(t *testing.T) {
	t.Parallel()
	s := listen(t, newFixture(t, store.Options{}))
	if !s.sleep(t) {
		t.Fatal("could not fall asleep")
	}
	if _, err := s.Begin(t.Context(), "s", "me", 0); err != nil {
		t.Fatal(err)
	}
	s.quiet(t, "at the beginning of a term", func() { s.insert(t, event("1")) })
}

// The lock went with the session. A leader that does not know yet must not go on writing on another one.
func TestRoundTripEndsWithItsSession(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"))
	if _, err := f.Begin(t.Context(), "s", "me", 0); err != nil {
		t.Fatal(err)
	}
	f.terminate(t, backend(t, f.Session()))
	// Somebody else, such as the elector, is the one to notice.
	if err := f.Session().Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }); err == nil {
		t.Fatal("the session is still there")
	}
	response, err := f.leader(t).RoundTrip(t.Context(), store.Request{Settled: settledSeqs([]int64{1}), Sleep: store.FallAsleep, Fetch: page(0)})
	if err == nil {
		t.Errorf("a round trip without the leader's lock succeeded: %+v, left are %v", response, f.inserted(t))
	}
}

// Whoever still has an earlier term of the same session can do nothing with it: there is one leader.
func TestNextTermEndsTheFormer(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour})
	f.insert(t, event("1"))
	former, next := f.begin(t), f.begin(t)
	if response, err := former.RoundTrip(t.Context(), store.Request{Settled: settledSeqs([]int64{1})}); err == nil {
		t.Errorf("a round trip of the former term succeeded: %+v, left are %v", response, f.inserted(t))
	}
	if n, _, err := former.Settle(t.Context(), []store.Ref{{Seq: 1, ID: f.id(t, 1)}}, 1); err == nil {
		t.Errorf("the former term settled %d rows", n)
	}
	if response, err := next.RoundTrip(t.Context(), store.Request{Fetch: page(0)}); err != nil || len(response.Rows) != 1 {
		t.Errorf("the next term got %d rows, %v; want 1", len(response.Rows), err)
	}
}

// Whatever the broker said is recorded; a round trip that fails for it would fail for ever.
func TestAnyReasonIsRecorded(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"), event("2"))
	reason := "refused \x00 \xff"
	_, err := f.leader(t).RoundTrip(t.Context(), store.Request{
		Failed: []store.Failure{{Ref: store.Ref{Seq: 1}, Attempts: 1, Wait: time.Hour, Reason: reason}},
		Dead:   []store.Failure{{Ref: store.Ref{Seq: 2}, Attempts: 3, Reason: reason}},
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEmptyRoundTripIsNoProofOfLife(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.fetch(t)
	before, _ := f.Session().LastRoundTrip()
	f.terminate(t, query[uint32](t, f, `select pid from pg_stat_activity where datname = current_database() and application_name = 'outbox-relay'`))
	f.roundTrip(t, store.Request{})
	if after, _ := f.Session().LastRoundTrip(); !after.Equal(before) {
		t.Errorf("the server was asked nothing and is gone, and yet the last round trip began %v after the last real one", after.Sub(before))
	}
}

// A typing error in the DSN is not an old server.
func TestUnknownParameterIsNotAnOldServer(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	err := open(t, dsn+"&options=-c%20sslmod%3Ddisable", store.Options{}).Check(t.Context())
	if !errors.Is(err, store.ErrParameter) || errors.Is(err, store.ErrServerVersion) || !store.Fatal(err) {
		t.Errorf("got %v, want a fatal ErrParameter that is no ErrServerVersion", err)
	}
}
