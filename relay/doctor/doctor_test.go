package doctor_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestFindsWhatIsWrongWithTheTables(t *testing.T) {
	nats := streamtest.Start(t)
	for _, test := range []struct {
		name, sql string
		change    func(*relay.Config)
		want      []string
	}{
		{"no tables", `select`, func(c *relay.Config) { c.NoMigrate = true }, []string{"failure schema: does not exist: public.outbox; create it with", "no privileges"}},
		{"foreign table", `create table outbox (id int)`, nil, []string{"failure schema: another shape", "no trigger"}},
		{"newer", `migrate; insert into outbox_migrations values (99)`, nil, []string{"failure schema: newer"}},
		{"no version", `migrate; delete from outbox_migrations`, nil, []string{"failure schema: no recorded schema version"}},
		{"no trigger", `migrate; drop trigger outbox_wake on outbox`, nil, []string{"warning trigger: missing"}},
		{"no dead letters", `migrate; drop table outbox_dead`, nil, []string{"ok schema: version 4", "failure privileges: outbox_dead"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dsn := storetest.NewDatabase(t)
			c := relay.Config{Postgres: dsn, NATS: nats.URL()}
			statement, ours := strings.CutPrefix(test.sql, "migrate; ")
			if ours {
				migrate(t, dsn)
			}
			sql(t, dsn, statement)
			if test.change != nil {
				test.change(&c)
			}
			d := diagnose(t, c)
			d.expect(t, test.want...)
			d.expect(t, "ok nats")
		})
	}
}

func TestLooksAtTheRole(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	nats := streamtest.Start(t)
	migrate(t, dsn)
	role := fmt.Sprintf("doctor_%d", time.Now().UnixNano())
	sql(t, dsn, `create role `+role+` login`)
	owner := connect(t, dsn)
	t.Cleanup(func() {
		if _, err := owner.Exec(context.WithoutCancel(t.Context()), `drop owned by `+role+`; drop role `+role); err != nil {
			t.Error(err)
		}
	})
	c := relay.Config{Postgres: dsn + "&user=" + role, NATS: nats.URL()}
	d := diagnose(t, c)
	d.expectErr(t, true)
	d.expect(t, "failure privileges: GRANT", "no row security")
	sql(t, dsn, `grant select, insert, update, delete, truncate on all tables in schema public to `+role+`; grant select on all sequences in schema public to `+role)
	d = diagnose(t, c)
	d.expectErr(t, false)
	sql(t, dsn, `alter table outbox enable row level security`)
	d = diagnose(t, c)
	d.expectErr(t, true)
	d.expect(t, "ok schema", "ok privileges", "failure row security: BYPASSRLS", "ok trigger", "no backlog", "no contents")

	c.Table.Schema = "elsewhere"
	d = diagnose(t, c)
	d.expectErr(t, true)
	d.expect(t, `failure schema: which "`+role+`" may not`)
}

func TestFindsWhatIsWrongWithTheBroker(t *testing.T) {
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
		c    relay.Config
		want []string
	}{
		{"nobody there", relay.Config{NATS: "nats://me:s3cr3t@127.0.0.1:1"}, []string{"failure nats: nats://xxxxx@127.0.0.1:1", "no jetstream"}},
		{"wrong password", relay.Config{NATS: strings.Replace(closed.URL(), "://", "://me:s3cr3t@", 1)}, []string{"failure nats: uthorization", "no jetstream"}},
		{"no JetStream", relay.Config{NATS: plain.URL()}, []string{"ok nats", "failure jetstream: not enabled", "no stream"}},
		{"no stream", relay.Config{NATS: taken.URL(), Stream: relay.Stream{NoCreate: true}}, []string{"ok jetstream", "failure stream: does not exist: create it"}},
		{"taken subjects", relay.Config{NATS: taken.URL()}, []string{`failure stream: stream "OTHER" listens on subjects of "outbox.>"`}},
		{"other subjects", relay.Config{NATS: taken.URL(), Stream: relay.Stream{Name: "ELSEWHERE"}}, []string{`failure stream: does not cover`, "ok duplicate window: 2m0s"}},
		{"lax plans", relay.Config{
			NATS: taken.URL(), Stream: relay.Stream{Subject: "free.{topic}", Memory: true, DuplicateWindow: time.Second},
		}, []string{"ok stream", "warning stream: is to be kept in memory", "warning duplicate window: 1s is less than 22s"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.c.Postgres = dsn
			d := diagnose(t, test.c)
			d.expect(t, test.want...)
			d.expectErr(t, strings.Contains(strings.Join(test.want, "\n"), "failure "))
			if strings.Contains(d.String(), "s3cr3t") {
				t.Errorf("a password is shown:\n%s", &d)
			}
		})
	}
	if _, err := js.Stream(t.Context(), "OUTBOX"); err == nil {
		t.Error("doctor has created the stream")
	}
}

func TestTellsOfPermissions(t *testing.T) {
	nats := streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "me", Password: "right", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.>"}}}}}
		o.Username, o.Password = "", ""
	})
	d := diagnose(t, relay.Config{
		Postgres: storetest.NewDatabase(t), NATS: strings.Replace(nats.URL(), "://", "://me:right@", 1), Election: relay.Election{Kind: relay.ElectionJetStream},
	})
	d.expectErr(t, true)
	d.expect(t, "ok nats", "failure jetstream: may not publish to $JS.API.STREAM.INFO.OUTBOX: permit it", "no reading back", "no bucket")
}

func TestTriesToPublish(t *testing.T) {
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
			d := diagnose(t, relay.Config{Postgres: dsn, NATS: strings.Replace(broker.URL(), "://", "://me:right@", 1)})
			d.expectErr(t, test.code == 1)
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

func TestNamesThePermissionsOfTheStream(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	for deny, want := range map[string]string{
		"$JS.API.STREAM.CREATE.>": `failure stream: "OUTBOX" does not exist and cannot be created: let the relay's NATS user publish to $JS.API.STREAM.CREATE.OUTBOX`,
		"$JS.API.STREAM.INFO.>":   "failure jetstream: may not publish to $JS.API.STREAM.INFO.OUTBOX: permit it",
		"elsewhere":               `ok stream: "OUTBOX" does not exist yet; the relay creates it`,
	} {
		url, js := denying(t, deny)
		d := diagnose(t, relay.Config{Postgres: dsn, NATS: url})
		d.expect(t, want)
		if _, err := js.Stream(t.Context(), "OUTBOX"); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("with %s denied, doctor has created the stream (%v)", deny, err)
		}
	}
}

func TestTriesToReadBack(t *testing.T) {
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
				d := diagnose(t, relay.Config{Postgres: dsn, NATS: strings.Replace(broker.URL(), "://", "://me:right@", 1)})
				if took := time.Since(began); took >= patience {
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

func TestLooksAtTheBucket(t *testing.T) {
	broker := streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "all", Password: "right"}, {Username: "me", Password: "right", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.INFO.KV_OUTBOX_election"}},
		}}}
	})
	js := broker.JetStream(t, nats.UserInfo("all", "right"))
	c := relay.Config{Postgres: storetest.NewDatabase(t), Election: relay.Election{Kind: relay.ElectionJetStream}, Stream: relay.Stream{Replicas: 3}}
	expect := func(user string, code int, want string) {
		t.Helper()
		c.NATS = strings.Replace(broker.URL(), "://", "://"+user+":right@", 1)
		d := diagnose(t, c)
		d.expectErr(t, code == 1)
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

// A stream's state is compared with its limits.

func TestComparesLimits(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	for name, test := range map[string]struct {
		change   func(*jetstream.StreamConfig)
		messages int
		code     int
		want     []string
	}{
		"none": {func(*jetstream.StreamConfig) {}, 3, 0, []string{"ok limits: the stream has none: it grows with its disk", "ok ordered batches: available"}},
		"age":  {func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, 3, 0, []string{"ok limits: the stream keeps messages for 1h0m0s (max_age)"}},
		"room": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 100, jetstream.DiscardNew }, 3, 0,
			[]string{"ok limits: the stream has 3 of 100 messages (max_msgs)"},
		},
		"nearly full": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 100, jetstream.DiscardNew }, 95, 0,
			[]string{"warning limits: nearly full, it has 95 of 100 messages (max_msgs): it makes no room by itself"},
		},
		"full": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 5, jetstream.DiscardNew }, 5, 1,
			[]string{"failure limits: the stream is full, it has 5 of 5 messages (max_msgs): it makes no room by itself, also not by consuming; run `nats stream edit OUTBOX --max-msgs=10`"},
		},
		"full, with an age": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard, c.MaxAge = 5, jetstream.DiscardNew, time.Hour }, 5, 1,
			[]string{"failure limits: room comes when messages become older than 1h0m0s (max_age)"},
		},
		"discards": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }, 20, 0,
			[]string{
				"ok limits: the stream has 10 of 10 messages (max_msgs), and makes room by discarding its oldest messages",
				"warning stream: keeps at most 10 messages (max_msgs): older messages are discarded, whether or not anybody has read them",
			},
		},
		"discards much": {func(c *jetstream.StreamConfig) { c.MaxBytes = 1 << 30 }, 20, 0, []string{"ok limits: bytes (max_bytes), and makes room", "no warning"}},
		"consumers":     {func(c *jetstream.StreamConfig) { c.MaxConsumers = 1 }, 0, 1, []string{"failure limits: 1 of 1 consumers (max_consumers)", "failure reading back"}},
		"no event fits": {
			func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100 }, 0, 1,
			[]string{"failure stream: takes messages of at most 100 bytes (max_msg_size), and the headers of the smallest event have", "no reading back"},
		},
		"consumers, and direct gets": {
			func(c *jetstream.StreamConfig) { c.MaxConsumers, c.AllowDirect = 1, true }, 3, 0,
			[]string{"ok limits: 1 of 1 consumers (max_consumers): without a further one the relay reads back by direct gets", "ok reading back: by direct gets", "no warning"},
		},
		"consumers, direct gets, and no message": {func(c *jetstream.StreamConfig) { c.MaxConsumers, c.AllowDirect = 1, true }, 0, 0, []string{"ok reading back: by direct gets"}},
	} {
		t.Run(name, func(t *testing.T) {
			broker := streamtest.Start(t)
			js := broker.JetStream(t)
			config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, Duplicates: time.Hour, AllowBatchPublish: true}
			test.change(&config)
			str, err := js.CreateStream(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			for range test.messages {
				if _, err := js.Publish(t.Context(), "outbox.a", nil); err != nil {
					t.Fatal(err)
				}
			}
			if config.MaxConsumers > 0 {
				if _, err := str.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "somebody"}); err != nil {
					t.Fatal(err)
				}
			}
			d := diagnose(t, relay.Config{Postgres: dsn, NATS: broker.URL()})
			d.expectErr(t, test.code == 1)
			d.expect(t, test.want...)
		})
	}
}

// The subjects of the events that are pending are tried, without storing anything.

func TestTriesPendingSubjects(t *testing.T) {
	url, js := denying(t, "outbox.secret.>")
	str, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, Duplicates: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	dsn := storetest.NewDatabase(t)
	c := relay.Config{Postgres: dsn, NATS: url}
	migrate(t, dsn)
	insert(t, dsn, "open", "A", "1", "E", "x")
	d := diagnose(t, c)
	d.expectErr(t, false)
	d.expect(t, "ok publishing: permitted")
	insert(t, dsn, "secret", "A", "1", "E", "x")
	insert(t, dsn, "secret", "B", "1", "E", "x")
	d = diagnose(t, c)
	d.expectErr(t, true)
	d.expect(t, `failure publishing: 2 of 3 kinds of pending events are denied to the relay's NATS user, and become dead letters: let it publish to outbox.>, such as "outbox.secret.A.1", "outbox.secret.B.1"`)
	if info, err := str.Info(t.Context()); err != nil || info.State.LastSeq > 0 {
		t.Errorf("doctor has stored a message (%v)", err)
	}
}
