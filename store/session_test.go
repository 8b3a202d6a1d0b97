package store_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
)

// backend uses the session and returns the server process behind it, as the server says.
func backend(tb testing.TB, session *store.Session) (pid uint32) {
	tb.Helper()
	err := session.Do(tb.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `select pg_backend_pid()`).Scan(&pid)
	})
	if err != nil {
		tb.Fatal(err)
	}
	return pid
}

// terminate ends a session from the server's side and waits until it is gone.
func (f *fixture) terminate(tb testing.TB, pid uint32) {
	tb.Helper()
	if !query[bool](tb, f, `select pg_terminate_backend($1)`, pid) {
		tb.Fatalf("backend %d is not there", pid)
	}
	f.awaitEnd(tb, pid)
}

func (f *fixture) awaitEnd(tb testing.TB, pid uint32) {
	tb.Helper()
	eventually(tb, "the backend is gone", func() bool {
		return !query[bool](tb, f, `select exists (select from pg_stat_activity where pid = $1)`, pid)
	})
}

func TestSessionIsUsedByOneAtATime(t *testing.T) {
	session := newFixture(t, store.Options{}).Session()
	var users, most atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				err := session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
					if n := users.Add(1); n > most.Load() {
						most.Store(n)
					}
					defer users.Add(-1)
					return conn.Ping(ctx)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d used it at the same time, want 1", most.Load())
	}
}

func TestSessionIsWaitedForAsLongAsTheContext(t *testing.T) {
	session := newFixture(t, store.Options{}).Session()
	pid := backend(t, session)
	inside, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- session.Do(t.Context(), func(context.Context, *pgx.Conn) error {
			close(inside)
			<-leave
			return nil
		})
	}()
	await(t, "use of the session", inside)
	why := errors.New("no more time")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	err := session.Do(ctx, func(context.Context, *pgx.Conn) error {
		t.Error("got the session, which somebody else uses")
		return nil
	})
	if !errors.Is(err, why) {
		t.Errorf("Do: got %v, want %v", err, why)
	}
	if err := session.Close(ctx); !errors.Is(err, why) {
		t.Errorf("Close: got %v, want %v", err, why)
	}
	close(leave)
	if err := await(t, "end of the use", done); err != nil {
		t.Error(err)
	}
	if got := backend(t, session); got != pid {
		t.Errorf("it is another connection, to %d instead of %d; nothing was wrong with the first", got, pid)
	}
}

func TestSessionIsReplacedUnderANewGeneration(t *testing.T) {
	f := newFixture(t, store.Options{})
	session := f.Session()
	for name, breakIt := range map[string]func(t *testing.T, pid uint32){
		"ended by the server": func(t *testing.T, pid uint32) {
			t.Helper()
			f.terminate(t, pid)
			if err := session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }); err == nil {
				t.Error("the first use after the end of the session succeeded; whoever relied on it must learn that it ended")
			}
		},
		"closed": func(t *testing.T, pid uint32) {
			t.Helper()
			for range 2 {
				if err := session.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			f.awaitEnd(t, pid)
		},
		"left in the middle of a statement": func(t *testing.T, pid uint32) {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- session.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
					_, err := conn.Exec(ctx, `select pg_sleep(3600)`)
					return err
				})
			}()
			eventually(t, "the statement runs", func() bool {
				return query[bool](t, f, `select coalesce(wait_event, '') = 'PgSleep' from pg_stat_activity where pid = $1`, pid)
			})
			cancel()
			if err := await(t, "end of the use", done); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want %v", err, context.Canceled)
			}
			f.awaitEnd(t, pid)
		},
		"silent for longer than it is allowed": func(t *testing.T, pid uint32) {
			t.Helper()
			err := session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, `set idle_session_timeout = 50`)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			f.awaitEnd(t, pid)
			if err := session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }); err == nil {
				t.Error("the first use after the end of the session succeeded")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pid := backend(t, session)
			err := session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, `select pg_advisory_lock(1)`)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			before, generation := session.LastRoundTrip()
			breakIt(t, pid)
			if start, now := session.LastRoundTrip(); now != generation || start.Before(before) {
				t.Errorf("before another is opened: got %v of generation %d, want that of generation %d", start, now, generation)
			}
			if !query[bool](t, f, `select pg_try_advisory_lock(1)`) {
				t.Error("its lock is still held")
			}
			f.exec(t, `select pg_advisory_unlock(1)`)
			if got := backend(t, session); got == pid {
				t.Errorf("it is still the connection to %d", pid)
			}
			if _, now := session.LastRoundTrip(); now <= generation {
				t.Errorf("got generation %d after %d", now, generation)
			}
		})
	}
}

func TestLastRoundTrip(t *testing.T) {
	session := newFixture(t, store.Options{}).Session()
	if start, generation := session.LastRoundTrip(); !start.IsZero() || generation != 0 {
		t.Errorf("before the first: got %v, generation %d, want zeroes", start, generation)
	}

	before := time.Now()
	var inside time.Time
	err := session.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		inside = time.Now()
		return conn.Ping(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	// A proof of life is from when the question was asked, however long the answer took.
	first, generation := session.LastRoundTrip()
	if first.Before(before) || first.After(inside) || generation != 1 {
		t.Errorf("got %v, generation %d, want between %v and %v, generation 1", first, generation, before, inside)
	}

	wrong := errors.New("wrong")
	if err := session.Do(t.Context(), func(context.Context, *pgx.Conn) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("got %v, want %v", err, wrong)
	}
	if start, _ := session.LastRoundTrip(); !start.Equal(first) {
		t.Errorf("a use that failed counts: %v after %v", start, first)
	}
	backend(t, session)
	second, generation := session.LastRoundTrip()
	if !second.After(first) || generation != 1 {
		t.Errorf("after a second: got %v, generation %d, want later than %v, generation 1", second, generation, first)
	}

	// A connection that does not come about is no generation.
	ctx, cancel := context.WithCancel(t.Context())
	if err := session.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := session.Do(ctx, func(context.Context, *pgx.Conn) error { return nil }); err == nil {
		t.Error("got a session with a context that has ended")
	}
	if start, generation := session.LastRoundTrip(); !start.Equal(second) || generation != 1 {
		t.Errorf("after an attempt: got %v, generation %d, want %v and 1", start, generation, second)
	}
}

func TestSessionsSettings(t *testing.T) {
	f := newFixture(t, store.Options{})
	// Whatever is the default in this database, for a role, or in the DSN.
	f.exec(t, `do $$ begin
		execute format('alter database %I set default_transaction_isolation = ''serializable''', current_database());
		execute format('alter database %I set default_transaction_read_only = on', current_database());
		execute format('alter database %I set enable_indexscan = on', current_database());
	end $$`)
	want := map[string]string{
		"application_name":                 "outbox-relay",
		"client_connection_check_interval": "1s",
		"enable_seqscan":                   "off",
		"enable_bitmapscan":                "off",
		"enable_indexscan":                 "on",
		"jit":                              "off",
		"statement_timeout":                "0",
		"synchronous_commit":               "off",
		"default_transaction_isolation":    "read committed",
		"default_transaction_read_only":    "off",
		"tcp_keepalives_idle":              "5",
		"tcp_keepalives_interval":          "2",
		"tcp_keepalives_count":             "3",
		"tcp_user_timeout":                 "8000",
		"work_mem":                         "7MB", // What does no harm is left to the user.
	}
	outbox := open(t, f.dsn+"&statement_timeout=1&enable_seqscan=on&work_mem=7MB", store.Options{})
	t.Cleanup(func() { _ = outbox.Close(context.WithoutCancel(t.Context())) })
	err := outbox.Session().Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		for name, want := range want {
			var got string
			if err := conn.QueryRow(ctx, `select current_setting($1)`, name).Scan(&got); err != nil {
				return err
			}
			if got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
