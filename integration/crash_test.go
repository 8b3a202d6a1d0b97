package integration_test

import (
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

// Nothing is missing, stored twice or out of order however often the relay is killed in the middle of its work.
func TestKilledRelay(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	first := w.Relay()
	first.Leads()
	p := w.Produce(8)
	for kills := range int64(8) {
		p.Wrote((kills + 1) * 100)
		first.Kill()
		first = w.Relay()
	}
	p.Audit()
	if code := first.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
}

// The same while the broker and the database crash, with two relays.
func TestKilledServers(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	relays := []*harness.Process{w.Relay(), w.Relay()}
	conn := w.Connect()
	harness.Eventually(t, 20*time.Second, "the outbox exists", func() bool {
		_, err := conn.Exec(t.Context(), `select from outbox`)
		return err == nil
	})
	p := w.Produce(8)
	for round := range int64(3) {
		p.Wrote(round*300 + 100)
		w.NATS.Kill()
		p.Wrote(round*300 + 200) // Producers do not need the broker.
		w.NATS.Start()
		p.Wrote(round*300 + 300)
		if err := w.Postgres.Stop(postgres.Immediate); err != nil {
			t.Fatal(err)
		}
		if err := w.Postgres.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p.Wrote(1000)
	p.Audit()
	for i, relay := range relays {
		if code := relay.Stop(); code != 0 {
			t.Errorf("relay %d: exit code %d after SIGTERM, want 0", i, code)
		}
	}
}
