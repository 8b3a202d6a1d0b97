package election_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// A lease that is lost, or whose term is over, is not valid, and never becomes so again.
func TestLeaseOfAnEndedTerm(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, observer *pgx.Conn, r *rival, term *term){
		"lost": func(t *testing.T, observer *pgx.Conn, r *rival, _ *term) {
			t.Helper()
			query[bool](t, observer, `select pg_terminate_backend($1)`, r.session.pid.Load())
		},
		"left": func(_ *testing.T, _ *pgx.Conn, _ *rival, term *term) { term.leave(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := storetest.NewDatabase(t)
			observer := connect(t, dsn)
			options := election.AdvisoryLockOptions{ResignChannel: resigned}
			r := newRival(t, dsn, options)
			c := campaign(t, contender{elector: r})
			term := c.elected(t)
			end(t, observer, r, term)
			await(t, "end of the leader's context", term.ctx.Done())
			for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
				if term.lease.Valid() {
					t.Fatal("the lease is valid after the term")
				}
				<-time.After(5 * time.Millisecond)
			}
		})
	}
}

// A leader that resigns between a standby's attempt and its LISTEN is not waited for.
func TestResignationBeforeListen(t *testing.T) {
	t.Parallel()
	dsn := storetest.NewDatabase(t)
	options := election.AdvisoryLockOptions{ResignChannel: resigned, Retry: 3 * time.Second}
	leader := campaign(t, contender{elector: newRival(t, dsn, options)})
	leader.elected(t)
	s := &slowSession{session: newSession(t, dsn), before: func(use int) {
		if use == 1 { // After the attempt.
			leader.stop()
			if err := <-leader.done; err != nil {
				t.Error(err)
			}
		}
	}}
	next := campaign(t, contender{elector: election.NewAdvisoryLock(s, options)})
	start := time.Now()
	next.elected(t)
	if took := time.Since(start); took > time.Second {
		t.Errorf("elected after %v although nobody led", took)
	}
}

type slowSession struct {
	*session

	uses   int
	before func(use int)
}

func (s *slowSession) Do(ctx context.Context, use func(ctx context.Context, conn *pgx.Conn) error) error {
	s.before(s.uses)
	s.uses++
	return s.session.Do(ctx, use)
}

// A stop while a renewal is under way resigns as gracefully as any other.
func TestStopWhileRenewing(t *testing.T) {
	t.Parallel()
	dsn := storetest.NewDatabase(t)
	observer := connect(t, dsn)
	direct, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	slow := *direct
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	slow.Host = listener.Addr().String()
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := new(net.Dialer).DialContext(t.Context(), "tcp", direct.Host)
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
			go func() {
				buf := make([]byte, 1<<16)
				for {
					n, err := server.Read(buf)
					if err != nil {
						_ = client.Close()
						return
					}
					time.Sleep(100 * time.Millisecond)
					_, _ = client.Write(buf[:n])
				}
			}()
		}
	}()
	r := newRival(t, slow.String(), election.AdvisoryLockOptions{ResignChannel: resigned})
	c := campaign(t, contender{elector: r})
	c.elected(t)
	generation := r.session.opened.Load()
	start, _ := r.session.LastRoundTrip()
	time.Sleep(time.Until(start.Add(1150 * time.Millisecond))) // In the middle of the ping.
	c.stop()
	if err := await(t, "end of Run", c.done); err != nil {
		t.Error(err)
	}
	if n := query[int](t, observer, `select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2 and database = (select oid from pg_database where datname = current_database())`); n > 0 {
		t.Error("the lock is still held")
	}
	if got := r.session.opened.Load(); got != generation {
		t.Errorf("resigned on another session, of generation %d instead of %d", got, generation)
	}
}

// Run returns nil when its context has ended, also if lead says that it did.
func TestStopIsNoError(t *testing.T) {
	for name, elector := range map[string]elector{"always": election.Always{}, "lock": newRival(t, storetest.NewDatabase(t), election.AdvisoryLockOptions{})} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			err := elector.Run(ctx, func(ctx context.Context, _ *election.Lease) error {
				cancel()
				<-ctx.Done()
				return ctx.Err()
			})
			if err != nil {
				t.Errorf("Run returned %v, want nil", err)
			}
		})
	}
}

var _ = errors.New
