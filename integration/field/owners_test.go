package field_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/go-outbox/go-outbox/integration/harness"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

// What owners of the tables do to them while a relay works: triggers, constraints, rules, maintenance.

// hostile inserts an event that a trigger or a constraint of the test's keeps in the table, and returns its id.
func (s *scene) hostile() (id string) {
	s.Helper()
	if err := s.conn.QueryRow(s.Context(), `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('hostile', 'Hostile', 'h', 'E', 'x') returning id::text`).Scan(&id); err != nil {
		s.Fatal(err)
	}
	return id
}

// beside watches honest events for a while, with this relay and then with the next one. In the end none of them is missing.
func (s *scene) beside() {
	s.Helper()
	began := s.began
	harness.Pause(s.Context(), watched)
	s.check("beside it")
	s.checkLog(began)
	s.checkCommands()
	s.takeover(func() {})
	harness.Pause(s.Context(), time.Second)
	s.check("at the next relay")
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
}

// A trigger lets one row not be deleted, with various errors. No other event is concerned, and the log names the row.
func TestTriggerRefusesOneRow(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"a code of its own":        `raise exception 'not this one' using errcode = 'AB123'`,
		"a code of Postgres'":      `raise exception 'not this one' using errcode = '55000'`,
		"a serialization failure":  `raise exception 'not this one' using errcode = '40001'`,
		"a missing table":          `insert into audit values (old.seq)`,
		"a missing privilege":      `raise exception 'not this one' using errcode = '42501'`,
		"a cancelled statement":    `raise exception 'not this one' using errcode = '57014'`,
		"a broken connection":      `raise exception 'not this one' using errcode = '08006'`,
		"a division by zero":       `perform 1 / 0`,
		"a read-only transaction":  `raise exception 'not this one' using errcode = '25006'`,
		"a function of the past":   `perform public.no_such_function()`,
		"what is not supported":    `raise exception 'not this one' using errcode = '0A000'`,
		"a limit of the set-up":    `raise exception 'not this one' using errcode = '53400'`,
		"a table that is corrupt":  `raise exception 'not this one' using errcode = 'XX001'`,
		"an assertion that failed": `assert false`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.owner = "triggers"
			s.Exec(s.conn, `create function veto() returns trigger language plpgsql as $$ begin if old.topic = 'hostile' then `+body+`; end if; return old; end $$`)
			s.Exec(s.conn, `create trigger veto before delete on outbox for each row execute function veto()`)
			s.start()
			id := s.hostile()
			if !s.relay.Await(fateWithin, regexp.MustCompile(`ERR.*does not let a published event's row go.*veto\(\)`)) {
				s.problem("the log does not name the trigger's function")
			}
			s.beside()
			if n := s.traffic.Stored(id); n != 1 {
				s.problem("the row is stored %d times", n)
			}
			s.verdict()
		})
	}
}

// A constraint that is checked at the commit is no worse than another.
func TestDeferredConstraints(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ sql, fails string }{
		"foreign key": {`create table note (seq bigint references outbox (seq) deferrable initially deferred);
create function note() returns trigger language plpgsql as $$ begin if new.topic = 'hostile' then insert into note values (new.seq); end if; return new; end $$;
create trigger note after insert on outbox for each row execute function note()`, "foreign keys"},
		"trigger": {`create function veto() returns trigger language plpgsql as $$ begin if old.topic = 'hostile' then raise exception 'not this one'; end if; return old; end $$;
create constraint trigger veto after delete on outbox deferrable initially deferred for each row execute function veto()`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.owner = c.fails
			s.Exec(s.conn, c.sql)
			s.start()
			id := s.hostile()
			if !s.relay.Await(fateWithin, regexp.MustCompile(`ERR.*does not let a published event's row go`)) {
				s.problem("the log does not name the row")
			}
			s.beside()
			if n := s.traffic.Stored(id); n != 1 {
				s.problem("the row is stored %d times", n)
			}
			s.verdict()
		})
	}
}

// A rule does something in addition to each deletion, or to each dead letter. Postgres refuses some statements on tables with
// rules.
func TestRules(t *testing.T) {
	t.Parallel()
	for name, rule := range map[string]string{
		"deletions":    `create rule audit as on delete to outbox do also insert into public.audit values (old.seq)`,
		"updates":      `create rule audit as on update to outbox do also insert into public.audit values (old.seq)`,
		"dead letters": `create rule audit as on insert to outbox_dead do also insert into public.audit values (new.seq)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.Exec(s.conn, `create table audit (seq bigint)`)
			s.Exec(s.conn, rule)
			s.start()
			s.giveUp(t, parse(t, "headers=msg-id")[0])
			s.beside()
			s.verdict()
		})
	}
}

// A trigger keeps a row out of the dead letters, without an error. The row is not lost.
func TestDeadLetterKeptOut(t *testing.T) {
	t.Parallel()
	for name, trigger := range map[string]string{
		"of the dead letters": `create trigger veto before insert on outbox_dead for each row execute function veto()`,
		"of the outbox":       `create trigger veto before delete on outbox for each row when (old.topic = 'hostile') execute function veto()`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.owner = "triggers"
			s.Exec(s.conn, `create function veto() returns trigger language plpgsql as $$ begin return null; end $$`)
			s.Exec(s.conn, trigger)
			s.start()
			var id string
			if err := s.conn.QueryRow(t.Context(), `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers) values ('hostile', 'Hostile', 'h', 'E', 'x', '{"Nats-Msg-Id": "x"}') returning id::text`).Scan(&id); err != nil {
				t.Fatal(err)
			}
			if !s.relay.Await(fateWithin, regexp.MustCompile(`ERR.*does not record that an event was refused.*`+id)) {
				s.problem("the log does not say that the row could not be moved")
			}
			s.beside()
			letters, err := s.letters()
			if err != nil || !strings.Contains(fmt.Sprint(letters), id) {
				s.problem("the row is not among the dead letters: %v %v", letters, err)
			}
			s.verdict()
		})
	}
}

// The broker loses the stream, and Postgres does not take one event back: the outbox has a foreign key to a row that is gone by
// now. The other events come back, and the log names that one.
func TestPutBackRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.Exec(s.conn, `create table thing (id text primary key)`)
	s.Exec(s.conn, `insert into thing select 'a' || i from generate_series(0, 100) i`)
	s.Exec(s.conn, `alter table outbox add foreign key (aggregate_id) references thing (id)`)
	s.relay = s.Relay(s.settings...)
	s.relay.Leads()
	rows, err := s.conn.Query(t.Context(), `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 't', 'Thing', 'a' || i % 100, 'E', 'x' from generate_series(1, 500) i returning id::text, aggregate_id`)
	if err != nil {
		t.Fatal(err)
	}
	refused, all := map[string]bool{}, 0
	var id, aggregate string
	if _, err := pgx.ForEachRow(rows, []any{&id, &aggregate}, func() error {
		all++
		if aggregate == "a17" {
			refused[id] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.Settled(s.conn, 20*time.Second)
	s.Exec(s.conn, `delete from thing where id = 'a17'`)
	s.loseStream()
	if !s.relay.Await(20*time.Second, regexp.MustCompile(`ERR.*does not take back an event.*aggregate_id_fkey`)) {
		s.problem("the log does not say that an event cannot be put back")
	}
	began := time.Now()
	s.Exec(s.conn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'Thing', 'a1', 'E', 'x')`)
	stored := map[string]int{}
	for len(stored) < all-len(refused)+1 && time.Since(began) < 20*time.Second {
		harness.Pause(t.Context(), 500*time.Millisecond)
		clear(stored)
		for _, m := range s.Messages() {
			stored[m.Header.Get("Nats-Msg-Id")]++
		}
	}
	if want := all - len(refused) + 1; len(stored) != want {
		s.problem("%d events are stored, want %d", len(stored), want)
	}
	for id := range refused {
		var kept bool
		if err := s.conn.QueryRow(t.Context(), `select exists (select from outbox_published where id = $1::uuid)`, id).Scan(&kept); err != nil {
			t.Fatal(err)
		}
		if !kept || stored[id] > 0 {
			s.problem("event %s: kept in the archive: %v, stored %d times", id, kept, stored[id])
		}
	}
	if terms := s.latestTerm(); terms > 1+boundTerms {
		s.problem("%d terms", terms)
	}
	s.verdict()
}

// The sequence gives each session fifty numbers at once. So a producer that was idle for a while writes lower seqs than others
// have written. That may change the order, as doctor says, but its events do not wait.
func TestSequenceCache(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.Exec(s.conn, `alter sequence outbox_seq_seq cache 50`)
	s.start()
	other := s.Connect()
	for range 400 {
		s.Exec(other, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'Other', 'o', 'E', 'x')`)
	}
	s.mark()
	s.beside()
	s.verdict()
}

// The relay's role has the setting "role", which makes each session another role, as with roles that are given for a day.
func TestRoleThatBecomesAnother(t *testing.T) {
	t.Parallel()
	s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
	role := s.role()
	owner := pgx.Identifier{"owner_" + s.conn.Config().Database}.Sanitize()
	s.Exec(s.conn, `create role `+owner)
	s.Exec(s.conn, `grant usage, create on schema public to `+owner)
	s.Exec(s.conn, `grant `+owner+` to `+role)
	s.Exec(s.conn, `alter role `+role+` set role = `+owner)
	s.Exec(s.conn, `alter role `+role+` noinherit`)
	s.Cleanup(func() {
		for _, sql := range []string{`drop owned by ` + owner + ` cascade`, `drop role ` + owner} {
			if _, err := s.conn.Exec(t.Context(), sql); err != nil {
				t.Log(err)
			}
		}
	})
	s.ordinary()
}

// The table that says who leads is emptied. The leader notices, and begins a term with a new number.
func TestTermDeleted(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.start()
	s.Exec(s.conn, `delete from outbox_relay`)
	if !s.relay.Await(20*time.Second, regexp.MustCompile(`leading.*term=2`)) {
		s.problem("the leader does not notice")
	}
	if !s.relay.Said("not recorded any more") {
		s.problem("the log does not say what happened")
	}
	s.beside()
	s.verdict()
}

// Somebody empties the table that says who leads, and the leader dies, with events that are stored and not settled yet. The
// next one finds them in the stream, whose duplicate window is over, and stores none of them again.
func TestTermDeletedAndLeaderKilled(t *testing.T) {
	t.Parallel()
	for _, retain := range []string{"5m", "0s"} {
		t.Run("retain "+retain, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "OUTBOX_DUPLICATE_WINDOW=2s", "OUTBOX_RETAIN="+retain)
			s.start()
			s.Exec(s.conn, `
create function wait() returns trigger language plpgsql as $$ begin if old.topic = 'told' then perform pg_advisory_xact_lock(77); end if; return old; end $$;
create trigger wait before delete on outbox for each row execute function wait()`)
			s.Exec(s.conn, `select pg_advisory_lock(77)`)
			rows, err := s.conn.Query(t.Context(), `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 'told', 'Told', 't' || i % 3, 'E', 'x' from generate_series(1, 30) i returning id::text`)
			if err != nil {
				t.Fatal(err)
			}
			told, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, 10*time.Second, "the events are stored", func() bool { return s.traffic.Stored(told[29]) == 1 })
			s.relay.Kill()
			s.EndSessions(s.conn)
			s.Exec(s.conn, `select pg_advisory_unlock(77)`)
			s.Exec(s.conn, `drop trigger wait on outbox`)
			s.Exec(s.conn, `delete from outbox_relay`)
			harness.Pause(t.Context(), 3*time.Second) // Until the ids are forgotten.
			var left int
			if err := s.conn.QueryRow(t.Context(), `select count(*) from outbox where topic = 'told'`).Scan(&left); err != nil || left != len(told) {
				t.Fatalf("%d of %d events wait, error %v: this test shows nothing", left, len(told), err)
			}
			s.relay = s.Relay(s.settings...)
			s.relay.Leads()
			s.Settled(s.conn, 20*time.Second)
			harness.Pause(t.Context(), time.Second)
			for _, id := range told {
				if n := s.traffic.Stored(id); n != 1 {
					s.problem("event %s is stored %d times", id, n)
				}
			}
			if !s.relay.Said("reading back the whole stream") {
				s.problem("the log does not say what happened")
			}
			for _, fault := range s.traffic.Audit(20 * time.Second) {
				s.problem("%s", fault)
			}
			s.verdict()
		})
	}
}

// Others maintain the tables, which takes locks of every kind, and cancel the relay's statements. No event waits for long.
func TestMaintenance(t *testing.T) {
	t.Parallel()
	for name, statements := range map[string][]string{
		"vacuum and indexes": {
			`vacuum full outbox`, `reindex table outbox`, `cluster outbox using outbox_pkey`, `reindex table concurrently outbox`, `analyze outbox`,
			`vacuum full outbox_published_0`, `vacuum full outbox_relay`, `vacuum freeze outbox`, `create index concurrently tmp on outbox (topic)`, `drop index concurrently tmp`,
		},
		"columns": {
			`alter table outbox add column x integer default 7`, `alter table outbox drop column x`, `alter table outbox_published add column x integer`, `alter table outbox_published drop column x`,
			`alter table outbox alter column created_at set statistics 10`, `alter table outbox set (fillfactor = 90)`,
		},
		"cancelled": {`select pg_cancel_backend(pid) from pg_stat_activity where application_name like 'outbox-relay%' and datname = current_database()`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.start()
			for range 5 {
				for _, sql := range statements {
					s.maintain(sql)
					harness.Pause(t.Context(), 10*time.Millisecond)
				}
			}
			s.beside()
			s.verdict()
		})
	}
}

// maintain executes a statement, again while Postgres chooses it as the victim of a deadlock. Before each attempt it removes
// what an earlier one left of an index.
func (s *scene) maintain(sql string) {
	s.Helper()
	for range 10 {
		_, err := s.conn.Exec(s.Context(), sql)
		if refusal := new(pgconn.PgError); !errors.As(err, &refusal) || refusal.Code != "40P01" {
			if err != nil {
				s.Fatalf("%s: %v", sql, err)
			}
			return
		}
		if strings.HasPrefix(sql, "create index concurrently tmp") {
			s.Exec(s.conn, `drop index if exists tmp`)
		}
	}
	s.Fatalf("%s: always the victim of a deadlock", sql)
}

// A payload cannot be read, since the disk has lost it. Only that event is given up.
func TestCorruptPayload(t *testing.T) {
	t.Parallel()
	s := newBareScene(t, harness.NewWorld(t, harness.Options{Quiet: true}))
	s.CommandWith(s.settings, "migrate")
	var id, toast string
	if err := s.conn.QueryRow(t.Context(), `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 'hostile', 'Hostile', 'h', 'E', convert_to(string_agg(md5(g::text), ''), 'UTF8') from generate_series(1, 3000) g returning id::text`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	if err := s.conn.QueryRow(t.Context(), `select pg_relation_filepath(reltoastrelid) from pg_class where oid = 'outbox'::regclass`).Scan(&toast); err != nil {
		t.Fatal(err)
	}
	s.Exec(s.conn, `checkpoint`)
	if err := s.Postgres.Stop(postgres.Fast); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(s.Postgres.LogFile()), "data", toast)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, info.Size()), 0o600); err != nil { // Pages of zeros are empty ones.
		t.Fatal(err)
	}
	if err := s.Postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.conn = s.Connect()
	s.start()
	if !s.relay.Await(fateWithin, regexp.MustCompile(`ERR.*`+id+`.*(missing chunk|not readable)`)) {
		s.problem("the log does not name the row")
	}
	s.beside()
	if letters, err := s.letters(); err != nil || !strings.Contains(fmt.Sprint(letters), id) {
		s.problem("the row is not among the dead letters: %v %v", letters, err)
	}
	s.verdict()
}

// A relay may have only one connection, and takes over from a relay that crashed. It must read the archive nevertheless.
func TestTakeoverOnOneConnection(t *testing.T) {
	t.Parallel()
	s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
	role := s.role()
	s.CommandWith(s.settings, "migrate")
	s.start()
	s.Exec(s.conn, `alter role `+role+` connection limit 1`)
	s.takeover(func() {})
	harness.Pause(t.Context(), watched)
	if terms := s.latestTerm() - s.term; terms > 0 {
		s.problem("%d new terms", terms)
	}
	// Without a connection that listens, it polls every second.
	if d := s.traffic.Since(s.began, ""); d.Events == 0 || d.P99 > 3*time.Second {
		s.problem("others wait: %v", d)
	}
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}
