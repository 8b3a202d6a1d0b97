package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Session is the relay's one dedicated Postgres connection. It holds the leader's lock, and the leader writes to the outbox on
// it alone: so whoever loses the lock can no longer write. Use is exclusive. A connection that broke is replaced at the next
// use, under a new generation.
type Session struct {
	connector *connector
	busy      chan struct{} // Holds one token while the connection is in use.

	// conn is only used by the goroutine that put the token into busy.
	conn *pgx.Conn

	// backend is the server's side of conn, for the same goroutine only.
	backend backend

	last atomic.Pointer[roundTrip]
	use  atomic.Pointer[use] // That is under way; nil for none.
	next atomic.Uint64       // The generation of the newest connection.
}

// backend is a server process. Process IDs are used again, so the moment of its start is part of its name.
type backend struct {
	pid  uint32
	born time.Time // Zero if the session's role may not know, as after ALTER ROLE … SET role.
}

// use is one use of the connection.
type use struct {
	backend

	start      time.Time
	generation uint64
}

// roundTrip is the last time that the server was known to be there.
type roundTrip struct {
	start      time.Time
	generation uint64
}

func newSession(c *connector) *Session {
	return &Session{connector: c, busy: make(chan struct{}, 1)}
}

// Do calls fn with the connection, for exclusive use, and opens a connection if there is none. If fn succeeds, the server was
// alive after the call began: see LastRoundTrip. If fn leaves the connection unusable, as a cancelled ctx does, the
// connection is closed.
func (s *Session) Do(ctx context.Context, fn func(ctx context.Context, conn *pgx.Conn) error) error {
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for the session: %w", context.Cause(ctx))
	}
	defer func() { <-s.busy }()

	if s.conn == nil {
		if err := s.open(ctx); err != nil {
			return err
		}
	}
	u := &use{s.backend, time.Now(), s.next.Load()} // From before the request: the answer says only that the server was there then.
	s.use.Store(u)
	defer s.use.Store(nil)
	err := fn(ctx, s.conn)
	if staleFunction(err) {
		_ = s.conn.Close(context.WithoutCancel(ctx)) // The error of fn is the one that matters.
	}
	if s.conn.IsClosed() {
		s.conn = nil
	} else if err == nil {
		s.lived(u.start, u.generation)
	}
	return err
}

// sessionPatience is how long the leader's work on the session waits for a sign of life: less than a lease lasts.
const sessionPatience = 4 * time.Second

// ErrNoAnswer is the error of [Session.DoPatiently] when there was no proof of life for as long as its patience.
var ErrNoAnswer = errors.New("no sign of life from Postgres")

// DoPatiently is Do for statements that may take any time. It ends fn's context once neither a use of the session nor
// [Outbox.Watch] has brought a proof of life for as long as patience. So a statement that waits or is slow goes on as long as
// the server answers that it does. A statement whose server is out of reach ends.
func (s *Session) DoPatiently(ctx context.Context, patience time.Duration, fn func(ctx context.Context, conn *pgx.Conn) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	latest := time.Now()
	var alarm *time.Timer
	alarm = time.AfterFunc(math.MaxInt64, func() {
		if last, _ := s.LastRoundTrip(); last.After(latest) {
			latest = last
		}
		switch left := time.Until(latest.Add(patience)); {
		case ctx.Err() != nil: // It has ended.
		case left > 0:
			alarm.Reset(left)
		default:
			cancel(fmt.Errorf("%w for %v", ErrNoAnswer, patience))
		}
	})
	defer alarm.Stop()
	alarm.Reset(patience)

	err := s.Do(ctx, fn)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrNoAnswer) && !errors.Is(err, ErrNoAnswer) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// lived notes that the server was alive at a time, unless a later time is known already: during a use that took long there
// may have been later proofs of life. A proof of life from an older connection does not count.
func (s *Session) lived(at time.Time, generation uint64) {
	for {
		last := s.last.Load()
		if last != nil && (last.generation > generation || last.generation == generation && !at.After(last.start)) {
			return
		}
		if s.last.CompareAndSwap(last, &roundTrip{at, generation}) {
			return
		}
	}
}

// LastRoundTrip returns the latest time at which the server is known to have kept the session, and the connection's
// generation. The generation changes with each new connection: whatever the old connection held is then gone. The time is
// when the last successful use of the connection began or, during a use that takes long, when one of its statements began, or
// when [Outbox.Watch] last asked the server and learnt that the session is alive.
//
// Invariant: Postgres does not end the session for its silence earlier than idle_session_timeout after that time.
// Why:
//  1. A use that succeeded: its last statement ended after the use began, and the timer starts when a statement ends.
//  2. A question of Watch: when the server answered, which was after the question was sent, the session's own process
//     was inside a statement. The timer does not run then; it starts when that statement ends, later still.
//  3. A statement within a use, of which the session has learnt the outcome (Outbox.try): the timer for a session that is idle
//     within its transaction is longer than a lease, and starts when a statement ends.
//  4. Nobody but the session itself gives up its locks. As long as its process lives, so do they, whatever the line to it
//     is like, and even if the process is stopped.
//
// Test: TestWatchRenewsTheLease, TestWatchSeesTheEndOfTheBackend, TestWatchTakesNoIdleBackendForLife.
func (s *Session) LastRoundTrip() (start time.Time, generation uint64) {
	if last := s.last.Load(); last != nil {
		return last.start, last.generation
	}
	return time.Time{}, 0
}

// Close ends the session and with it every lock it holds. The next Do opens another.
func (s *Session) Close(ctx context.Context) error {
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("close the session: %w", context.Cause(ctx))
	}
	defer func() { <-s.busy }()
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close(ctx)
	s.conn = nil
	if err != nil {
		return fmt.Errorf("close the session: %w", err)
	}
	return nil
}

// open opens the connection, as a new generation.
func (s *Session) open(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	of := backend{pid: conn.PgConn().PID()}
	var born *time.Time
	if err := conn.QueryRow(ctx, `select backend_start from pg_catalog.pg_stat_activity where pid = pg_backend_pid()`).Scan(&born); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx)) // The query's error is the one that matters.
		return fmt.Errorf("look at the session: %w", err)
	}
	if born != nil {
		of.born = *born
	}
	s.conn, s.backend = conn, of
	s.next.Add(1)
	return nil
}

func (s *Session) connect(ctx context.Context) (*pgx.Conn, error) {
	return s.connector.connect(ctx, forSession())
}
