package consumer

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// session is the connection that holds the consumer's lock: an [election.Session] on one connection of the pool.
type session struct {
	pool *pgxpool.Pool

	using sync.Mutex // Held during a use.
	conn  *pgxpool.Conn

	mu         sync.Mutex // Never held while waiting.
	generation uint64
	last       time.Time
}

func (s *session) Do(ctx context.Context, use func(ctx context.Context, conn *pgx.Conn) error) error {
	s.using.Lock()
	defer s.using.Unlock()
	if s.conn == nil || s.conn.Conn().IsClosed() {
		s.release()
		conn, err := s.pool.Acquire(ctx)
		if err != nil {
			return err
		}
		s.conn = conn
		s.mu.Lock()
		s.generation++
		s.last = time.Time{}
		s.mu.Unlock()
	}
	start := time.Now()
	if err := use(ctx, s.conn.Conn()); err != nil {
		return err
	}
	s.mu.Lock()
	s.last = start
	s.mu.Unlock()
	return nil
}

func (s *session) LastRoundTrip() (start time.Time, generation uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.generation
}

// Close ends the connection: a pool's connection that went back to the pool would keep the lock.
func (s *session) Close(ctx context.Context) error {
	s.using.Lock()
	defer s.using.Unlock()
	if s.conn == nil {
		return nil
	}
	err := s.conn.Conn().Close(ctx)
	s.release()
	return err
}

// release gives the connection back. The pool drops one that is closed.
func (s *session) release() {
	if s.conn != nil {
		s.conn.Release()
		s.conn = nil
	}
}
