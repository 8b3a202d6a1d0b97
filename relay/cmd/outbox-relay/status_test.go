package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestStatusOfARunningRelay(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	relay := start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": streamtest.Start(t).URL()})
	relay.logged("leading")
	insert(t, dsn, "users", "User", "17", "UserCreated", "x")
	eventually(t, "the event is in the archive", func() bool { return number(t, dsn, `select count(*) from outbox_published`) == 1 })
	env := environment{"OUTBOX_DATABASE_DSN": dsn}
	got := execute(t, env, "status")
	expectCode(t, got, 0)
	expectText(t, "status", got.stdout, "table         public.outbox\n", "stream        OUTBOX\n", "term        1, since 2", "checkpoint  sequence 0 of the stream that was created at 2",
		"pending       0\n", "dead letters  0\n", "archive       1, ")
	if strings.Contains(got.stdout, "none now") || strings.Contains(got.stdout, "oldest pending") {
		t.Errorf("status says that nobody leads, or that something waits:\n%s", got.stdout)
	}

	relay.stop()
	relay.wait()
	insert(t, dsn, "users", "User", "17", "UserVerified", "x")
	sql(t, dsn, `update outbox set created_at = created_at - interval '2 hours'`)
	got = execute(t, env, "status")
	expectCode(t, got, 0)
	expectText(t, "status", got.stdout, "  leader        none now; the latest was ", "pending         1\n", "oldest pending  for 2h0m")

	got = execute(t, env, "status", "--json")
	expectCode(t, got, 0)
	var s status
	if err := json.Unmarshal([]byte(got.stdout), &s); err != nil {
		t.Fatal(err)
	}
	if s.Table != "public.outbox" || s.Leading == nil || *s.Leading || len(s.Terms) != 1 || *s.Pending != (countStatus{1, true}) ||
		*s.DeadLetters != (countStatus{0, true}) || *s.Archive != (countStatus{1, true}) || *s.ArchiveBytes == 0 || *s.OldestPending < 7200 || *s.OldestPending > 7260 {
		t.Errorf("status --json = %s", got.stdout)
	}
	if term := s.Terms[0]; term.Stream != "OUTBOX" || term.Term != 1 || term.Leader == "" || time.Since(term.Since).Abs() > time.Minute || term.StreamCreated == nil {
		t.Errorf("the term is %+v", term)
	}
	env["OUTBOX_ELECTION"] = "none"
	expectText(t, "status without an election", execute(t, env, "status").stdout, ", as far as the database knows")
}

// The fields are relied on: this test is to be added to, not changed.
func TestStatusJSONIsStable(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn}
	expectCode(t, execute(t, env, "migrate"), 0)
	sql(t, dsn, `
insert into outbox_relay (stream, outbox, term, leader, leader_since, stream_created, checkpoint, checkpoint_before)
    values ('OUTBOX', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', 7, 'me', '2026-01-02 03:04:05Z', '2026-01-01 00:00:00Z', 12, 10)`)
	got := execute(t, env, "status", "--json").stdout
	var s struct {
		Terms []struct {
			Seconds float64 `json:"since_seconds"`
		} `json:"terms"`
		Bytes json.Number `json:"archive_bytes"`
	}
	if err := json.Unmarshal([]byte(got), &s); err != nil || len(s.Terms) != 1 {
		t.Fatalf("%v:\n%s", err, got)
	}
	seconds, err := json.Marshal(s.Terms[0].Seconds)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"table":"public.outbox","leading":false,"terms":[{"stream":"OUTBOX","outbox":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","term":7,"leader":"me",` +
		`"since":"2026-01-02T03:04:05Z","since_seconds":` + string(seconds) + `,"stream_created":"2026-01-01T00:00:00Z","checkpoint":12,"trouble":null}],` +
		`"waiting":{"events":0,"exact":true},"oldest_waiting_seconds":null,"dead_letters":{"events":0,"exact":true},"archive":{"events":0,"exact":true},` +
		`"archive_bytes":` + s.Bytes.String() + `,"standby":false,"dead_rows":0,"obstacles":[],"candidates":[],"pause":null,` +
		`"held_aggregates":0,"retrying_aggregates":0,"standbys":0,"published_per_second":null,"last_published_seconds":null,"seconds_left":null` + "}\n"
	if got != want {
		t.Errorf("status --json =\n%s\nwant\n%s", got, want)
	}
}

// Why the leader cannot publish shows where nothing but the database is asked, and does not any more once it can.
func TestStatusTellsWhyNothingIsPublished(t *testing.T) {
	broker := streamtest.Start(t)
	str, err := broker.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, MaxMsgs: 5, Discard: jetstream.DiscardNew, Duplicates: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL()}
	relay := start(t, env)
	relay.logged("leading")
	expectText(t, "doctor", execute(t, env, "doctor").stdout, "publishing now    nothing keeps the leader from it")
	for range 20 {
		insert(t, dsn, "users", "User", "17", "UserCreated", "x")
	}
	const reason = `stream "OUTBOX" is full: it has 5 of 5 messages (max_msgs) and refuses new messages (discard new)`
	const remedy = "nats stream edit OUTBOX --max-msgs=10"
	status := func() string { return execute(t, env, "status").stdout }
	eventually(t, "status tells the reason", func() bool { return strings.Contains(status(), reason) })
	expectText(t, "status", status(), "  paused        for ", "as its leader said ", remedy)
	expectText(t, "status --json", execute(t, env, "status", "--json").stdout, `"trouble":{"reason":"stream \"OUTBOX\" is full`, `"since_seconds":`, `"age_seconds":`)
	doctor := execute(t, env, "doctor")
	expectCode(t, doctor, 1)
	expectText(t, "doctor", doctor.stdout, "failure  publishing now    the leader has not been able to for ", reason, remedy)

	config := str.CachedInfo().Config
	config.MaxMsgs = 100
	if _, err := broker.JetStream(t).UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	eventually(t, "status is content", func() bool { return !strings.Contains(status(), "paused") })
	if n := number(t, dsn, `select count(*) from outbox`); n > 0 {
		t.Errorf("%d events are left", n)
	}
}

// What is missing is said, and the rest is told.
func TestStatusOfWhatIsLeft(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn}
	got := execute(t, env, "status")
	expectCode(t, got, 1)
	if want := "outbox-relay: the outbox table does not exist: public.outbox; create it with `outbox-relay migrate` or (*store.Outbox).Migrate\n"; got.stderr != want || got.stdout != "" {
		t.Errorf("without tables status prints %q and %q, want %q", got.stdout, got.stderr, want)
	}

	expectCode(t, execute(t, env, "migrate"), 0)
	expectText(t, "status of a new outbox", execute(t, env, "status").stdout, "leader        none so far\n")
	sql(t, dsn, `drop table outbox_dead, outbox_relay`)
	got = execute(t, env, "status")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "read how many dead letters there are: the outbox table does not exist")
	expectText(t, "status", got.stdout, "leader        unknown\n", "pending       0\n", "dead letters  unknown\n")
	got = execute(t, env, "status", "--json")
	expectCode(t, got, 1)
	expectText(t, "status --json", got.stdout, `"terms":null`, `"dead_letters":null`, `"waiting":{"events":0,"exact":true}`)

	got = execute(t, environment{"OUTBOX_DATABASE_DSN": nowhere}, "status")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "outbox-relay: cannot reach Postgres: ")
	if strings.Contains(got.stderr, "s3cr3t") {
		t.Errorf("the password is shown: %s", got.stderr)
	}
}

func TestStatusInWords(t *testing.T) {
	for got, want := range map[string]string{
		countOf(nil).String(): "unknown", countOf(&store.Count{Rows: 12345}).String(): "about 12345",
		age(0.04): "0s", age(3.21): "3.2s", age(3723.9): "1h2m4s",
		size(24 << 10): "24 KiB", size(3 << 19): "1.5 MiB", size(5 << 29): "2.5 GiB",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
