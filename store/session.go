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

// Session is the relay's one dedicated Postgres connection. The leader's lock lives on it, and so does all
// that the leader does to the outbox: what needs the lock ends with it. Use is exclusive; a connection that
// broke is replaced at the next use, under a new generation.
type Session struct {
	connector *connector
	busy      chan struct{} // Holds one token while the connection is in use.

	// conn belongs to whoever put the token into busy.
	conn *pgx.Conn

	// backend is the server's side of conn, and belongs to the same.
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

// Do gives fn the connection, which is nobody else's meanwhile, and opens one if there is none. If fn
// succeeds, that was proof of life from before the call: see LastRoundTrip. If fn leaves the connection
// unusable (as a cancelled ctx does), it is closed.
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
	if s.conn.IsClosed() {
		s.conn = nil
	} else if err == nil {
		s.lived(u.start, u.generation)
	}
	return err
}

// sessionPatience is how long the leader's work on the session waits for a sign of life: less than a lease lasts.
const sessionPatience = 4 * time.Second

// ErrNoAnswer ends a use of the session that [Session.DoPatiently] has lost its patience with.
var ErrNoAnswer = errors.New("no sign of life from Postgres")

// DoPatiently is Do for statements of which nobody knows how long they take. It ends fn's context once there has been
// no proof of life for as long as patience, whether from the session's uses or from [Outbox.Watch]. So a statement that
// waits or is slow goes on as long as its server says that it does, and one whose server is out of reach ends.
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

// lived notes that the server was known to be there at a time. What is known already is not forgotten: a use that took
// long began before the proofs of life that came meanwhile, and those may be of a connection that is gone.
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
// generation: a number that changes whenever it had to be opened anew, so that what was held on the old one is known to
// be gone. That time is when the last successful use of the connection began or, during a use that takes long, when
// [Outbox.Watch] last asked a question that the server answered with yes.
//
// Invariant: Postgres does not end the session for its silence earlier than idle_session_timeout after that time.
// Why:
//  1. A use that succeeded: its last statement ended after the use began, and the timer starts when a statement ends.
//  2. A question of Watch: when the server answered, which was after the question was sent, the session's own process
//     was inside a statement. The timer does not run then; it starts when that statement ends, later still.
//  3. Nobody but the session itself gives up its locks. As long as its process lives, so do they, whatever the line to it
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
