package integration_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// version1 is the last commit whose relay knows schema version 1 only.
const version1 = "f4468c4"

// buildOf builds the outbox-relay of an earlier commit from the repository's history.
func buildOf(t *testing.T, commit string) string {
	t.Helper()
	run := func(dir, script string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("..", "git cat-file -e "+commit+"^{commit}"); err != nil {
		t.Skipf("commit %s is not in this clone's history (git fetch --unshallow brings it): %s", commit, out)
	}
	source := t.TempDir()
	program := filepath.Join(t.TempDir(), "outbox-relay-1")
	if out, err := run("..", "git archive "+commit+" | tar -x -C '"+source+"'"); err != nil {
		t.Fatalf("read commit %s: %v\n%s", commit, err, out)
	}
	if out, err := run(source, "go build -o '"+program+"' ./relay/cmd/outbox-relay"); err != nil {
		t.Fatalf("build commit %s: %v\n%s", commit, err, out)
	}
	return program
}

// latencies are how long single inserts took, in an aggregate of its own.
type latencies struct {
	mu    sync.Mutex
	found []time.Duration
}

// take returns what was measured since the last call, in rising order.
func (l *latencies) take() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := slices.Sorted(slices.Values(l.found))
	l.found = nil
	return found
}

// measure times inserts until the context ends. They are rolled back, so that no audit sees them.
func (l *latencies) measure(ctx context.Context, t *testing.T, conn *pgx.Conn) {
	t.Helper()
	whole := context.WithoutCancel(ctx) // An insert is not interrupted.
	for ctx.Err() == nil {
		start := time.Now()
		tx, err := conn.Begin(whole)
		if err == nil {
			_, err = tx.Exec(whole, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`)
		}
		took := time.Since(start)
		if err == nil {
			err = tx.Rollback(whole)
		}
		if err != nil {
			t.Errorf("a producer: %v", err)
			return
		}
		l.mu.Lock()
		l.found = append(l.found, took)
		l.mu.Unlock()
		harness.Pause(ctx, time.Millisecond)
	}
}

// The tables are upgraded while producers write and the relay of version 1 leads; it goes on, dead letters included, until the
// new one takes over. Nothing is missing, stored twice or out of order, and no producer waits for the upgrade.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	program := buildOf(t, version1)
	w := harness.NewWorld(t, harness.Options{})
	settings := []string{"OUTBOX_MAX_ATTEMPTS=2", "OUTBOX_RETRY_BACKOFF=10ms"}
	old := w.RelayOf(program, settings...)
	old.Leads()
	standby := w.RelayOf(program, settings...)
	conn := w.Connect()
	poison := func(after string) {
		w.Exec(conn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers) values ('t', 'Poisoned', $1, 'E', '', '{"Nats-Rollup": "all"}')`, after)
	}
	deadLetters := func(n int) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, "the poisoned events are dead letters", func() bool {
			var dead int
			if err := conn.QueryRow(t.Context(), `select count(*) from outbox_dead`).Scan(&dead); err != nil {
				t.Fatal(err)
			}
			return dead == n
		})
	}
	poison("1")
	deadLetters(1)

	p := w.Produce(4)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var producers sync.WaitGroup
	measured := &latencies{}
	for range 2 {
		producer := w.Connect()
		producers.Go(func() { measured.measure(ctx, t, producer) })
	}
	p.Wrote(300)
	alone := measured.take()
	poison("2")
	w.Command("migrate")
	beside := measured.take()
	stop()
	producers.Wait()
	poison("3")
	p.Wrote(600)
	deadLetters(3)
	if !strings.Contains(w.Command("migrate"), "up to date") {
		t.Error("there is something left to migrate")
	}
	if standby.Said("leading") || old.Said("leadership lost") {
		t.Error("the relay of version 1 has lost its leadership to the upgrade")
	}

	// The machine's own pauses count for nothing.
	busy := alone[len(alone)-1]
	if got, most := beside[len(beside)*999/1000], 100*time.Millisecond+busy; got > most {
		t.Errorf("a producer in a thousand waited %v, want at most %v", got, most)
	}
	if got, most := beside[len(beside)-1], time.Second+busy; got > most {
		t.Errorf("a producer waited %v, want at most %v", got, most)
	}

	// A relay of version 1 that is to begin a term on the new tables ends, and says why.
	if code := old.Stop(); code != 0 {
		t.Errorf("the relay of version 1: exit code %d after SIGTERM, want 0", code)
	}
	if code := standby.Ends(); code == 0 || !standby.Said("newer") {
		t.Errorf("the standby of version 1 ended with exit code %d, without saying that the tables are newer", code)
	}
	renewed := w.Relay(settings...)
	renewed.Leads()
	poison("4")
	deadLetters(4)
	p.Wrote(900)
	p.Audit()
	if code := renewed.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	t.Logf("%d inserts beside the upgrade, the slowest took %v; before it %v", len(beside), beside[len(beside)-1], busy)
}
