//go:build unix

package store_test

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// A server process that is stopped by a signal is inside its statement as far as anybody can see. It keeps the lock, so
// nobody else leads, however long that lasts.
func TestWatchOfAStoppedBackend(t *testing.T) {
	t.Parallel()
	server := storetest.Start(t)
	w := watched(t, newFixtureAt(t, server.DSN(), store.Options{}))
	pid := backend(t, w.Session())
	done := w.patiently(t, `select pg_sleep(1)`)
	eventually(t, "the statement runs", func() bool {
		return query[bool](t, w.fixture, `select coalesce(wait_event, '') = 'PgSleep' from pg_stat_activity where pid = $1`, pid)
	})
	if err := syscall.Kill(int(pid), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stopped := time.Now(); time.Since(stopped) < 7*time.Second; time.Sleep(100 * time.Millisecond) {
		if valid, locked := w.leads(t); !valid || !locked {
			t.Errorf("the lease is valid: %v, the lock is held: %v", valid, locked)
			break
		}
	}
	if err := syscall.Kill(int(pid), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "end of the statement", done); err != nil {
		t.Error(err)
	}
}

// One that is stopped while nothing runs on it never begins the statement.
func TestWatchOfABackendStoppedBetweenStatements(t *testing.T) {
	t.Parallel()
	server := storetest.Start(t)
	w := watched(t, newFixtureAt(t, server.DSN(), store.Options{}))
	pid := backend(t, w.Session())
	if err := syscall.Kill(int(pid), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	before, _ := w.Session().LastRoundTrip()
	err := await(t, "end of the statement", w.patiently(t, `select 1`))
	if after, _ := w.Session().LastRoundTrip(); !errors.Is(err, store.ErrNoAnswer) || !after.Equal(before) {
		t.Errorf("got %v, and a proof of life %v later, want %v and none", err, after.Sub(before), store.ErrNoAnswer)
	}
	if err := syscall.Kill(int(pid), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
