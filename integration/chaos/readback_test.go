package chaos_test

import (
	"regexp"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// A stream that changes while it is read back is read back once more. TestChaos found that it was not: the stream had been
// deleted, and while the relay put back what the archive had of it, the broker's store was set back to an older copy. Only the
// lost connection tells the relay of that.
func TestTroubleWhileReadingBack(t *testing.T) {
	t.Parallel()
	const rows = 500
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn, holder, js := w.Connect(), w.Connect(), w.JetStream()
	b := w.Backlog().Migrate()
	relay := w.Relay("OUTBOX_DUPLICATE_WINDOW=2s")
	b.Add(conn, rows).Audit(conn)
	w.NATS.Freeze()
	copied := w.NATS.Copy()
	w.NATS.Thaw()
	stream, err := js.Stream(t.Context(), b.Stream)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	harness.Pause(t.Context(), 6*time.Second) // Until the ids are forgotten, and the relay has looked at the stream.

	w.Exec(holder, `begin; lock table outbox in share mode`) // It can be read, and nothing put back.
	if err := js.DeleteStream(t.Context(), b.Stream); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "the relay puts back what is gone", func() bool {
		var waits bool
		if err := conn.QueryRow(t.Context(), `
select exists (select from pg_locks where relation = 'outbox'::regclass and not granted)`).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
	w.NATS.Kill()
	relay.WaitFor(regexp.MustCompile(`.+`), "connection to NATS lost")
	w.Exec(holder, `rollback`)
	harness.Pause(t.Context(), 500*time.Millisecond) // It ends what it was at, and fetches what it has put back.
	w.NATS.Restore(copied)
	w.NATS.Start()
	b.Reaches(rows)
	b.Audit(conn)
}
