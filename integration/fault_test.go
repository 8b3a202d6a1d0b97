package integration_test

import (
	"regexp"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

var anything = regexp.MustCompile(`.+`)

// A leader that is frozen for longer than its lease is replaced, and does no harm when it goes on.
func TestFrozenLeader(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	frozen := w.Relay()
	frozen.Leads()
	standby := w.Relay()
	standby.WaitFor(anything, "standing by")
	p := w.Produce(4)
	p.Wrote(50)
	frozen.Freeze()
	standby.Leads()
	harness.Pause(t.Context(), 2*time.Second)
	frozen.Thaw()
	frozen.WaitFor(anything, "no longer leading")
	p.Wrote(200)
	p.Audit()
	for i, relay := range []*harness.Process{frozen, standby} {
		if code := relay.Stop(); code != 0 {
			t.Errorf("relay %d: exit code %d after SIGTERM, want 0", i, code)
		}
	}
}

// A broker that is frozen with events on their way to it: they are sent again, and stored once.
func TestFrozenBroker(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	w.Relay("OUTBOX_MAX_ATTEMPTS=1").Leads()
	p := w.Produce(4)
	for round := range int64(2) {
		p.Wrote(100 + 200*round)
		w.NATS.Freeze()
		harness.Pause(t.Context(), 7*time.Second) // The freeze itself.
		w.NATS.Thaw()
	}
	p.Audit()
	if got := dead(w); got != 0 {
		t.Errorf("%d dead letters, want none", got)
	}
}

// A relay stops in time when it is asked to, even if the broker has stopped answering.
func TestStopWithoutAnswers(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	relay := w.Relay("OUTBOX_SHUTDOWN_TIMEOUT=2s")
	relay.Leads()
	p := w.Produce(4)
	p.Wrote(50)
	w.NATS.Freeze()
	p.Wrote(100)
	asked := time.Now()
	if code := relay.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	if took := time.Since(asked); took > 10*time.Second { // A busy machine takes its time.
		t.Errorf("it took %v to stop, with a timeout of 2 s", took)
	}
	w.NATS.Thaw()
	w.Relay()
	p.Audit()
}

// The same, if the network takes no more data either.
func TestStopWithoutRoom(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	relay := w.Relay("OUTBOX_SHUTDOWN_TIMEOUT=2s", "OUTBOX_BATCH_BYTES=67108864")
	conn := w.Connect()
	b := w.Backlog().Migrate().Add(conn, 1)
	b.Audit(conn)
	w.NATS.Freeze()
	b.Size = 500 << 10
	b.Add(conn, 60)
	harness.Pause(t.Context(), time.Second) // The relay writes as much as it can.
	asked := time.Now()
	if code := relay.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	if took := time.Since(asked); took > 10*time.Second { // A busy machine takes its time.
		t.Errorf("it took %v to stop, with a timeout of 2 s", took)
	}
	w.NATS.Thaw()
	w.Relay()
	b.Audit(conn)
}

// Relays that elect by a key-value bucket take over from each other as others do: after a stop, a kill or a freeze.
func TestElectionByJetStream(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	const election = "OUTBOX_ELECTION=jetstream"
	first := w.Relay(election)
	first.Leads()
	second := w.Relay(election)
	second.WaitFor(anything, "standing by")
	p := w.Produce(4)
	p.Wrote(50)
	if code := first.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	second.Leads()
	third := w.Relay(election)
	third.WaitFor(anything, "standing by")
	p.Wrote(150)
	second.Kill()
	third.Leads()
	fourth := w.Relay(election)
	fourth.WaitFor(anything, "standing by")
	p.Wrote(250)
	third.Freeze()
	fourth.Leads()
	harness.Pause(t.Context(), time.Second)
	third.Thaw()
	third.WaitFor(anything, "no longer leading")
	p.Wrote(350)
	p.Audit()
}

// The database keeps ending the relays' sessions: the leader's, its listener's, the standby's.
func TestTerminatedSessions(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	relays := []*harness.Process{w.Relay(), w.Relay()}
	relays[0].WaitFor(anything, "tables are up to date")
	w.Backlog().Migrate()
	p := w.Produce(8)
	conn := w.Connect()
	terminated := 0
	for range 20 {
		var n int
		err := conn.QueryRow(t.Context(), `select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'outbox-relay%' and datname = current_database()`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		terminated += n
		harness.Pause(t.Context(), 200*time.Millisecond) // The rhythm of the terminations.
	}
	t.Logf("%d sessions were ended", terminated)
	p.Audit()
	for i, relay := range relays {
		if code := relay.Stop(); code != 0 {
			t.Errorf("relay %d: exit code %d after SIGTERM, want 0", i, code)
		}
	}
}

// A stream that somebody deletes is created again, and events go on; without an archive what it held is gone.
func TestDeletedStream(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	relay := w.Relay("OUTBOX_RETAIN=0s")
	relay.Leads()
	relay.WaitFor(anything, "a guarantee is weakened", "retain is 0")
	conn, js := w.Connect(), w.JetStream()
	w.Exec(conn, insert, "a", []byte("1"))
	arrived(w, 1, 10*time.Second)
	if err := js.DeleteStream(t.Context(), "OUTBOX"); err != nil {
		t.Fatal(err)
	}
	w.Exec(conn, insert, "a", []byte("2"))
	w.Exec(conn, insert, "a", []byte("3"))
	relay.WaitFor(anything, "publishing paused")
	arrived(w, 2, 10*time.Second)
	relay.WaitFor(anything, "created again")
	if got := stored(w); got[0] != "2" || got[1] != "3" {
		t.Errorf("got %q, want 2 and 3", got)
	}
}

// A relay whose password the broker does not take says so, and needs no restart once it does.
func TestWrongPassword(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true, NATSPassword: "new-secret"})
	relay := w.Relay("OUTBOX_NATS_URL=" + w.URL())
	w.NATS.Kill()
	w.NATS.Login("relay", "old-secret")
	w.NATS.Start()
	early := w.Relay("OUTBOX_TABLE=early", "OUTBOX_NATS_URL=nats://relay:new-secret@"+w.NATS.Address()) // Never let in so far.
	conn := w.Connect()
	harness.Eventually(t, 10*time.Second, "the outbox exists", func() bool {
		_, err := conn.Exec(t.Context(), insert, "a", []byte("1"))
		return err == nil
	})
	for _, p := range []*harness.Process{relay, early} {
		p.WaitFor(regexp.MustCompile(`(publishing paused|not fit to lead)`), "Authorization Violation")
	}
	harness.Pause(t.Context(), time.Second) // More than two refusals.
	w.NATS.Kill()
	w.NATS.Login("relay", "new-secret")
	w.NATS.Start()
	arrived(w, 1, 10*time.Second)
	for _, p := range []*harness.Process{relay, early} {
		harness.Eventually(t, 10*time.Second, "/readyz is 200", func() bool { return p.Get("/readyz") == 200 })
		if p.Said("secret") {
			t.Error("a password is in the log")
		}
	}
}

// After an outage a relay is ready again, even if the only pending event is one that the broker refuses.
func TestReadyAfterPoison(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true, MaxPayload: 64 << 10})
	relay := w.Relay("OUTBOX_RETRY_BACKOFF=10ms")
	relay.Leads()
	conn := w.Connect()
	w.NATS.Kill()
	relay.WaitFor(anything, "publishing paused")
	w.Exec(conn, insert, "a", make([]byte, 100<<10))
	w.NATS.Start()
	harness.Eventually(t, 10*time.Second, "a dead letter", func() bool { return dead(w) == 1 })
	harness.Eventually(t, 5*time.Second, "/readyz is 200", func() bool { return relay.Get("/readyz") == 200 })
}
