package integration_test

import (
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// Nothing is missing, stored twice or out of order while the stream's leaders crash and a follower freezes.
func TestCluster(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true, Cluster: true})
	relays := []*harness.Process{w.Relay(), w.Relay()}
	js := w.JetStream()
	w.Cluster.Healthy(js)
	p := w.Produce(8)
	for round := range int64(3) {
		p.Wrote(300 * (round + 1))
		leader := w.Cluster.Leader(js)
		leader.Kill()
		p.Wrote(300*(round+1) + 150)
		leader.Start()
		w.Cluster.Healthy(js)
	}
	leader := w.Cluster.Leader(js)
	for _, n := range w.Cluster.Nodes {
		if n != leader {
			n.Freeze()
			harness.Pause(t.Context(), 4*time.Second) // The freeze itself.
			n.Thaw()
			break
		}
	}
	p.Audit()
	for i, relay := range relays {
		if code := relay.Stop(); code != 0 {
			t.Errorf("relay %d: exit code %d after SIGTERM, want 0", i, code)
		}
	}
}

// The same for a backlog, which is sent in an ordered batch until the first crash, and by plain publishes some time after.
func TestClusterBacklog(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true, Cluster: true})
	conn := w.Connect()
	b := w.Backlog().Migrate()
	relay := w.Relay()
	js := w.JetStream()
	w.Cluster.Healthy(js)
	harness.Pause(t.Context(), 5500*time.Millisecond) // A cluster is sent no ordered batches at first.
	const rows = 10_000
	for round := range 2 {
		b.Add(conn, rows)
		b.Reaches(round*rows + rows/4)
		leader := w.Cluster.Leader(js)
		leader.Kill()
		leader.Start()
		b.Settled(conn, 30*time.Second)
		w.Cluster.Healthy(js)
	}
	b.Audit(conn)
	if !relay.Said("publishing backlogs in ordered batches") {
		t.Error("no ordered batches were used: this test shows less than it should")
	}
}
