package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// diagnosis is what doctor says.
type diagnosis struct {
	result

	Healthy bool      `json:"healthy"`
	Checks  []finding `json:"checks"`
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
			found = found || string(f.Status)+" "+f.Check == head && strings.Contains(f.Detail, detail)
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
	d.expect(t, "ok schema: version 2", "ok privileges: has all that the relay needs", "ok row security", "ok trigger: enabled", "ok leader: term 1 on stream", "ok backlog: nothing waits",
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

func TestDoctorFindsWhatIsWrongWithTheTables(t *testing.T) {
	nats := streamtest.Start(t)
	for _, test := range []struct {
		name, sql string
		env       environment
		want      []string
	}{
		{"no tables", `select`, environment{"OUTBOX_MIGRATE": "false"}, []string{"failure schema: does not exist: public.outbox; create it with", "no privileges"}},
		{"foreign table", `create table outbox (id int)`, nil, []string{"failure schema: another shape", "no trigger"}},
		{"newer", `migrate; insert into outbox_migrations values (99)`, nil, []string{"failure schema: newer"}},
		{"no version", `migrate; delete from outbox_migrations`, nil, []string{"failure schema: no recorded schema version"}},
		{"no trigger", `migrate; drop trigger outbox_wake on outbox`, nil, []string{"warning trigger: missing"}},
		{"no dead letters", `migrate; drop table outbox_dead`, nil, []string{"ok schema: version 2", "failure privileges: outbox_dead"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dsn := storetest.NewDatabase(t)
			env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": nats.URL()}
			statement, migrate := strings.CutPrefix(test.sql, "migrate; ")
			if migrate {
				expectCode(t, execute(t, env, "migrate"), 0)
			}
			sql(t, dsn, statement)
			maps.Copy(env, test.env)
			d := diagnose(t, env)
			d.expect(t, test.want...)
			d.expect(t, "ok nats")
		})
	}
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
func TestDoctorLooksAtTheRole(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	nats := streamtest.Start(t)
	expectCode(t, execute(t, environment{"OUTBOX_DATABASE_DSN": dsn}, "migrate"), 0)
	role := fmt.Sprintf("doctor_%d", time.Now().UnixNano())
	sql(t, dsn, `create role `+role+` login`)
	owner := connect(t, dsn)
	t.Cleanup(func() {
		if _, err := owner.Exec(context.WithoutCancel(t.Context()), `drop owned by `+role+`; drop role `+role); err != nil {
			t.Error(err)
		}
	})
	env := environment{"OUTBOX_DATABASE_DSN": dsn + "&user=" + role, "OUTBOX_NATS_URL": nats.URL()}
	d := diagnose(t, env)
	expectCode(t, d.result, 1)
	d.expect(t, "failure privileges: GRANT", "no row security")
	sql(t, dsn, `grant select, insert, update, delete, truncate on all tables in schema public to `+role+`; grant select on all sequences in schema public to `+role)
	expectCode(t, diagnose(t, env).result, 0)
	sql(t, dsn, `alter table outbox enable row level security`)
	d = diagnose(t, env)
	expectCode(t, d.result, 1)
	d.expect(t, "ok schema", "ok privileges", "failure row security: BYPASSRLS", "ok trigger", "no backlog", "no contents")

	env["OUTBOX_TABLE"] = "elsewhere.outbox"
	d = diagnose(t, env)
	expectCode(t, d.result, 1)
	d.expect(t, `failure schema: which "`+role+`" may not`)
}

func TestDoctorFindsWhatIsWrongWithTheBroker(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	taken := streamtest.Start(t)
	js := taken.JetStream(t)
	for _, c := range []jetstream.StreamConfig{{Name: "OTHER", Subjects: []string{"outbox.users.>"}}, {Name: "ELSEWHERE", Subjects: []string{"elsewhere.>"}}} {
		if _, err := js.CreateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	closed := streamtest.Start(t, func(o *server.Options) { o.Username, o.Password = "me", "right" })
	plain := streamtest.Start(t, func(o *server.Options) { o.JetStream = false })
	for _, test := range []struct {
		name string
		env  environment
		want []string
	}{
		{"nobody there", environment{"OUTBOX_NATS_URL": "nats://me:s3cr3t@127.0.0.1:1"}, []string{"failure nats: nats://xxxxx@127.0.0.1:1", "no jetstream"}},
		{"wrong password", environment{"OUTBOX_NATS_URL": strings.Replace(closed.URL(), "://", "://me:s3cr3t@", 1)}, []string{"failure nats: uthorization", "no jetstream"}},
		{"no JetStream", environment{"OUTBOX_NATS_URL": plain.URL()}, []string{"ok nats", "failure jetstream: not enabled", "no stream"}},
		{"no stream", environment{"OUTBOX_NATS_URL": taken.URL(), "OUTBOX_STREAM_CREATE": "false"}, []string{"ok jetstream", "failure stream: does not exist: create it"}},
		{"taken subjects", environment{"OUTBOX_NATS_URL": taken.URL()}, []string{`failure stream: stream "OTHER" listens on subjects of "outbox.>"`}},
		{"other subjects", environment{"OUTBOX_NATS_URL": taken.URL(), "OUTBOX_STREAM": "ELSEWHERE"}, []string{`failure stream: does not cover`, "ok duplicate window: 2m0s"}},
		{"lax plans", environment{
			"OUTBOX_NATS_URL": taken.URL(), "OUTBOX_SUBJECT": "free.{topic}", "OUTBOX_STREAM_STORAGE": "memory", "OUTBOX_DUPLICATE_WINDOW": "1s",
		}, []string{"ok stream", "warning stream: is to be kept in memory", "warning duplicate window: 1s is less than 22s"}},
		{"bad subject", environment{"OUTBOX_NATS_URL": taken.URL(), "OUTBOX_SUBJECT": "events"}, []string{"failure configuration: OUTBOX_SUBJECT: ", "ok postgres", "ok nats", "no stream"}},
		{"embedded, not running", environment{"OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_LISTEN": "127.0.0.1:1"}, []string{"ok configuration", "warning nats: the embedded server runs inside the relay"}},
		{"embedded anywhere", environment{"OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_LISTEN": "127.0.0.1:0"}, []string{"warning nats: set OUTBOX_NATS_LISTEN"}},
		{"embedded, running", environment{"OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_LISTEN": strings.TrimPrefix(taken.URL(), "nats://"), "OUTBOX_SUBJECT": "free.{topic}"}, []string{"ok nats", "ok stream"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.env["OUTBOX_DATABASE_DSN"] = dsn
			d := diagnose(t, test.env)
			d.expect(t, test.want...)
			if failed := strings.Contains(strings.Join(test.want, "\n"), "failure "); failed != (d.code == 1) {
				t.Errorf("exit code %d", d.code)
			}
			if strings.Contains(d.stdout+d.stderr, "s3cr3t") {
				t.Errorf("a password is shown:\n%s%s", d.stdout, d.stderr)
			}
		})
	}
	if _, err := js.Stream(t.Context(), "OUTBOX"); err == nil {
		t.Error("doctor has created the stream")
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
func TestDoctorTellsOfPermissions(t *testing.T) {
	nats := streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "me", Password: "right", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.>"}}}}}
		o.Username, o.Password = "", ""
	})
	d := diagnose(t, environment{
		"OUTBOX_DATABASE_DSN": storetest.NewDatabase(t), "OUTBOX_NATS_URL": strings.Replace(nats.URL(), "://", "://me:right@", 1), "OUTBOX_ELECTION": "jetstream",
	})
	expectCode(t, d.result, 1)
	d.expect(t, "ok nats", "failure jetstream: may not publish to $JS.API.STREAM.INFO.OUTBOX: permit it", "no reading back", "no bucket")
}

// What a relay publishes is tried, without a trace in the stream.
func TestDoctorTriesToPublish(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	for _, test := range []struct {
		name, deny, want string
		code             int
	}{
		{"all permitted", "elsewhere", "ok publishing: permitted", 0},
		{"no fences", "_outbox.>", "failure publishing: let its NATS user publish to _outbox.OUTBOX.*", 1},
		{"no events", "outbox.>", "warning publishing: let the relay's NATS user publish to outbox.>", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			broker := streamtest.Start(t, func(o *server.Options) {
				o.Users = []*server.User{{Username: "all", Password: "right"}, {Username: "me", Password: "right", Permissions: &server.Permissions{
					Publish: &server.SubjectPermission{Deny: []string{test.deny}},
				}}}
			})
			js := broker.JetStream(t, nats.UserInfo("all", "right"))
			str, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}})
			if err != nil {
				t.Fatal(err)
			}
			d := diagnose(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": strings.Replace(broker.URL(), "://", "://me:right@", 1)})
			expectCode(t, d.result, test.code)
			d.expect(t, test.want)
			info, err := str.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if left := info.State.LastSeq; left > 0 {
				t.Errorf("it has left %d messages", left)
			}
		})
	}
}

// What keeps a relay from finding or creating the stream is named as the relay names it, and nothing is created.
func TestDoctorNamesThePermissionsOfTheStream(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	for deny, want := range map[string]string{
		"$JS.API.STREAM.CREATE.>": `failure stream: "OUTBOX" does not exist and cannot be created: let the relay's NATS user publish to $JS.API.STREAM.CREATE.OUTBOX`,
		"$JS.API.STREAM.INFO.>":   "failure jetstream: may not publish to $JS.API.STREAM.INFO.OUTBOX: permit it",
		"elsewhere":               `ok stream: "OUTBOX" does not exist yet; the relay creates it`,
	} {
		_, url, js := denying(t, deny)
		d := diagnose(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": url})
		d.expect(t, want)
		if _, err := js.Stream(t.Context(), "OUTBOX"); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("with %s denied, doctor has created the stream (%v)", deny, err)
		}
	}
}

// What a relay needs to read back is tried, and each permission that it lacks is named.
func TestDoctorTriesToReadBack(t *testing.T) {
	const get, create, next, remove = "$JS.API.STREAM.MSG.GET.OUTBOX", "$JS.API.CONSUMER.CREATE.OUTBOX.>", "$JS.API.CONSUMER.MSG.NEXT.OUTBOX.>", "$JS.API.CONSUMER.DELETE.>"
	named := func(subjects ...string) (texts []string) {
		for _, subject := range subjects {
			texts = append(texts, "may not publish to "+subject+": permit it")
		}
		return texts
	}
	dsn := storetest.NewDatabase(t)
	for _, test := range []struct {
		name      string
		retention jetstream.RetentionPolicy
		deny      []string
		want      []string // To be named; all is well without.
	}{
		{"all permitted", jetstream.LimitsPolicy, nil, nil},
		{"none permitted", jetstream.LimitsPolicy, []string{get, "$JS.API.CONSUMER.>"}, named(get, create)},
		{"no message", jetstream.LimitsPolicy, []string{get}, named(get)},
		{"no consumer", jetstream.LimitsPolicy, []string{create}, named(create)},
		{"nothing of it", jetstream.LimitsPolicy, []string{next}, named(next)},
		{"no removal, which the server sees to", jetstream.LimitsPolicy, []string{remove}, nil},
		{"no consumer, which is not needed", jetstream.WorkQueuePolicy, []string{create}, nil},
		{"no message of a work queue", jetstream.WorkQueuePolicy, []string{get}, named(get)},
	} {
		t.Run(test.name, func(t *testing.T) {
			broker := streamtest.Start(t, func(o *server.Options) {
				o.Users = []*server.User{{Username: "all", Password: "right"}, {Username: "me", Password: "right", Permissions: &server.Permissions{
					Publish: &server.SubjectPermission{Deny: test.deny},
				}}}
			})
			js := broker.JetStream(t, nats.UserInfo("all", "right"))
			str, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, Retention: test.retention})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // Without a message, and with one.
				began := time.Now()
				d := diagnose(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": strings.Replace(broker.URL(), "://", "://me:right@", 1)})
				if took := time.Since(began); took >= doctorPatience {
					t.Errorf("it took %v: what is refused is not waited for", took)
				}
				if len(test.want) == 0 {
					d.expect(t, "ok reading back: permitted")
				} else {
					for _, denied := range test.want {
						d.expect(t, "failure reading back: "+denied)
					}
				}
				if _, err := js.Publish(t.Context(), "outbox.a", nil); err != nil {
					t.Fatal(err)
				}
			}
			if slices.Contains(test.deny, remove) {
				return
			}
			eventually(t, "it leaves no consumer", func() bool { // Nobody waits for the answer to the removal.
				info, err := str.Info(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return info.State.Consumers == 0
			})
		})
	}
}

// The bucket of an election in NATS is looked at, and not created.
func TestDoctorLooksAtTheBucket(t *testing.T) {
	broker := streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "all", Password: "right"}, {Username: "me", Password: "right", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.INFO.KV_OUTBOX_election"}},
		}}}
	})
	js := broker.JetStream(t, nats.UserInfo("all", "right"))
	env := environment{"OUTBOX_DATABASE_DSN": storetest.NewDatabase(t), "OUTBOX_ELECTION": "jetstream", "OUTBOX_STREAM_REPLICAS": "3"}
	expect := func(user string, code int, want string) {
		t.Helper()
		env["OUTBOX_NATS_URL"] = strings.Replace(broker.URL(), "://", "://"+user+":right@", 1)
		d := diagnose(t, env)
		expectCode(t, d.result, code)
		d.expect(t, "ok election: jetstream", want)
	}
	expect("all", 0, `ok bucket: "OUTBOX_election" does not exist yet; the relay creates it, with 3 replicas`)
	expect("me", 1, `failure bucket: Permissions Violation for Publish to "$JS.API.STREAM.INFO.KV_OUTBOX_election"`)
	if _, err := js.KeyValue(t.Context(), "OUTBOX_election"); !errors.Is(err, jetstream.ErrBucketNotFound) {
		t.Errorf("doctor has created the bucket: %v", err)
	}
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "OUTBOX_election", TTL: time.Second}); err != nil {
		t.Fatal(err)
	}
	expect("all", 1, "failure bucket: no relay is elected: bucket \"OUTBOX_election\" is unfit for an election: its entries expire after 1s")
	if _, err := js.UpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "OUTBOX_election"}); err != nil {
		t.Fatal(err)
	}
	expect("all", 0, `ok bucket: "OUTBOX_election" is there`)
}

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
