package versions_test

import (
	"cmp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// amid does something once a part of a backlog has left the outbox. It fails if by then all had.
func amid(w *harness.World, conn *pgx.Conn, rows int, do func()) {
	w.Helper()
	left := func() (n int) {
		if err := conn.QueryRow(w.Context(), `select count(*) from outbox`).Scan(&n); err != nil {
			w.Fatal(err)
		}
		return n
	}
	harness.Eventually(w.TB, time.Minute, "a part of the backlog has left the outbox", func() bool { return left() < rows })
	do()
	if left() == 0 {
		w.Error("the whole backlog had left the outbox: this test shows less than it should")
	}
}

// TestVersions drains a backlog with each version: without a fault, with a relay that is killed, and with a server that is
// killed. Nothing is missing, stored twice or out of order.
func TestVersions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		version string // Empty for that of go.mod.
		batches bool   // It takes ordered batches.
	}{
		{"2.9.25", false},
		{"2.10.27", false},
		{"2.11.17", false},
		{"2.12.15", false}, // There is no 2.13.
		{"2.14.9", true},
		{"", true}, // 2.15.
	} {
		t.Run(cmp.Or(tt.version, "ours"), func(t *testing.T) {
			t.Parallel()
			program := ""
			if tt.version != "" {
				program = harness.NATSServer(t, tt.version)
			}
			w := harness.NewWorld(t, harness.Options{SharedPostgres: true, NATSProgram: program})
			const rows = 20_000
			conn, b := w.Connect(), w.Backlog().Migrate()

			b.Add(conn, rows)
			relay := w.Relay()
			amid(w, conn, rows, relay.Kill)
			relay = w.Relay()
			b.Audit(conn)

			b.Add(conn, rows)
			amid(w, conn, rows, w.NATS.Kill)
			w.NATS.Start()
			b.Audit(conn)

			b.Add(conn, rows)
			b.Audit(conn)

			if got := relay.Said("publishing backlogs in ordered batches"); got != tt.batches {
				t.Errorf("ordered batches are used: %v, want %v", got, tt.batches)
			}
			doctor := w.Command("doctor")
			for _, want := range []string{"nats-server " + tt.version, "ordered batches"} {
				if !strings.Contains(doctor, want) {
					t.Errorf("doctor does not say %q:\n%s", want, doctor)
				}
			}
			if code := relay.Stop(); code != 0 {
				t.Errorf("exit code %d after SIGTERM, want 0", code)
			}
		})
	}
}
