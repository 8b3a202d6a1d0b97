package relay_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/admin"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// patience is how long anything here may take before the test fails.
const patience = 20 * time.Second

func configure(dsn, natsURL string) relay.Config { return relay.Config{Postgres: dsn, NATS: natsURL} }

func assemble(t *testing.T, c relay.Config) *relay.Relay {
	t.Helper()
	r, err := relay.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// running is a relay that runs until the end of the test, if not stopped before.
type running struct {
	*relay.Relay

	t     *testing.T
	stop  context.CancelFunc
	ended chan error
}

func run(t *testing.T, a *relay.Relay) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &running{Relay: a, t: t, stop: stop, ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.ended <- a.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return r
}

// end waits for Run to return, and says what.
func (r *running) end() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(patience):
		r.t.Fatalf("Run has not returned within %v", patience)
		return nil
	}
}

// await polls until the status is such that it fulfils the condition.
func (r *running) await(what string, fulfils func(relay.Status) bool) relay.Status {
	r.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s := r.Status()
		if fulfils(s) {
			return s
		}
		select {
		case <-tick.C:
		case err := <-r.ended:
			r.t.Fatalf("%s: Run returned %v before", what, err)
		case <-deadline:
			r.t.Fatalf("%s: not within %v, but %+v", what, patience, s)
		}
	}
}

func publishing(s relay.Status) bool { return s.Publishing }

func exec(t *testing.T, dsn, sql string) {
	t.Helper()
	conn := connect(t, dsn)
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// sessions counts those of relays in the database.
func sessions(t *testing.T, dsn string) (n int) {
	t.Helper()
	query := `select count(*) from pg_stat_activity where datname = current_database() and application_name like 'outbox-relay%'`
	conn := connect(t, dsn)
	if err := errors.Join(conn.QueryRow(t.Context(), query).Scan(&n), conn.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	return n
}

// expectNoSessions waits for the server's side of closed connections, and not until Postgres ends those left open.
func expectNoSessions(t *testing.T, dsn string) {
	t.Helper()
	deadline := time.Now().Add(election.LeaseDuration)
	for n := sessions(t, dsn); n > 0; n = sessions(t, dsn) {
		if time.Now().After(deadline) {
			t.Errorf("%d sessions are left", n)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestNewTellsAllFaults(t *testing.T) {
	c := configure("postgres://localhost:port", "embedded")
	c.Stream.Subject, c.Stream.Name, c.Stream.CloudEventsSource = "{topic}", "A.B", "%"
	c.BatchSize, c.Strict, c.Retain, c.Election.Kind = -1, true, relay.NoArchive, "dice"
	_, err := relay.New(c)
	faults, ok := errors.AsType[*relay.ConfigError](err)
	if !ok {
		t.Fatalf("New: %v, want a %T", err, faults)
	}
	if !strings.HasPrefix(err.Error(), "the configuration has faults:\n  ") {
		t.Errorf("no headline:\n%v", err)
	}
	for _, want := range []string{
		"\n  Stream.Subject: subject template", "\n  NATS: got \"embedded\"", "\n  database DSN: ", "\n  Stream: \"A.B\"",
		"\n  CloudEvents source", "BatchSize is -1", "\n  option Retain: ", "\n  Election.Kind: got \"dice\"",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it lacks %q:\n%v", want, err)
		}
	}
	// What libpq's variables name may be another's database.
	if _, err := relay.New(relay.Config{}); err == nil || !strings.Contains(err.Error(), "database DSN: it is empty") {
		t.Errorf("New without Postgres: %v", err)
	}
}

func TestRunWaitsForPostgresRelaysAndCleansUp(t *testing.T) {
	server := storetest.Start(t)
	if err := server.Stop(postgres.Fast); err != nil {
		t.Fatal(err)
	}
	nats := streamtest.Start(t)
	elected := make(chan int64, 1)
	c := configure(server.DSN(), nats.URL())
	c.Name, c.Hooks = "the only one", relay.Hooks{Elected: func(term int64) { elected <- term }}
	a := assemble(t, c)
	if s := a.Status(); s.State != relay.Campaigning || s.Since.IsZero() || s.Trouble == "" {
		t.Errorf("before Run the status is %+v, want that of one who campaigns, and why it does not lead", s)
	}
	r := run(t, a)
	s := r.await("Postgres is missed", func(s relay.Status) bool { return strings.Contains(s.Trouble, "Postgres") })
	if s.State != relay.Campaigning || s.Ready() || !strings.Contains(s.Trouble, "cannot reach Postgres") {
		t.Errorf("without Postgres the status is %+v, want that of one who campaigns, and why", s)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := r.await("it publishes", publishing); s.Trouble != "" {
		t.Errorf("with Postgres there is trouble: %s", s.Trouble)
	}
	if term := <-elected; term != 1 {
		t.Errorf("elected for term %d, want 1", term)
	}

	conn := connect(t, server.DSN())
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		return a.Outbox().Table().Insert(t.Context(), tx, store.Event{Topic: "t", AggregateType: "A", AggregateID: "1", EventType: "E"})
	})
	if err != nil {
		t.Fatal(err)
	}
	r.await("the event is published", func(s relay.Status) bool { return s.Published == 1 })
	var leader string
	if err := conn.QueryRow(t.Context(), `select leader from outbox_relay`).Scan(&leader); err != nil || leader != "the only one" {
		t.Errorf("the leader is %q, %v; want the only one", leader, err)
	}
	if n := sessions(t, server.DSN()); n == 0 {
		t.Error("the leader has no session; this test does not count them right")
	}

	if err := a.Run(t.Context()); !errors.Is(err, relay.ErrRunning) {
		t.Errorf("a second Run beside the first: %v, want %v", err, relay.ErrRunning)
	}
	if s := a.Status(); s.State != relay.Leading {
		t.Errorf("and it left the status %+v, want that of a leader", s)
	}
	r.stop()
	if err := r.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if s := a.Status(); s.State != relay.Stopped || s.Published != 1 {
		t.Errorf("after Run the status is %+v, want stopped, with one event published", s)
	}
	expectNoSessions(t, server.DSN())

	again := run(t, a)
	again.await("it publishes again", publishing)
}

// The relay never looks dead to whoever restarts dead ones, from before Run until after it.
func TestItIsHealthyUntilItHasRun(t *testing.T) {
	a := assemble(t, configure(storetest.NewDatabase(t), streamtest.Start(t).URL()))
	handler := admin.NewHandler(admin.Identity{}, a.Status, http.NotFoundHandler())
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz", nil))
			if answer.Code != http.StatusOK {
				t.Errorf("/healthz = %d %s at look %d", answer.Code, answer.Body, n)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	run(t, a).await("it publishes", publishing)
	close(stop)
	<-stopped
}

func TestRunStopsWhileItWaits(t *testing.T) {
	r := run(t, assemble(t, configure("postgres://127.0.0.1:1/nowhere", "nats://127.0.0.1:1")))
	r.await("Postgres is missed", func(s relay.Status) bool { return s.Trouble != "" })
	r.stop()
	if err := r.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if s := r.Status(); s.State != relay.Stopped {
		t.Errorf("after Run the status is %+v, want stopped", s)
	}
}

func TestRunWaitsForTheMigrationOfOthers(t *testing.T) {
	c := configure(storetest.NewDatabase(t), streamtest.Start(t).URL())
	others := assemble(t, c)
	c.NoMigrate = true
	r := run(t, assemble(t, c))
	r.await("the table is missed", func(s relay.Status) bool { return strings.Contains(s.Trouble, store.ErrNoTable.Error()) })
	if err := others.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await("it publishes", publishing)
}

func TestPrepareIsDoneOrSaysSo(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	a := assemble(t, configure(dsn, "nats://127.0.0.1:1"))
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := a.Prepare(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Prepare with a context that has ended: %v, want %v", err, context.Canceled)
	}
	if err := a.Prepare(t.Context()); err != nil {
		t.Error(err)
	}
	exec(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`)
	expectNoSessions(t, dsn)
}

func TestRunReturnsWhatWaitingDoesNotMend(t *testing.T) {
	for _, migrate := range []bool{true, false} {
		c := configure(storetest.NewDatabase(t), "nats://127.0.0.1:1")
		c.NoMigrate = !migrate
		exec(t, c.Postgres, `create table outbox (id bigserial primary key)`)
		r := run(t, assemble(t, c))
		if err := r.end(); !store.Fatal(err) || !errors.Is(err, store.ErrForeignTable) {
			t.Errorf("with migrate = %v: Run = %v, want %v", migrate, err, store.ErrForeignTable)
		}
	}

	nats := streamtest.Start(t)
	_, err := nats.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c := configure(storetest.NewDatabase(t), nats.URL())
	c.Strict = true
	r := run(t, assemble(t, c))
	if err := r.end(); !errors.Is(err, stream.ErrRefused) {
		t.Errorf("with a stream of a short window: Run = %v, want %v", err, stream.ErrRefused)
	}
	expectNoSessions(t, c.Postgres)
}
