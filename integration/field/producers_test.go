package field_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/integration/harness"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

// However producers insert, each event that is committed is stored once, and soon. None that is rolled back is stored.
func TestWaysOfProducing(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{Quiet: true})
	s := newBareScene(t, w)
	s.Exec(s.conn, `alter system set max_prepared_transactions = 10`)
	_ = s.conn.Close(t.Context())
	if err := w.Postgres.Stop(postgres.Fast); err != nil {
		t.Fatal(err)
	}
	if err := w.Postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.conn = s.Connect()
	s.CommandWith(s.settings, "migrate")
	s.Exec(s.conn, `
create table thing (id bigint primary key, state text);
create function tell() returns trigger language plpgsql as $$
begin
    perform public.outbox_emit('told', 'Thing', new.id::text, new.state, to_jsonb(new));
    return new;
end $$;
create trigger tell after insert or update on thing for each row execute function tell();
create table source (topic text, aggregate_id text);
insert into source select 'selected', 's' || i from generate_series(1, 50) i;
create table replicated (like outbox)`)
	s.start()
	insert := func(topic string) string {
		return `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('` + topic + `', 'Way', '` + topic + `', 'E', 'x')`
	}
	want := map[string]int{}
	run := func(topic string, n int, statements ...string) {
		conn := s.Connect()
		for _, sql := range statements {
			s.Exec(conn, sql)
		}
		want[topic] = n
	}
	run("serializable", 1, `begin isolation level serializable`, `select count(*) from outbox`, insert("serializable"), `commit`)
	run("repeatable", 1, `begin isolation level repeatable read`, `select count(*) from outbox`, insert("repeatable"), `commit`)
	run("rolledback", 0, `begin`, insert("rolledback"), `rollback`)
	run("savepoint", 2, `begin`, insert("savepoint"), `savepoint a`, insert("savepoint"), `rollback to a`, `savepoint b`, insert("savepoint"), `release b`, `commit`)
	run("block", 1, `do $$ begin begin `+insert("block")+`; perform 1 / 0; exception when division_by_zero then null; end; `+insert("block")+`; end $$`)
	run("told", 3, `insert into thing values (1, 'made'), (2, 'made')`, `update thing set state = 'changed' where id = 1`)
	run("selected", 50, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select topic, 'Way', aggregate_id, 'E', 'x' from source`)
	run("with", 1, `with made as (insert into thing values (9, 'x') returning id) insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 'with', 'Way', id::text, 'E', 'x' from made`)
	want["told"]++
	run("conflict", 1, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('conflict', 'Way', 'c', 'E', 'x') on conflict do nothing`)
	run("upserted", 1, `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (nextval('outbox_seq_seq'), 'upserted', 'Way', 'u', 'E', 'x') on conflict (seq) do update set topic = excluded.topic`)
	run("prepared", 1, `begin`, `set local outbox.notify = off`, insert("prepared"), `prepare transaction 'way'`, `select pg_sleep(0.5)`, `commit prepared 'way'`)
	run("unprepared", 0, `begin`, `set local outbox.notify = off`, insert("unprepared"), `prepare transaction 'no way'`, `rollback prepared 'no way'`)
	run("replica", 1, `set session_replication_role = replica`, insert("replica"))
	run("late", 2, `begin`, insert("late"), `select pg_sleep(1.5)`, insert("late"), `commit`)
	run("held", 1, `begin`, `declare c cursor with hold for select 1`, insert("held"), `commit`)
	run("temporary", 1, `create temp table outbox (x int)`, strings.Replace(insert("temporary"), "into outbox", "into public.outbox", 1))
	run("path", 1, `set search_path = ''`, `select public.outbox_emit('path', 'Way', 'p', 'E', '{}'::text)`)
	run("strings", 1, `set standard_conforming_strings = off`, `set bytea_output = escape`, `set datestyle = 'German'`, insert("strings"))
	conn := s.Connect()
	n, err := conn.CopyFrom(t.Context(), pgx.Identifier{"outbox"}, []string{"topic", "aggregate_type", "aggregate_id", "event_type", "data"}, pgx.CopyFromSlice(2000, func(i int) ([]any, error) {
		return []any{"copied", "Way", fmt.Sprint("c", i), "E", []byte("x")}, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	want["copied"] = int(n)
	harness.Pause(t.Context(), 3*time.Second)
	stored, ids := map[string]int{}, map[string]bool{}
	for _, m := range s.Messages() {
		id := m.Header.Get("Nats-Msg-Id")
		if ids[id] {
			s.problem("event %s is stored twice", id)
		}
		ids[id] = true
		stored[m.Header.Get("Outbox-Topic")]++
	}
	for topic, n := range want {
		if stored[topic] != n {
			s.problem("%s: %d events are stored, want %d", topic, stored[topic], n)
		}
	}
	s.check("beside the others")
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}

// The names of schema and table need quotes of every kind. All commands cope.
func TestStrangeNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{`we"ird sch'ema.Out "Box"; drop\ --`, `public.select`, `日本.été`, `pg.$1`, `public.outbox_dead`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}), "OUTBOX_TABLE="+name)
			schema, table, _ := strings.Cut(name, ".")
			s.CommandWith(s.settings, "migrate")
			s.relay = s.Relay(s.settings...)
			if !s.relay.Await(20*time.Second, leading) {
				s.problem("it does not lead")
				s.verdict()
				return
			}
			quoted := pgx.Identifier{schema, table}.Sanitize()
			s.traffic = s.TrafficBy(s.Connect(), `insert into `+quoted+` (id, topic, aggregate_type, aggregate_id, event_type, data) values ($1, 'accounts', '`+harness.HonestType+`', $2, 'Changed', convert_to($3::text, 'UTF8'))`)
			s.Exec(s.conn, `select `+pgx.Identifier{schema, table + "_emit"}.Sanitize()+`('t', 'A', 'bad', 'E', 'x'::text, '{"Nats-Msg-Id": "x"}')`)
			harness.Pause(t.Context(), 3*time.Second)
			if d := s.traffic.Since(time.Now().Add(-2*time.Second), ""); late(d) {
				s.problem("others wait: %v", d)
			}
			for _, command := range []string{"status --json", "dead list --json", "doctor", "migrate", "migrate --print", "migrate --print-grants --producer p --relay r --migrator m", "replay --all --dry-run", "dead show letter:1", "dead requeue --all", "replay --all --new-ids", "replay --all"} {
				if result := s.Try(20*time.Second, s.settings, strings.Fields(command)...); result.Code != 0 {
					s.problem("%s: exit code %d: %s %s", command, result.Code, shortened(result.Stdout), shortened(result.Stderr))
				}
			}
			script := s.CommandWith(s.settings, "migrate", "--print")
			harness.Pause(t.Context(), time.Second)
			s.relay.Kill()
			s.traffic.Stop() // Otherwise they block each other, as Postgres says.
			if schema != "public" {
				s.Exec(s.conn, `drop schema `+pgx.Identifier{schema}.Sanitize()+` cascade`)
				if _, err := s.conn.PgConn().Exec(t.Context(), script).ReadAll(); err != nil {
					s.problem("the printed migration: %v", err)
				}
			}
			s.verdict()
		})
	}
}
