package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/relay/doctor"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// diagnosis is what doctor says.
type diagnosis struct {
	result

	Healthy bool             `json:"healthy"`
	Checks  []doctor.Finding `json:"checks"`
}

func diagnose(t *testing.T, env environment) diagnosis {
	t.Helper()
	d := diagnosis{result: execute(t, env, "doctor", "--json")}
	if err := json.Unmarshal([]byte(d.stdout), &d); err != nil {
		t.Fatalf("%v:\n%s", err, d.stdout)
	}
	if d.Healthy != (d.code == 0) {
		t.Errorf("healthy is %v with exit code %d", d.Healthy, d.code)
	}
	return d
}

// expect wants findings as "status check: a part of the detail". One that begins with "no " must not be there.
func (d *diagnosis) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		head, detail, _ := strings.Cut(w, ": ")
		unwanted, no := strings.CutPrefix(head, "no ")
		found := false
		for _, f := range d.Checks {
			if no {
				found = found || f.Check == unwanted
				continue
			}
			found = found || string(f.Severity)+" "+f.Check == head && strings.Contains(f.Detail, detail)
		}
		if found == no {
			t.Errorf("want %q, got:\n%s", w, d.stdout)
		}
	}
}

// Before the first start and while a relay runs all is well.
func TestDoctorIsContent(t *testing.T) {
	env := environment{"OUTBOX_DATABASE_DSN": storetest.NewDatabase(t), "OUTBOX_NATS_URL": streamtest.Start(t).URL(), "OUTBOX_STRICT": "true"}
	d := diagnose(t, env)
	expectCode(t, d.result, 0)
	d.expect(t, "ok configuration: valid", "ok election: postgres", "ok retain: 5m0s", "ok postgres: PostgreSQL 1", "ok pooler", "ok durability: synchronous_commit is on",
		"ok schema: the relay creates them", "no trigger", "no leader", "ok nats: nats-server 2.", "ok jetstream: enabled", `ok stream: "OUTBOX" does not exist yet; the relay creates it, for "outbox.>"`,
		"ok duplicate window: 10m0s, at least 22s")

	start(t, env).logged("leading")
	eventually(t, "the stream is there", func() bool {
		return strings.Contains(diagnose(t, env).stdout, "takes the relay's subjects")
	})
	d = diagnose(t, env)
	expectCode(t, d.result, 0)
	d.expect(t, "ok schema: version 4", "ok privileges: has all that the relay needs", "ok row security", "ok trigger: enabled", "ok leader: term 1 on stream", "ok backlog: nothing waits",
		"ok dead letters: none", `ok stream: "OUTBOX" takes`, "ok duplicate window: 10m0s", "ok ordered batches: available", "ok publishing: permitted", "ok reading back: permitted", "no bucket")

	got := execute(t, env, "doctor")
	expectCode(t, got, 0)
	expectText(t, "doctor", got.stdout, "ok       configuration     valid\n", "ok       duplicate window  10m0s, at least 22s are needed\n")
	if got.stderr != "" || strings.Contains(got.stdout, "none now") {
		t.Errorf("doctor says that nobody leads, or complains: %s%s", got.stdout, got.stderr)
	}
}

// Each lack is found, and with strict = true each is a reason to say no.
func TestDoctorWarns(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	nats := streamtest.Start(t)
	_, err := nats.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: time.Second, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": nats.URL(), "OUTBOX_RETAIN": "0s", "OUTBOX_ELECTION": "none"}
	expectCode(t, execute(t, env, "migrate"), 0)
	sql(t, dsn, `do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$`)
	sql(t, dsn, `alter table outbox disable trigger outbox_wake`)
	sql(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, created_at) values ('t', 'A', '1', 'e', '', now() - interval '1 hour')`)
	sql(t, dsn, `insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error) values (1, gen_random_uuid(), 't', 'A', '1', 'e', '', now(), 1, 'refused')`)
	warnings := []string{
		"warning election: election.kind is none", "warning retain: relay.retain is 0", "warning durability: synchronous_commit is off",
		"warning trigger: disabled: new events are found by polling only, up to 1s late: an owner must run `ALTER TABLE \"public\".\"outbox\" ENABLE TRIGGER \"outbox_wake\"`",
		"ok leader: none so far", "warning backlog: 1 waiting, the first of them for 1h0m", "warning dead letters: 1: see `outbox-relay dead list`",
		"ok stream", `warning stream: "OUTBOX": duplicate window of 1s is less than 22s`, `warning stream: "OUTBOX": memory storage`, "no duplicate window",
		"ok ordered batches: not available, which only costs speed",
	}
	d := diagnose(t, env)
	expectCode(t, d.result, 0)
	d.expect(t, warnings...)

	env["OUTBOX_STRICT"] = "true"
	d = diagnose(t, env)
	expectCode(t, d.result, 1)
	d.expect(t, append(warnings, "failure configuration: OUTBOX_RETAIN")...)
	env["OUTBOX_RETAIN"] = "1m"
	d = diagnose(t, env)
	expectCode(t, d.result, 1)
	expectText(t, "standard error", d.stderr, "outbox-relay: doctor: 7 warnings, which strict = true does not allow")
}

// What others have set up in the database is found, and so is who stands in the way just now.
func TestDoctorFindsWhatOthersDo(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": streamtest.Start(t).URL()}
	expectCode(t, execute(t, env, "migrate"), 0)
	d := diagnose(t, env)
	d.expect(t, "ok sequence", "ok triggers", "ok foreign keys", "ok publications", "ok row policies", "ok standbys", "ok connections", "ok locks")
	sql(t, dsn, `create table audit (seq bigint references outbox)`)
	sql(t, dsn, `alter sequence outbox_seq_seq cache 20`)
	blocker := connect(t, dsn+"&application_name=report")
	if _, err := blocker.Exec(t.Context(), `begin; lock table outbox_dead in share mode`); err != nil {
		t.Fatal(err)
	}
	done := make(chan result, 1)
	go func() { done <- execute(t, env, "dead", "discard", "--all", "--yes") }()
	waiter := connect(t, dsn+"&application_name=cleaner")
	deleted := make(chan error, 1)
	go func() {
		_, err := waiter.Exec(t.Context(), `delete from outbox_dead`)
		deleted <- err
	}()
	eventually(t, "the wait is seen", func() bool { return strings.Contains(execute(t, env, "status").stdout, "obstacle ") })
	d = diagnose(t, env)
	d.expect(t, "failure foreign keys: audit", "warning sequence: cache 1", `warning locks: (application "report"`)
	expectText(t, "status", execute(t, env, "status").stdout, "obstacle      locks: pid ", `(application "cleaner") has been waiting for `, "pg_terminate_backend(")
	if _, err := blocker.Exec(t.Context(), `rollback`); err != nil {
		t.Fatal(err)
	}
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	<-done
}

// A role that may too little, and one from which rows are hidden.
// What the command adds to the configuration: the words of the settings, and the server inside the relay.
func TestDoctorOfSettings(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	broker := streamtest.Start(t)
	for _, test := range []struct {
		name string
		env  environment
		want []string
	}{
		{"bad subject", environment{"OUTBOX_NATS_URL": broker.URL(), "OUTBOX_SUBJECT": "events"}, []string{"failure configuration: OUTBOX_SUBJECT: ", "ok postgres", "ok nats", "no stream"}},
		{"embedded, not running", environment{"OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_LISTEN": "127.0.0.1:1"}, []string{"ok configuration", "warning nats: the embedded server runs inside the relay"}},
		{"embedded anywhere", environment{"OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_LISTEN": "127.0.0.1:0"}, []string{"warning nats: set OUTBOX_NATS_LISTEN"}},
		{"embedded, running", environment{"OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_LISTEN": strings.TrimPrefix(broker.URL(), "nats://"), "OUTBOX_SUBJECT": "free.{topic}"}, []string{"ok nats", "ok stream"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.env["OUTBOX_DATABASE_DSN"] = dsn
			d := diagnose(t, test.env)
			d.expect(t, test.want...)
			if failed := strings.Contains(strings.Join(test.want, "\n"), "failure "); failed != (d.code == 1) {
				t.Errorf("exit code %d", d.code)
			}
		})
	}
}

func TestDoctorWithoutAConfiguration(t *testing.T) {
	got := execute(t, environment{"OUTBOX_BATCH_SIZE": "0"}, "doctor")
	expectCode(t, got, 1)
	expectText(t, "doctor", got.stdout, "failure  configuration     the configuration has 2 faults:\n                             ", "OUTBOX_BATCH_SIZE")
	expectText(t, "standard error", got.stderr, "outbox-relay: doctor: 1 failure, 0 warnings")

	unreachable := diagnose(t, environment{"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_NATS_URL": "nats://127.0.0.1:1"})
	unreachable.expect(t, "failure postgres: cannot reach Postgres", "no pooler", "no schema", "failure nats")
	if strings.Contains(unreachable.stdout, "s3cr3t") {
		t.Errorf("the password is shown: %s", unreachable.stdout)
	}
}

// What keeps the broker from answering may be told beside the answers only.
// What a relay publishes is tried, without a trace in the stream.
// What keeps a relay from finding or creating the stream is named as the relay names it, and nothing is created.
// What a relay needs to read back is tried, and each permission that it lacks is named.
// The bucket of an election in NATS is looked at, and not created.
// A standby shows no locks, so whoever leads on the primary would look dead.
func TestDoctorOnAStandby(t *testing.T) {
	server := storetest.Start(t)
	env := environment{"OUTBOX_DATABASE_DSN": server.DSN(), "OUTBOX_NATS_URL": streamtest.Start(t).URL()}
	expectCode(t, execute(t, env, "migrate"), 0)
	sql(t, server.DSN(), `insert into outbox_relay (stream, term, leader, leader_since) values ('OUTBOX', 1, 'me', now())`)
	if err := server.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	signal := filepath.Join(filepath.Dir(server.LogFile()), "data", "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(signal, 0o666); err != nil { // Postgres runs as another user.
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := diagnose(t, env)
	expectCode(t, d.result, 1)
	d.expect(t, "failure postgres", "no leader", "no trigger", "ok nats")
	if got := execute(t, env, "status"); strings.Contains(got.stdout, "none now") {
		t.Errorf("status on a standby:\n%s", got.stdout)
	}
}
