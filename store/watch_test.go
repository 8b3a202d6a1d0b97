package store_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// lease is how long a leader may act after the last proof of life, as package election has it.
const lease = 5 * time.Second

// watching is a session with a leader's lock, and a watcher beside it.
type watching struct {
	*fixture

	mu    sync.Mutex // Protects what follows.
	found []store.Finding
}

func watched(t *testing.T, f *fixture) *watching {
	t.Helper()
	w := &watching{fixture: f}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.Watch(ctx, func(f store.Finding) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.found = append(w.found, f)
		})
	}()
	t.Cleanup(func() {
		cancel()
		await(t, "end of the watch", ended)
	})
	w.lead(t)
	return w
}

// lead takes the leader's lock, which ends with the session's silence.
func (w *watching) lead(t *testing.T) {
	t.Helper()
	err := w.Session().Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `select pg_advisory_lock(1, $1) from set_config('idle_session_timeout', '6000', false)`, w.Table().LockKey())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// leads reports whether a leader may go on, and whether somebody has the lock.
func (w *watching) leads(t *testing.T) (valid, locked bool) {
	t.Helper()
	last, _ := w.Session().LastRoundTrip()
	locked = query[bool](t, w.fixture, `select exists (select from pg_locks where locktype = 'advisory' and objsubid = 2 and granted and objid = $1
	    and database = (select oid from pg_database where datname = current_database()))`, uint32(w.Table().LockKey()))
	return time.Since(last) < lease, locked
}

// news are the findings so far that are to be logged.
func (w *watching) news() (news []store.Finding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.found {
		if !f.Known {
			news = append(news, f)
		}
	}
	return news
}

// patiently runs a statement as the relay does its round trips.
func (w *watching) patiently(t *testing.T, sql string) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		done <- w.Session().DoPatiently(t.Context(), 3*time.Second, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, sql)
			return err
		})
	}()
	return done
}

// A statement that waits for longer than the lease costs nothing, and the log can say for whom it waits.
func TestWatchRenewsTheLease(t *testing.T) {
	t.Parallel()
	w := watched(t, newFixture(t, store.Options{}))
	blocker := connect(t, w.dsn+"&application_name=migration")
	tx, err := blocker.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `lock table outbox in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	done := w.patiently(t, `select count(*) from public.outbox`)
	for time.Since(start) < 12*time.Second {
		if valid, locked := w.leads(t); !valid || !locked {
			t.Fatalf("after %v: the lease is valid: %v, the lock is held: %v", time.Since(start), valid, locked)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "end of the statement", done); err != nil {
		t.Errorf("the statement failed: %v", err)
	}
	if valid, _ := w.leads(t); !valid {
		t.Error("after the statement the lease has run out")
	}
	eventually(t, "it is reported to be over", func() bool {
		news := w.news()
		return len(news) > 0 && news[len(news)-1].Over
	})
	news := w.news()
	if len(news) != 2 {
		t.Fatalf("got %d findings, want one and its end: %+v", len(news), news)
	}
	first, last := news[0], news[1]
	pid := blocker.PgConn().PID()
	if first.Kind != store.FindingLock || first.Holder.PID != pid || first.Holder.Application != "migration" || first.Holder.State != "idle in transaction" ||
		first.Holder.Age <= 0 || first.Lock != (store.Lock{Mode: "AccessShareLock", Type: "relation", Relation: "public.outbox"}) || first.Waited > 3*time.Second {
		t.Errorf("got %+v, want the lock of pid %d within seconds", first, pid)
	}
	if last.Waited < 11*time.Second {
		t.Errorf("at the end it had waited for %v, want 12 s", last.Waited)
	}
	for _, part := range []string{"public.outbox", "migration", "idle in transaction", "pg_terminate_backend("} {
		if !strings.Contains(first.Text(), part) {
			t.Errorf("the text does not say %q: %s", part, first.Text())
		}
	}
	t.Log(first.Text())
	t.Log(last.Text())
}

// A line is a TCP proxy to the server whose connections can be frozen; those that are opened later work.
type line struct {
	address string

	mu    sync.Mutex // Protects what follows.
	gates []chan struct{}
}

// newLine returns a line to the server behind dsn, and the DSN that leads through it.
func newLine(t *testing.T, dsn string) (*line, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{address: u.Host}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go l.serve(t.Context(), conn)
		}
	}()
	u.Host = listener.Addr().String()
	return l, u.String()
}

func (l *line) serve(ctx context.Context, client net.Conn) {
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.address)
	if err != nil {
		_ = client.Close()
		return
	}
	frozen := make(chan struct{})
	l.mu.Lock()
	l.gates = append(l.gates, frozen)
	l.mu.Unlock()
	forward := func(to, from net.Conn) {
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			select {
			case <-frozen: // Neither bytes nor ends come through.
				<-ctx.Done()
			default:
			}
			if err != nil || n == 0 {
				break
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		_, _ = to.Close(), from.Close()
	}
	go forward(server, client)
	forward(client, server)
}

// freeze lets nothing more through on the connections that there are.
func (l *line) freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, gate := range l.gates {
		close(gate)
	}
	l.gates = nil
}

// frozenWatch is a watch of a session whose line freezes in the middle of a statement of two seconds.
func frozenWatch(t *testing.T) (w *watching, pid uint32, done <-chan error, ends time.Time) {
	t.Helper()
	f := newFixture(t, store.Options{})
	l, dsn := newLine(t, f.dsn)
	w = watched(t, &fixture{Outbox: open(t, dsn, store.Options{}), dsn: f.dsn, conn: f.conn})
	pid = backend(t, w.Session())
	done = w.patiently(t, `select pg_sleep(2)`)
	eventually(t, "the statement runs", func() bool {
		return query[bool](t, f, `select coalesce(wait_event, '') = 'PgSleep' from pg_stat_activity where pid = $1`, pid)
	})
	ends = time.Now().Add(2 * time.Second) // At the latest.
	l.freeze()
	return w, pid, done, ends
}

// Who waits for an answer that is lost gives up: that the server has ended its statement, and keeps the session until it
// has been silent for long, is no proof of life.
func TestWatchTakesNoIdleBackendForLife(t *testing.T) {
	t.Parallel()
	w, pid, done, ends := frozenWatch(t)
	if err := await(t, "end of the statement", done); !errors.Is(err, store.ErrNoAnswer) {
		t.Errorf("got %v, want %v", err, store.ErrNoAnswer)
	}
	// After the statement's two seconds there are three of patience, which began when it was last seen, at least.
	if patient := time.Since(ends); patient > 6*time.Second {
		t.Errorf("it took %v after the statement's end, want about 3 s", patient)
	}
	if last, _ := w.Session().LastRoundTrip(); last.After(ends) {
		t.Errorf("a proof of life is from %v after the statement's end", last.Sub(ends))
	}
	// The lock outlives the lease.
	for valid := true; valid; valid, _ = w.leads(t) {
		if _, locked := w.leads(t); !locked {
			t.Fatal("the lock is free while the lease is valid")
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.awaitEnd(t, pid)
}

func TestWatchSeesTheEndOfTheBackend(t *testing.T) {
	t.Parallel()
	w, pid, done, _ := frozenWatch(t)
	w.terminate(t, pid)
	ended := time.Now()
	if err := await(t, "end of the statement", done); !errors.Is(err, store.ErrNoAnswer) {
		t.Errorf("got %v, want %v", err, store.ErrNoAnswer)
	}
	if last, _ := w.Session().LastRoundTrip(); last.After(ended) {
		t.Errorf("a proof of life is from %v after the end of the session", last.Sub(ended))
	}
}

// A role that may not see what others do is told who they are.
func TestWatchByAnOrdinaryRole(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Options{})
	role := "relay_" + query[string](t, f, `select md5(random()::text)`)
	f.exec(t, `create role `+role+` login; `+f.Table().Grants(role))
	t.Cleanup(func() {
		if _, err := f.conn.Exec(context.WithoutCancel(t.Context()), `drop owned by `+role+`; drop role `+role); err != nil {
			t.Error(err)
		}
	})
	outbox := open(t, f.dsn+"&user="+role, store.Options{})
	t.Cleanup(func() { _ = outbox.Close(context.WithoutCancel(t.Context())) })
	w := watched(t, &fixture{Outbox: outbox, dsn: f.dsn, conn: f.conn})
	f.exec(t, `set application_name = 'migration'; begin; lock table outbox in access exclusive mode`)
	alter := connect(t, f.dsn+"&application_name=alter")
	altered := make(chan error, 1)
	go func() {
		_, err := alter.Exec(t.Context(), `alter table outbox alter topic set storage main`)
		altered <- err
	}()
	eventually(t, "the other waits", func() bool {
		return query[bool](t, f, `select exists (select from pg_locks where pid = $1 and not granted)`, alter.PgConn().PID())
	})
	done := w.patiently(t, `select count(*) from public.outbox`)
	eventually(t, "the blocker is reported", func() bool { return len(w.news()) > 0 })
	if valid, _ := w.leads(t); !valid {
		t.Error("the lease has run out")
	}
	f.exec(t, `rollback`)
	if err := await(t, "end of the statement", done); err != nil {
		t.Error(err)
	}
	if err := await(t, "end of the other statement", altered); err != nil {
		t.Error(err)
	}
	got := w.news()[0]
	if got.Holder.PID != f.conn.PgConn().PID() || got.Holder.Application != "migration" || got.Holder.Waits || got.Holder.State != "" || got.Holder.Age != 0 {
		t.Errorf("got %+v, want the session that waits for nobody, as far as the role may see", got.Holder)
	}
	if len(got.Others) != 1 || got.Others[0].PID != alter.PgConn().PID() || !got.Others[0].Waits {
		t.Errorf("got %+v, want the one that stands in between", got.Others)
	}
	t.Log(got.Text())
}

// Who prepares a transaction and forgets it has no process to be ended.
func TestWatchNamesAPreparedTransaction(t *testing.T) {
	t.Parallel()
	server := storetest.Start(t, "max_prepared_transactions=10")
	w := watched(t, newFixtureAt(t, server.DSN(), store.Options{}))
	w.exec(t, `begin; lock table outbox in access exclusive mode; insert into outbox_migrations (version) values (1000); prepare transaction 'it''s forgotten'`)
	done := w.patiently(t, `select count(*) from public.outbox`)
	eventually(t, "the blocker is reported", func() bool { return len(w.news()) > 0 })
	w.exec(t, `rollback prepared 'it''s forgotten'`)
	if err := await(t, "end of the statement", done); err != nil {
		t.Error(err)
	}
	got := w.news()[0]
	if got.Holder.Kind != store.HolderPrepared || got.Holder.Name != "it's forgotten" || !strings.Contains(got.Text(), `rollback prepared 'it''s forgotten'`) {
		t.Errorf("got %+v: %s", got, got.Text())
	}
	t.Log(got.Text())
}

// A slow statement is blamed on the transaction that keeps dead rows.
func TestWatchNamesWhoHoldsTheHorizon(t *testing.T) {
	t.Parallel()
	w := watched(t, newFixture(t, store.Options{}))
	idle := connect(t, w.dsn+"&application_name=report")
	if _, err := idle.Exec(t.Context(), `begin isolation level repeatable read; select 1`); err != nil {
		t.Fatal(err)
	}
	w.exec(t, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 't', 'a', n::text, 'e', '' from generate_series(1, 20000) n; delete from outbox`)
	done := w.patiently(t, `select pg_sleep(15)`)
	eventually(t, "it is reported", func() bool { return len(w.news()) > 0 })
	got := w.news()[0]
	if got.Kind != store.FindingHorizon || got.Holder.PID != idle.PgConn().PID() || got.Holder.Application != "report" || got.DeadRows < 20000 || got.Holder.Age < 10*time.Second {
		t.Errorf("got %+v", got)
	}
	t.Log(got.Text())
	if _, err := idle.Exec(t.Context(), `rollback`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end is reported", func() bool { news := w.news(); return news[len(news)-1].Over })
	if err := await(t, "end of the statement", done); err != nil {
		t.Error(err)
	}
	t.Log(w.news()[1].Text())
}
