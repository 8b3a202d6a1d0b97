package election

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// DefaultLockRetry is how often a standby of an [AdvisoryLock] tries to get the lock: nobody tells it that the leader was
// killed. A leader that resigns tells it at once.
const DefaultLockRetry = 200 * time.Millisecond

// Time budgets of the advisory-lock elector.
const (
	// idleTimeout is when Postgres ends a silent session, such as that of a frozen process. It is longer than LeaseDuration,
	// so the leader has stopped before its lock becomes free.
	idleTimeout = LeaseDuration + time.Second
	// renewAfter is how long the session may be silent before the elector asks it for a sign of life. The leader's own work on
	// the session counts as one.
	renewAfter = 1100 * time.Millisecond
	// renewTimeout bounds one such question, so that a second one still fits into the lease.
	renewTimeout = 2 * time.Second
	// unlockTimeout bounds giving the lock back. If the session does not answer in that time, it is closed instead: the
	// process must end within a second.
	unlockTimeout = 700 * time.Millisecond
)

// Session is one dedicated Postgres connection; store.Session implements it. It must not lead through a pooler in transaction
// mode: there the next client would have the lock.
type Session interface {
	// Do lends the connection for exclusive use, opening one if there is none.
	Do(ctx context.Context, use func(ctx context.Context, conn *pgx.Conn) error) error
	// LastRoundTrip returns when the last successful Do began, or a later time at which the server is known to have kept the
	// session and its locks. The second result is a number that changes with each new connection.
	LastRoundTrip() (start time.Time, generation uint64)
	// Close ends the connection, and the locks that it holds.
	Close(ctx context.Context) error
}

// AdvisoryLockOptions configure an [AdvisoryLock]. The zero value works, for one outbox a database.
type AdvisoryLockOptions struct {
	// Key and Table are the two halves of the lock, pg_advisory_lock(Key, Table). Key is the same for all relays of one outbox.
	// Table is the outbox's own (store.Table.LockKey), so relays of two outboxes in one database do not compete. Both halves
	// have 32 bits; a Key that needs more is folded into 32.
	Key   int64
	Table int32
	// ResignChannel is the NOTIFY channel on which a leader says that it resigns. Empty: standbys only poll.
	ResignChannel string
	// Retry is how often a standby tries to get the lock. The default is DefaultLockRetry.
	Retry time.Duration
	// Fatal tells errors that end Run from those it waits out. The default waits out all of them.
	Fatal func(error) bool
	// Logger receives what the elector waits for. The default discards it.
	Logger *slog.Logger
}

// AdvisoryLock elects whoever holds a session-level advisory lock in Postgres.
type AdvisoryLock struct {
	*campaign

	session Session
	options AdvisoryLockOptions
}

// NewAdvisoryLock returns an elector that takes its lock on session.
func NewAdvisoryLock(session Session, options AdvisoryLockOptions) *AdvisoryLock {
	return &AdvisoryLock{newCampaign(LeaseDuration, cmp.Or(options.Retry, DefaultLockRetry), options.Fatal, options.Logger), session, options}
}

// Run campaigns until it is elected, calls lead, and campaigns again when lead has returned, until ctx ends. The
// context that lead gets ends with the lease; lead must return soon after. Run returns nil when ctx has ended,
// and otherwise the error of lead, or one that Fatal knows. The lock is given back before Run returns, and the
// standbys are told.
func (a *AdvisoryLock) Run(ctx context.Context, lead func(ctx context.Context, lease *Lease) error) error {
	return a.run(ctx, func(ctx context.Context) (heldLease, error) {
		generation, err := a.acquire(ctx)
		return &lock{a, generation}, err
	}, lead)
}

// Standby reports whether another relay led when Postgres was last asked, not long ago.
func (a *AdvisoryLock) Standby() bool { return a.standby() }

// acquire returns once the lock is held, with the generation of the connection that holds it.
func (a *AdvisoryLock) acquire(ctx context.Context) (generation uint64, err error) {
	listening, waiting := uint64(0), false
	for {
		var locked bool
		err := a.session.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			// Polled, not awaited with pg_advisory_lock: a statement that waits holds back vacuum in the whole database.
			ctx, cancel := context.WithTimeout(ctx, renewTimeout)
			defer cancel()
			return conn.QueryRow(ctx, `select pg_try_advisory_lock($1, $2) from set_config('idle_session_timeout', $3, false)`,
				fold(a.options.Key), a.options.Table, strconv.FormatInt(idleTimeout.Milliseconds(), 10)).Scan(&locked)
		})
		if err != nil {
			return 0, err
		}
		_, generation = a.session.LastRoundTrip()
		if locked {
			return generation, nil
		}
		a.standBy(ctx, !waiting)
		waiting = true
		if err := a.await(ctx, listening != generation); err != nil {
			return 0, err
		}
		listening = generation
	}
}

// await returns when a leader resigned or Retry has passed.
func (a *AdvisoryLock) await(ctx context.Context, listen bool) error {
	if a.options.ResignChannel == "" {
		pause(ctx, a.retry)
		return context.Cause(ctx)
	}
	return a.session.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		if listen {
			if _, err := conn.Exec(ctx, "listen "+pgx.Identifier{a.options.ResignChannel}.Sanitize()); err != nil {
				return fmt.Errorf("listen for resignations: %w", err)
			}
			return nil // The leader may have resigned before the LISTEN: try the lock first.
		}
		// A wait that times out leaves the connection usable: nothing is in transit on it.
		wait, cancel := context.WithTimeout(ctx, a.retry)
		defer cancel()
		if _, err := conn.WaitForNotification(wait); err != nil && wait.Err() == nil {
			return fmt.Errorf("wait for a resignation: %w", err)
		}
		return context.Cause(ctx)
	})
}

// lock is the held lock: it is on one connection.
type lock struct {
	*AdvisoryLock

	generation uint64
}

// until implements heldLease.
func (l *lock) until() (time.Time, bool) {
	start, current := l.session.LastRoundTrip()
	return start.Add(LeaseDuration), current == l.generation
}

// renew implements heldLease. A statement of the leader may take longer than the lease. Then renew cannot use the session, but
// LastRoundTrip moves on as long as another connection (store.Outbox.Watch) sees that the server executes that statement.
func (l *lock) renew(ctx context.Context) error {
	lease := NewLease(l.until)
	for {
		start, _ := l.session.LastRoundTrip()
		if !pause(ctx, time.Until(start.Add(renewAfter))) {
			return nil
		}
		if !lease.Valid() {
			return fmt.Errorf("%w: no sign of life from Postgres for %v, or another session", ErrLeaseLost, LeaseDuration)
		}
		if start, _ = l.session.LastRoundTrip(); time.Since(start) < renewAfter {
			continue // The leader's own work was the sign of life.
		}
		// The session may be busy until after the deadline.
		turn, cancel := context.WithDeadline(ctx, start.Add(LeaseDuration))
		given := false
		err := l.session.Do(turn, func(ctx context.Context, conn *pgx.Conn) error {
			given = true
			if start, _ := l.session.LastRoundTrip(); time.Since(start) < renewAfter {
				return errRenewed
			}
			// If the leader stops meanwhile, do not break the connection: the leader resigns on it.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTimeout)
			defer cancel()
			return conn.Ping(ctx)
		})
		late := turn.Err() != nil
		cancel()
		switch {
		case err == nil, errors.Is(err, errRenewed), ctx.Err() != nil:
		case late && !given && lease.Valid():
			// The leader has been inside a statement all the time, and LastRoundTrip says that its server lives: the lease is
			// valid without a ping.
		default:
			return fmt.Errorf("%w: %w", ErrLeaseLost, err)
		}
	}
}

// errRenewed says that the leader's own work renewed the lease while the renewal waited for its turn. It is an error so that
// the session does not count it as a round trip.
var errRenewed = errors.New("renewed by other work")

// resign implements heldLease. If it is not known whether the lock was given back, it closes the session.
func (l *lock) resign(ctx context.Context) {
	if NewLease(l.until).Valid() {
		unlocking, cancel := context.WithTimeout(ctx, unlockTimeout)
		defer cancel()
		err := l.session.Do(unlocking, func(ctx context.Context, conn *pgx.Conn) error {
			batch := &pgx.Batch{}
			// All of them: the session may hold the sleep lock of package store, too.
			batch.Queue(`select pg_advisory_unlock_all()`)
			if l.options.ResignChannel != "" {
				batch.Queue(`select pg_notify($1, '')`, l.options.ResignChannel)
			}
			return conn.SendBatch(ctx, batch).Close()
		})
		if err == nil {
			return
		}
		l.log.LogAttrs(ctx, slog.LevelWarn, "could not resign; closing the session instead", slog.Any("error", err))
	}
	ctx, cancel := context.WithTimeout(ctx, unlockTimeout)
	defer cancel()
	if err := l.session.Close(ctx); err != nil {
		l.log.LogAttrs(ctx, slog.LevelDebug, "closing the session", slog.Any("error", err))
	}
}

// fold maps a key to 32 bits. A key that fits stays the same.
func fold(key int64) int32 {
	if key < math.MinInt32 || key > math.MaxInt32 {
		key ^= key >> 32
	}
	return int32(key)
}
