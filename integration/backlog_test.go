package integration_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// waiting counts the rows of an outbox.
func waiting(w *harness.World, conn *pgx.Conn) int {
	w.Helper()
	var rows int
	if err := conn.QueryRow(w.Context(), `select count(*) from outbox`).Scan(&rows); err != nil {
		w.Fatal(err)
	}
	return rows
}

// dead counts the dead letters.
func dead(w *harness.World) int {
	w.Helper()
	var letters []struct{}
	if err := json.Unmarshal([]byte(w.Command("dead", "list", "--json")), &letters); err != nil {
		w.Fatal(err)
	}
	return len(letters)
}

// A relay that is killed while it sends a backlog in ordered batches leaves nothing out and stores nothing twice.
func TestKilledInBacklog(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	b := w.Backlog().Migrate().Add(conn, 30_000)
	for _, stored := range []int{2000, 9000, 18_000} {
		relay := w.Relay()
		b.Reaches(stored)
		relay.Kill()
	}
	if waiting(w, conn) == 0 {
		t.Error("nothing was left when the relay was killed for the last time: this test shows nothing")
	}
	w.Relay()
	b.Audit(conn)
}

// A relay that is asked to stop in the middle of a backlog has recorded all that is stored before it goes.
func TestStoppedInBacklog(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	const rows = 30_000
	b := w.Backlog().Migrate().Add(conn, rows)
	relay := w.Relay()
	b.Reaches(3000)
	asked := time.Now()
	if code := relay.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	if took := time.Since(asked); took > 3*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	left := waiting(w, conn)
	if stored := b.Stored(); stored+left != rows || left == 0 {
		t.Errorf("%d rows are left and %d are stored, of %d: want some left, and none that is stored", left, stored, rows)
	}
	w.Relay()
	b.Audit(conn)
}

// Events that the stream refuses in the middle of an ordered batch become dead letters; all others are stored, once and
// in order.
func TestPoisonInBacklog(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	const rows = 20_000
	b := w.Backlog().Migrate().Add(conn, rows)
	var numbers []int
	for number := 150; number < rows; number += 1700 {
		numbers = append(numbers, number, number+1) // One of the hot aggregate, and one of another.
	}
	w.Exec(conn, `update outbox set data = data || convert_to(repeat(' ', 5000), 'UTF8') where seq = any($1)`, numbers)
	_, err := w.JetStream().CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>"}, MaxMsgSize: 4000, Duplicates: 10 * time.Minute, AllowBatchPublish: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Relay("OUTBOX_RETRY_BACKOFF=10ms")
	b.Audit(conn, numbers...)
	if got := dead(w); got != len(numbers) {
		t.Errorf("%d dead letters, want %d", got, len(numbers))
	}
}

// A stream that is full stops the relay, kills no event, and loses none when there is room again.
func TestFullStream(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn, js := w.Connect(), w.JetStream()
	b := w.Backlog().Migrate().Add(conn, 5000)
	config := jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>"}, MaxMsgs: 1234, Discard: jetstream.DiscardNew, Duplicates: 10 * time.Minute, AllowBatchPublish: true,
	}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	relay := w.Relay("OUTBOX_MAX_ATTEMPTS=1")
	relay.WaitFor(anything, "publishing paused", "maximum messages exceeded")
	b.Reaches(1234)
	harness.Eventually(t, 5*time.Second, "/readyz is 503", func() bool { return relay.Get("/readyz") == 503 })
	harness.Pause(t.Context(), 2*time.Second) // Full for some time.
	config.MaxMsgs = -1
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	b.Audit(conn)
	if got := dead(w); got != 0 {
		t.Errorf("%d dead letters, want none", got)
	}
	harness.Eventually(t, 5*time.Second, "/readyz is 200", func() bool { return relay.Get("/readyz") == 200 })
}

// Payloads of megabytes, which a page does not hold many of.
func TestLargePayloads(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true, MaxPayload: 6 << 20})
	conn := w.Connect()
	b := w.Backlog().Migrate()
	b.Size = 5 << 20
	b.Add(conn, 6)
	b.Size = 0
	b.Add(conn, 500)
	b.Size = 5 << 20
	b.Add(conn, 6)
	b.Size = 7 << 20
	b.Add(conn, 1)
	b.Size = 0
	b.Add(conn, 100)
	w.Relay("OUTBOX_RETRY_BACKOFF=10ms")
	b.Audit(conn, 6+500+6+1)
	if got := dead(w); got != 1 {
		t.Errorf("%d dead letters, want one", got)
	}
}

// Two outboxes in one database, each with a relay and a stream, have nothing to do with one another.
func TestTwoOutboxes(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	one, two := w.Backlog(), w.Backlog()
	two.Table, two.Stream = "other_outbox", "OTHER"
	one.Migrate().Add(conn, 3000)
	two.Migrate().Add(conn, 3000)
	w.Relay().Leads()
	w.Relay("OUTBOX_TABLE=other_outbox", "OUTBOX_STREAM=OTHER", "OUTBOX_SUBJECT=other.{topic}.{aggregate_type}.{aggregate_id}").Leads()
	for range 50 {
		one.Add(conn, 7)
		two.Add(conn, 3)
	}
	one.Audit(conn)
	two.Audit(conn)
}

// A line is slow, not blocked, if the messages between two acks of an ordered batch take longer than ack_timeout.
func TestSlowLine(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	b := w.Backlog().Migrate()
	b.Size = 20 << 10
	b.Add(conn, 600)
	line := harness.SlowLine(t, w.NATS.Address(), 1<<20, 0)
	w.Relay("OUTBOX_NATS_URL=nats://"+line, "OUTBOX_ACK_TIMEOUT=1s")
	b.Audit(conn)
}
