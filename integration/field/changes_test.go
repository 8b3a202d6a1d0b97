package field_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// The owner changes the tables while a relay works on them. What makes no difference to events makes none to anybody.
func TestTableChanged(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"types": `
alter table outbox alter topic type varchar(255), alter aggregate_type type varchar(255), alter event_type type varchar(100), alter last_error type varchar(20);
create domain name_of_thing as text check (value <> '');
alter table outbox alter aggregate_id type name_of_thing;
alter table outbox_dead alter topic type varchar(255), alter aggregate_id type varchar;
alter table outbox_published alter event_type type varchar(100)`,
		"collations": `
alter table outbox alter aggregate_id type text collate "C", alter aggregate_type type text collate "POSIX";
alter table outbox_dead alter aggregate_id type text collate "POSIX"`,
		"columns and names": `
alter table outbox add tenant text default 'x', add noted timestamptz not null default now(), add size int generated always as (octet_length(data)) stored;
alter table outbox rename constraint outbox_pkey to pk_outbox;
alter index outbox_retry_idx rename to ix_outbox_retry;
alter trigger outbox_wake on outbox rename to zz_wake;
alter table outbox alter data set storage external, alter data set compression pglz, alter headers set storage plain;
alter table outbox alter created_at drop default, alter attempts drop default;
create function fill() returns trigger language plpgsql as $$ begin new.created_at := now(); new.attempts := 0; return new; end $$;
create trigger fill before insert on outbox for each row execute function fill()`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "OUTBOX_ON_DEAD=hold")
			s.start()
			s.giveUp(t, parse(t, "headers=msg-id")[0])
			for _, fault := range s.traffic.Audit(20 * time.Second) {
				s.problem("%s", fault)
			}
			s.Exec(s.conn, sql)
			s.conn = s.Connect() // Postgres refuses to run triggers in PL/pgSQL that a session has compiled for other types.
			s.traffic = s.NewTraffic()
			harness.Eventually(t, 10*time.Second, "honest events flow", func() bool { return s.traffic.Arrived() >= 20 })
			s.mark()
			written, err := parse(t, "headers=status")[0].Write(t.Context(), s.conn, 2000, 1)
			if err != nil {
				t.Fatal(err)
			}
			s.fate(rowsCase{}, written)
			s.beside()
			s.verdict()
		})
	}
}

// The owner changes the tables so that no relay can work with them. It waits, says what is wrong, and goes on once it is
// mended.
func TestTableBroken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		broken, mended, says string
		refused              bool
	}{
		"a column is renamed":   {`alter table outbox rename event_type to kind`, `alter table outbox rename kind to event_type`, `event_type`, false},
		"a column is dropped":   {`alter table outbox drop attempts`, `alter table outbox add attempts int not null default 0`, `attempts`, false},
		"a column is a number":  {`alter table outbox alter attempts type bigint`, `alter table outbox alter attempts type int`, `attempts.*bigint`, false},
		"the table is renamed":  {`alter table outbox rename to outbox_old`, `alter table outbox_old rename to outbox`, `outbox`, false},
		"the table is moved":    {`create schema elsewhere; alter table outbox set schema elsewhere`, `alter table elsewhere.outbox set schema public`, `outbox`, false},
		"another of its name":   {`alter table outbox rename to outbox_old; create table outbox (seq bigint, id int)`, `drop table outbox; alter table outbox_old rename to outbox`, `another shape`, false},
		"letters lack a column": {`alter table outbox_dead rename last_error to why`, `alter table outbox_dead rename why to last_error`, `last_error`, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.start()
			s.Exec(s.conn, `begin`)
			if c.refused { // Only that needs the column.
				s.hostileRefused()
			}
			s.Exec(s.conn, c.broken)
			s.Exec(s.conn, `commit`)
			if !s.relay.Await(15*time.Second, regexp.MustCompile(`(?:WRN|ERR).*`+c.says)) {
				s.problem("the log does not say what is wrong")
			}
			harness.Pause(t.Context(), 2*time.Second)
			if !s.relay.Alive() {
				s.problem("the relay has ended")
				s.verdict()
				return
			}
			if code := s.relay.Get("/readyz"); code != 503 {
				s.problem("/readyz is %d, want 503", code)
			}
			s.Exec(s.conn, c.mended)
			began := time.Now()
			for !s.traffic.ArrivedSince(began) && time.Since(began) < 15*time.Second {
				harness.Pause(t.Context(), 50*time.Millisecond)
			}
			for _, fault := range s.traffic.Audit(20 * time.Second) {
				s.problem("%s", fault)
			}
			s.checkLog(s.began)
			s.verdict()
		})
	}
}

// hostileRefused inserts an event that the broker refuses.
func (s *scene) hostileRefused() {
	s.Helper()
	s.Exec(s.conn, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers) values ('hostile', 'Hostile', 'h', 'E', 'x', '{"Nats-Msg-Id": "x"}')`)
}

// Owners add to the tables what is theirs alone. It may concern rows, and the log names those; nobody else waits.
func TestAddedByOwners(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ sql, says, fails string }{
		"numbers": {`
alter sequence outbox_seq_seq increment by 100000000000000;
alter table outbox add note text generated always as (topic || 'x') stored, add amount numeric default 'NaN', alter retry_at set default now()`, "", ""},
		"the last numbers": {`select setval('outbox_seq_seq', 9223372036854775807 - 5000)`, "", ""},
		"conditions": {`
alter table outbox add check (attempts < 1), add unique (id), add check (last_error is null);
alter table outbox_dead add check (attempts > 5), add unique (id)`, `ERR.*does not record that an event was refused.*outbox_dead_attempts_check`, ""},
		"a trigger on the archive": {`
create function no() returns trigger language plpgsql as $$ begin if new.aggregate_id = 'h' then raise exception 'no'; end if; return new; end $$;
create trigger no before insert on outbox_published_0 for each row execute function no()`, `ERR.*does not let a published event's row go.*no\(\)`, "triggers"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.owner = c.fails
			s.start()
			s.Exec(s.conn, c.sql)
			s.hostile()
			s.hostileRefused()
			if c.says != "" && !s.relay.Await(fateWithin, regexp.MustCompile(c.says)) {
				s.problem("the log does not name the row")
			}
			s.beside()
			s.verdict()
		})
	}
}

// Somebody refuses every removal, by a trigger for the whole statement. Publishing stops with words, which name the function,
// and goes on without it; no term ends for a lack of signs of life.
func TestAllRemovalsRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.start()
	s.Exec(s.conn, `
create function no() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
create trigger no after delete on outbox for each statement execute function no()`)
	if !s.relay.Await(fateWithin, regexp.MustCompile(`ERR.*does not let a published event's row go.*no\(\)`)) {
		s.problem("the log does not name the function")
	}
	if !s.relay.Await(fateWithin, regexp.MustCompile(`WRN.*publishing paused`)) {
		s.problem("the log does not say that publishing is paused")
	}
	harness.Pause(t.Context(), 6*time.Second)
	if s.relay.Said("no sign of life") {
		s.problem("the log says that Postgres does not answer")
	}
	s.Exec(s.conn, `drop trigger no on outbox`)
	for _, fault := range s.traffic.Audit(40 * time.Second) {
		s.problem("%s", fault)
	}
	s.checkLog(s.began)
	s.verdict()
}

// The sequence counts down. That turns the order round, as doctor says; each event is stored once all the same.
func TestSequenceCountsDown(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.start()
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	s.Exec(s.conn, `alter sequence outbox_seq_seq increment by -1 minvalue 1 maxvalue 9223372036854775807 restart with 1000000`)
	b := s.Backlog().Add(s.conn, 30)
	harness.Pause(t.Context(), time.Second)
	b.Add(s.conn, 30)
	s.Settled(s.conn, 30*time.Second)
	stored := map[string]int{}
	for _, m := range s.Messages() {
		stored[m.Header.Get("Nats-Msg-Id")]++
	}
	for id, n := range stored {
		if n != 1 {
			s.problem("event %s is stored %d times", id, n)
		}
	}
	if result := s.Try(20*time.Second, s.settings, "doctor"); !strings.Contains(result.Stdout+result.Stderr, "counts down") {
		s.problem("doctor does not name the sequence: %s", shortened(result.Stdout))
	}
	s.verdict()
}
