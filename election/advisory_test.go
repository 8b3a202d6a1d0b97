package election_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store/storetest"
)

const resigned = "outbox_resigned"

// rival is an advisory-lock elector on a session of its own.
type rival struct {
	*election.AdvisoryLock

	session *session
}

func newRival(tb testing.TB, dsn string, options election.AdvisoryLockOptions) *rival {
	tb.Helper()
	s := newSession(tb, dsn)
	return &rival{election.NewAdvisoryLock(s, options), s}
}

// waits reports whether the rival waits for a resignation.
func (r *rival) waits() bool { return r.Standby() && r.session.listen.Load() }

func TestAdvisoryLock(t *testing.T) {
	conformAmongRivals(t, func(t *testing.T) func(t *testing.T) contender {
		t.Helper()
		dsn := storetest.NewDatabase(t)
		observer := connect(t, dsn)
		return func(t *testing.T) contender {
			t.Helper()
			r := newRival(t, dsn, election.AdvisoryLockOptions{Key: 7, Table: 8, ResignChannel: resigned})
			return contender{
				elector: r,
				waits:   r.waits,
				kill: func() {
					if !query[bool](t, observer, `select pg_terminate_backend($1)`, r.session.pid.Load()) {
						t.Error("the leader's session is not there")
					}
				},
			}
		}
	})
}

// Polling finds the lock free as well.
func TestAdvisoryLockWithoutAChannel(t *testing.T) {
	t.Parallel()
	dsn := storetest.NewDatabase(t)
	leader := campaign(t, contender{elector: newRival(t, dsn, election.AdvisoryLockOptions{})})
	leader.elected(t)
	r := newRival(t, dsn, election.AdvisoryLockOptions{Retry: 10 * time.Millisecond})
	next := campaign(t, contender{elector: r})
	eventually(t, "the other stands by", r.Standby)
	leader.stop()
	next.elected(t)
}

func TestAdvisoryLocksNumber(t *testing.T) {
	t.Parallel()
	dsn := storetest.NewDatabase(t)
	observer := connect(t, dsn)
	locks := func() int {
		return query[int](t, observer, `
			select count(*) from pg_locks join pg_database d on d.oid = database
			 where locktype = 'advisory' and datname = current_database() and objsubid = 2 and mode = 'ExclusiveLock' and granted`)
	}
	// All of these lead at the same time: other tables, and other keys.
	var all []*candidate
	options := []election.AdvisoryLockOptions{{}, {Key: 1}, {Table: 1}, {Key: -1}, {Key: 1 << 40}, {Key: -1 << 63}}
	for _, o := range options {
		o.ResignChannel = resigned
		c := campaign(t, contender{elector: newRival(t, dsn, o)})
		c.elected(t)
		all = append(all, c)
	}
	if got := locks(); got != len(options) {
		t.Errorf("got %d locks, want %d", got, len(options))
	}
	if !query[bool](t, observer, `select not pg_try_advisory_lock(1, 0) and not pg_try_advisory_lock(0, 1) and not pg_try_advisory_lock(-1, 0)`) {
		t.Error("the lock is not pg_advisory_lock(Key, Table)")
	}
	for _, c := range all {
		c.stop()
		if err := await(t, "end of Run", c.done); err != nil {
			t.Error(err)
		}
	}
	// Given back before Run returns.
	if got := locks(); got != 0 {
		t.Errorf("%d locks are still held", got)
	}
}

func TestResignationGivesAllLocksBack(t *testing.T) {
	t.Parallel()
	dsn := storetest.NewDatabase(t)
	observer := connect(t, dsn)
	r := newRival(t, dsn, election.AdvisoryLockOptions{})
	c := campaign(t, contender{elector: r})
	c.elected(t)
	err := r.session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `select pg_advisory_lock(4711)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.stop()
	if err := await(t, "end of Run", c.done); err != nil {
		t.Error(err)
	}
	if !query[bool](t, observer, `select pg_try_advisory_lock(4711)`) {
		t.Error("the sleep lock stays with a session that leads no more")
	}
}

func TestStandby(t *testing.T) {
	t.Parallel()
	dsn := storetest.NewDatabase(t)
	options := election.AdvisoryLockOptions{ResignChannel: resigned}
	first, second := newRival(t, dsn, options), newRival(t, dsn, options)
	if first.Standby() {
		t.Error("stands by before it campaigns")
	}
	leader := campaign(t, contender{elector: first})
	leader.elected(t)
	if first.Standby() {
		t.Error("a leader stands by")
	}
	next := campaign(t, contender{elector: second})
	eventually(t, "the other stands by", second.waits)
	leader.stop()
	next.elected(t)
	if second.Standby() {
		t.Error("stands by although it leads")
	}
}

func TestCampaignEndsWhenWaitingDoesNotHelp(t *testing.T) {
	t.Parallel()
	var attempts atomic.Int32
	hopeless := errors.New("the wrong kind of server")
	r := newRival(t, "postgres://127.0.0.1:1/none?sslmode=disable", election.AdvisoryLockOptions{
		// The first failures may be an outage.
		Fatal: func(error) bool { return attempts.Add(1) == 3 },
	})
	err := r.Run(t.Context(), func(context.Context, *election.Lease) error { return hopeless })
	if err == nil || errors.Is(err, hopeless) || attempts.Load() != 3 {
		t.Errorf("got %v after %d attempts, want the error of connecting after 3", err, attempts.Load())
	}
}

// While Postgres is away everybody campaigns; when it is back, one is elected.
func TestElectionOutlastsAnOutage(t *testing.T) {
	t.Parallel()
	server := storetest.Start(t)
	options := election.AdvisoryLockOptions{ResignChannel: resigned}
	watch := &watch{}
	all := []*candidate{
		watch.campaign(t, contender{elector: newRival(t, server.DSN(), options)}),
		watch.campaign(t, contender{elector: newRival(t, server.DSN(), options)}),
	}
	_, term := electedOf(t, all)
	if err := server.Stop("immediate"); err != nil {
		t.Fatal(err)
	}
	await(t, "end of the leader's context", term.ctx.Done())
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, term = electedOf(t, all)
	if !term.lease.Valid() {
		t.Error("elected without a valid lease")
	}
	for _, c := range all {
		c.stop()
		if err := await(t, "end of Run", c.done); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	}
	watch.verify(t)
}

// A leader that is frozen, here by somebody who does not let go of its session, is replaced only when it can no longer
// believe that it leads.
func TestFrozenLeaderIsReplacedAfterItsLease(t *testing.T) {
	t.Parallel()
	dsn := storetest.NewDatabase(t)
	options := election.AdvisoryLockOptions{ResignChannel: resigned}
	frozen := newRival(t, dsn, options)
	leader := campaign(t, contender{elector: frozen})
	term := leader.elected(t)
	next := campaign(t, contender{elector: newRival(t, dsn, options)})

	thaw, thawed := make(chan struct{}), make(chan error, 1)
	go func() {
		thawed <- frozen.session.Do(t.Context(), func(context.Context, *pgx.Conn) error { <-thaw; return errors.New("frozen") })
	}()
	start := time.Now()
	eventually(t, "the lease has run out", func() bool {
		if len(next.terms) > 0 {
			t.Fatal("another was elected while the lease was valid")
		}
		return !term.lease.Valid()
	})
	ranOut := time.Since(start)
	next.elected(t)
	t.Logf("the lease ran out after %v, and the next was elected after %v", ranOut, time.Since(start))
	close(thaw)
	if err := await(t, "thaw", thawed); err == nil {
		t.Error("the session was none")
	}
	await(t, "end of the frozen leader's context", term.ctx.Done())
	if term.lease.Valid() {
		t.Error("the lease is valid again")
	}
}
