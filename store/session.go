package store

import (
	"context"
	"fmt"
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

	last atomic.Pointer[roundTrip]
	next atomic.Uint64 // The generation of the newest connection.
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
		conn, err := s.connect(ctx)
		if err != nil {
			return err
		}
		s.conn = conn
		s.next.Add(1)
	}
	start := time.Now() // From before the request: the answer says only that the server was there then.
	err := fn(ctx, s.conn)
	if s.conn.IsClosed() {
		s.conn = nil
	} else if err == nil {
		s.last.Store(&roundTrip{start: start, generation: s.next.Load()})
	}
	return err
}

// LastRoundTrip returns when the last successful use of the connection began, and the connection's
// generation: a number that changes whenever it had to be opened anew, so that what was held on the old one
// is known to be gone.
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

func (s *Session) connect(ctx context.Context) (*pgx.Conn, error) {
	return s.connector.connect(ctx, forSession())
}
