package integration_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

const insert = `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', $1, 'E', $2)`

// stored returns the payloads of a stream's messages, in order.
func stored(w *harness.World) []string {
	w.Helper()
	var payloads []string
	for _, m := range w.Messages() {
		payloads = append(payloads, string(m.Data))
	}
	return payloads
}

// arrived waits until the stream holds n events.
func arrived(w *harness.World, n int, within time.Duration) {
	w.Helper()
	js := w.JetStream()
	harness.Eventually(w.TB, within, strconv.Itoa(n)+" events in the stream", func() bool { return w.StoredIn(js, "OUTBOX") == n })
}

// A transaction that inserts first and commits last, and one that keeps dead rows from being removed, delay no other event, and
// nothing is lost.
func TestLateCommit(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	w.Relay().Leads()
	late, horizon, conn := w.Connect(), w.Connect(), w.Connect()

	holding, err := horizon.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holding.Exec(t.Context(), `select pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	tx, err := late.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), insert, "late", []byte("late")); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		w.Exec(conn, insert, "a"+strconv.Itoa(i%7), []byte(strconv.Itoa(i)))
	}
	arrived(w, 3000, 20*time.Second)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	arrived(w, 3001, 5*time.Second)
	if got := stored(w); got[3000] != "late" {
		t.Errorf("the last message is %q, want the late one", got[3000])
	}
	if err := holding.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAwkwardAggregates(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	w.Relay().Leads()
	conn := w.Connect()
	ids := []string{
		" ", "  ", ".", "..", "a.b", "*", ">", "a.>", "a b", "\t", "\n", "\r\n", "\x01", "\x7f", "日本語", "שלום", "🙂", "%2E", "%",
		strings.Repeat("x", 1600), strings.Repeat("x", 1599) + "y", "$SYS", `"\'`, "_INBOX.x", "é", "e\u0301",
	}
	for _, id := range ids {
		w.Exec(conn, insert, id, []byte(id))
	}
	arrived(w, len(ids), 10*time.Second)
	subjects := map[string]string{}
	for _, m := range w.Messages() {
		if other, taken := subjects[m.Subject]; taken {
			t.Errorf("%q and %q share subject %s", m.Data, other, m.Subject)
		}
		subjects[m.Subject] = string(m.Data)
		if strings.Count(m.Subject, ".") != 3 || len(m.Subject) > 512 {
			t.Errorf("%q has subject %q", m.Data, m.Subject)
		}
	}
}

// An event that the broker will never take becomes a dead letter; the others flow; and an outage kills nothing.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{MaxPayload: 64 << 10})
	w.Relay("OUTBOX_RETRY_BACKOFF=50ms").Leads()
	conn := w.Connect()
	w.Exec(conn, insert, "a", []byte("1"))
	w.Exec(conn, insert, "a", make([]byte, 100<<10))
	w.Exec(conn, insert, "a", []byte("2"))
	w.Exec(conn, insert, "b", []byte("3"))
	w.Exec(conn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers) values ('t', 'A', 'c', 'E', '', '{"Nats-Rollup": "all"}')`)
	arrived(w, 3, 10*time.Second)

	type letter struct {
		Seq         int64  `json:"seq"`
		AggregateID string `json:"aggregate_id"`
		Attempts    int    `json:"attempts"`
		LastError   string `json:"last_error"`
	}
	var letters []letter
	harness.Eventually(t, 10*time.Second, "two dead letters", func() bool {
		if err := json.Unmarshal([]byte(w.Command("dead", "list", "--json")), &letters); err != nil {
			t.Fatal(err)
		}
		return len(letters) == 2
	})
	if l := letters[0]; l.Seq != 2 || l.AggregateID != "a" || l.Attempts != 1 || !strings.Contains(l.LastError, "payload") {
		t.Errorf("first dead letter: %+v", l)
	}
	if l := letters[1]; l.AggregateID != "c" || !strings.Contains(l.LastError, "Nats-Rollup") {
		t.Errorf("second dead letter: %+v", l)
	}

	w.NATS.Kill()
	for i := range 20 {
		w.Exec(conn, insert, "d"+strconv.Itoa(i), []byte("x"))
	}
	harness.Pause(t.Context(), 6*time.Second) // The outage itself, not a wait for something to happen.
	if got := w.Command("dead", "list", "--json"); strings.Count(got, `"seq"`) != 2 {
		t.Errorf("dead letters after an outage: %s", got)
	}
	w.NATS.Start()
	arrived(w, 23, 10*time.Second)

	w.Command("dead", "discard", strconv.FormatInt(letters[0].Seq, 10))
	w.Exec(conn, `update outbox_dead set headers = null`)
	w.Command("dead", "requeue", strconv.FormatInt(letters[1].Seq, 10))
	arrived(w, 24, 10*time.Second)
	if got := strings.TrimSpace(w.Command("dead", "list", "--json")); got != "[]" {
		t.Errorf("dead letters at the end: %s", got)
	}
}

// With on_dead = "hold" an aggregate's later events wait for a decision.
func TestHold(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{MaxPayload: 64 << 10})
	w.Relay("OUTBOX_RETRY_BACKOFF=50ms", "OUTBOX_ON_DEAD=hold").Leads()
	conn := w.Connect()
	w.Exec(conn, insert, "a", make([]byte, 100<<10))
	w.Exec(conn, insert, "a", []byte("2"))
	w.Exec(conn, insert, "b", []byte("3"))
	harness.Eventually(t, 10*time.Second, "a dead letter", func() bool { return strings.Contains(w.Command("dead", "list", "--json"), `"seq"`) })
	w.Exec(conn, insert, "a", []byte("4"))
	w.Exec(conn, insert, "b", []byte("5"))
	arrived(w, 2, 10*time.Second)
	w.Exec(conn, `update outbox set data = '1' where given_up_at is not null`) // It is too large to be moved.
	w.Command("dead", "requeue", "--all")
	arrived(w, 5, 10*time.Second)
	if got, want := stored(w), []string{"3", "5", "1", "2", "4"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Not parallel: it measures times.
func TestFailover(t *testing.T) {
	w := harness.NewWorld(t, harness.Options{})
	leader := w.Relay()
	leader.Leads()
	standby := w.Relay()
	standby.WaitFor(regexp.MustCompile(`standing (by)`))
	conn := w.Connect()
	if code := standby.Get("/readyz"); code != 200 {
		t.Errorf("standby: /readyz is %d, want 200", code)
	}

	// Killed: the server sees the socket close.
	leader.Kill()
	at := time.Now()
	w.Exec(conn, insert, "a", []byte("1"))
	arrived(w, 1, 1500*time.Millisecond)
	t.Logf("SIGKILL to event: %v", time.Since(at))

	// Asked to stop: the standby is told.
	next := w.Relay()
	next.WaitFor(regexp.MustCompile(`standing (by)`))
	w.Exec(conn, insert, "a", []byte("2"))
	arrived(w, 2, 10*time.Second)
	at = time.Now()
	if code := standby.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	w.Exec(conn, insert, "a", []byte("3"))
	arrived(w, 3, 300*time.Millisecond)
	t.Logf("SIGTERM to event: %v", time.Since(at))
}

// A relay may start before the servers that it needs, and says what it waits for.
func TestStartsFirst(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{NoNATS: true})
	conn := w.Connect()
	relay := w.Relay()
	relay.WaitFor(regexp.MustCompile(`(not fit to lead)`))
	if code := relay.Get("/readyz"); code != 503 {
		t.Errorf("without a broker: /readyz is %d, want 503", code)
	}
	if code := relay.Get("/healthz"); code != 200 {
		t.Errorf("without a broker: /healthz is %d, want 200", code)
	}
	w.Exec(conn, insert, "a", []byte("1"))
	w.NATS.Start()
	arrived(w, 1, 10*time.Second)
	harness.Eventually(t, 5*time.Second, "/readyz is 200", func() bool { return relay.Get("/readyz") == 200 })
}

// An idle relay costs the database next to nothing.
func TestIdle(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	w.Relay().Leads()
	conn := w.Connect()
	w.Exec(conn, insert, "a", []byte("1"))
	arrived(w, 1, 10*time.Second)
	count := func() (transactions int64) {
		// Statistics of a session may lag; the server flushes those of idle sessions within a second.
		err := conn.QueryRow(t.Context(), `select xact_commit + xact_rollback from pg_stat_database where datname = current_database()`).Scan(&transactions)
		if err != nil {
			t.Fatal(err)
		}
		return transactions
	}
	harness.Pause(t.Context(), 2*time.Second) // Let what the test itself did settle.
	before, at := count(), time.Now()
	harness.Pause(t.Context(), 10*time.Second) // The observation itself.
	rate := float64(count()-before-1) / time.Since(at).Seconds()
	t.Logf("%.2f transactions a second", rate)
	if rate > 2 {
		t.Errorf("an idle relay makes %.2f transactions a second, want at most 2", rate)
	}
}

// What a message carries.
func TestMessage(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	w.Relay("OUTBOX_CLOUDEVENTS_SOURCE=/accounts").Leads()
	conn := w.Connect()
	const id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data, headers)
			values ($1, 'users', 'User', '17', 'UserCreated', '{"id":17}', '{"Trace-Id": "abc", "Tag": ["x", "y"]}')`, id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	arrived(w, 1, 10*time.Second)
	m := w.Messages()[0]
	if m.Subject != "outbox.users.User.17" || string(m.Data) != `{"id":17}` {
		t.Errorf("got %q on %s", m.Data, m.Subject)
	}
	for name, want := range map[string]string{
		jetstream.MsgIDHeader: id, "Outbox-Topic": "users", "Outbox-Aggregate-Type": "User", "Outbox-Aggregate-Id": "17",
		"Outbox-Event-Type": "UserCreated", "Outbox-Seq": "1", "Trace-Id": "abc", "Tag": "x,y", "ce-id": id, "ce-source": "/accounts", "ce-type": "UserCreated",
	} {
		if got := strings.Join(m.Header.Values(name), ","); got != want {
			t.Errorf("header %s is %q, want %q", name, got, want)
		}
	}
	if _, err := time.Parse(time.RFC3339Nano, m.Header.Get("Outbox-Created-At")); err != nil {
		t.Error(err)
	}
}
