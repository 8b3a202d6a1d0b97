package election_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// patience is how long a test waits for what takes milliseconds, on a machine that may be busy with others.
const patience = 20 * time.Second

// eventually waits until condition holds, and fails the test if that takes too long.
func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatalf("%v later it is still not so that %s", patience, what)
		}
	}
}

// await waits for a signal, and fails the test if that takes too long.
func await[T any](tb testing.TB, what string, signal <-chan T) T {
	tb.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	select {
	case v := <-signal:
		return v
	case <-deadline.C:
		tb.Fatalf("%v later: no %s", patience, what)
		panic("unreachable")
	}
}

// session is a dedicated connection that keeps the promises of election.Session, as store.Session does; the layers
// of the house keep that one out of here.
type session struct {
	dsn  string
	busy chan struct{} // Holds one token while conn is in use.
	conn *pgx.Conn

	opened atomic.Uint64
	last   atomic.Pointer[roundTrip]
	pid    atomic.Uint32 // Of the server process behind the newest connection,
	listen atomic.Bool   // and whether it has been told to LISTEN.
}

// TraceQueryStart implements [pgx.QueryTracer].
func (*session) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (s *session) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if data.Err == nil && data.CommandTag.String() == "LISTEN" {
		s.listen.Store(true)
	}
}

type roundTrip struct {
	start      time.Time
	generation uint64
}

func newSession(tb testing.TB, dsn string) *session {
	tb.Helper()
	s := &session{dsn: dsn, busy: make(chan struct{}, 1)}
	tb.Cleanup(func() {
		if err := s.Close(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func (s *session) Do(ctx context.Context, use func(ctx context.Context, conn *pgx.Conn) error) error {
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.busy }()
	if s.conn == nil {
		config, err := pgx.ParseConfig(s.dsn)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		config.Tracer = s
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		s.conn = conn
		s.listen.Store(false)
		s.pid.Store(conn.PgConn().PID())
		s.opened.Add(1)
	}
	start := time.Now()
	err := use(ctx, s.conn)
	if s.conn.IsClosed() {
		s.conn = nil
	} else if err == nil {
		s.last.Store(&roundTrip{start, s.opened.Load()})
	}
	return err
}

func (s *session) LastRoundTrip() (start time.Time, generation uint64) {
	if last := s.last.Load(); last != nil {
		return last.start, last.generation
	}
	return time.Time{}, 0
}

func (s *session) Close(ctx context.Context) error {
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.busy }()
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn = nil
	return conn.Close(ctx)
}

func connect(tb testing.TB, dsn string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.WithoutCancel(tb.Context())) })
	return conn
}

func query[T any](tb testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	tb.Helper()
	var value T
	if err := conn.QueryRow(tb.Context(), sql, args...).Scan(&value); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return value
}
