package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// old is a database with the tables of version 1.
type old struct {
	*Outbox

	dsn  string
	conn *pgx.Conn
	log  *records
}

func newOld(t *testing.T, table Table) *old {
	t.Helper()
	o := &old{dsn: storetest.NewDatabase(t), log: &records{}}
	o.conn = o.connect(t)
	scripts, err := table.scripts("")
	if err != nil {
		t.Fatal(err)
	}
	o.exec(t, `create schema if not exists `+quote(table.orDefault().Schema))
	o.exec(t, table.createMigrations())
	o.exec(t, scripts[0])
	o.exec(t, `insert into `+table.migrations()+` (version) values (1)`)
	if o.Outbox, err = Open(o.dsn, Options{Table: table, Retain: time.Minute, Logger: slog.New(o.log)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(context.WithoutCancel(t.Context())) })
	return o
}

func (o *old) connect(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func (o *old) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := o.conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (o *old) text(t *testing.T, sql string) (found string) {
	t.Helper()
	if err := o.conn.QueryRow(t.Context(), sql).Scan(&found); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return found
}

// migrate migrates with a patience of its own.
func (o *old) migrate(ctx context.Context, t *testing.T, patience time.Duration) error {
	t.Helper()
	conn, err := pgx.Connect(ctx, o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	m := migration{table: o.Table(), conn: conn, log: slog.New(o.log), patience: patience}
	err = m.migrate(ctx)
	_ = conn.Close(context.WithoutCancel(ctx)) // It may be closed already.
	return err
}

// records is a [slog.Handler] that keeps what was logged as text, and tells of each record.
type records struct {
	mu   sync.Mutex
	text strings.Builder
	each func(message string)
}

// Enabled implements [slog.Handler].
func (*records) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements [slog.Handler].
func (r *records) Handle(ctx context.Context, record slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.each != nil {
		r.each(record.Message)
	}
	return slog.NewTextHandler(&r.text, &slog.HandlerOptions{Level: slog.LevelDebug}).Handle(ctx, record)
}

// WithAttrs implements [slog.Handler].
func (r *records) WithAttrs([]slog.Attr) slog.Handler { return r }

// WithGroup implements [slog.Handler].
func (r *records) WithGroup(string) slog.Handler { return r }

// String returns what was logged.
func (r *records) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// shape tells all that the catalogs know of an outbox's objects but how far an upgrade has come.
const shape = `
select string_agg(line, E'\n' order by line) from (
    select concat_ws(' ', 'column', c.relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, pg_get_expr(adbin, adrelid)) as line
      from pg_attribute a join pg_class c on c.oid = attrelid left join pg_attrdef on adrelid = attrelid and adnum = attnum
     where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and attnum > 0 and not attisdropped and attname <> 'steps'
    union all select concat_ws(' ', 'table', relname, relkind, relreplident, reloptions) from pg_class where relnamespace = 'public'::regnamespace
    union all select concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid)) from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n'
    union all select concat_ws(' ', 'index', indexdef) from pg_indexes where schemaname = 'public'
    union all select concat_ws(' ', 'index', indexrelid::regclass, indisvalid) from pg_index where indexrelid::regclass::text like 'outbox%'
    union all select concat_ws(' ', 'function', pg_get_functiondef(oid)) from pg_proc where pronamespace = 'public'::regnamespace) lines`

func TestUpgradeEqualsCreation(t *testing.T) {
	o := newOld(t, Table{})
	o.fill(t)
	if _, err := o.Inspect(t.Context()); !errors.Is(err, ErrOldSchema) {
		t.Errorf("before the upgrade: got %v, want ErrOldSchema", err)
	}
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := o.Check(t.Context()); err != nil {
		t.Error(err)
	}
	got := o.text(t, shape)

	created := &old{dsn: storetest.NewDatabase(t)}
	created.conn = created.connect(t)
	outbox, err := Open(created.dsn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := created.text(t, shape); got != want {
		t.Errorf("the upgraded tables differ from new ones:\n%s", difference(got, want))
	}
	o.kept(t)
}

// The same for a table whose name needs quoting, and a schema that is on no search_path.
func TestUpgradeOfNamedTable(t *testing.T) {
	o := newOld(t, Table{Schema: `sh"op`, Name: `Ev'en\t s`})
	o.exec(t, `insert into "sh""op"."Ev'en\t s" (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`)
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := o.Check(t.Context()); err != nil {
		t.Error(err)
	}
	o.exec(t, `select "sh""op"."Ev'en\t s_emit"('t', 'A', '1', 'E', 'x')`)
}

func difference(got, want string) string {
	var b strings.Builder
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for _, line := range g {
		if !slices.Contains(w, line) {
			b.WriteString("got  " + line + "\n")
		}
	}
	for _, line := range w {
		if !slices.Contains(g, line) {
			b.WriteString("want " + line + "\n")
		}
	}
	return b.String()
}

// fill makes rows of version 1 in all tables.
func (o *old) fill(t *testing.T) {
	t.Helper()
	o.exec(t, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers)
select 't', 'A', n::text, 'E', '', '{"a":"b"}' from generate_series(1, 100) n`)
	o.exec(t, `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error)
select n, gen_random_uuid(), 't', 'A', n::text, 'E', '', now(), 3, 'refused' from generate_series(1000, 1, -1) n`)
	o.exec(t, `insert into outbox_relay (stream, term, leader, leader_since) values ('OUTBOX', 7, 'one', now())`)
}

// kept looks whether what fill made is there, and dead letters are numbered in the order of their seqs.
func (o *old) kept(t *testing.T) {
	t.Helper()
	for sql, want := range map[string]string{
		`select count(*)::text from outbox where given_up_at is null`:                                                              "100",
		`select count(distinct letter)::text from outbox_dead`:                                                                     "1000",
		`select count(*)::text from outbox_dead a join outbox_dead b on a.seq < b.seq and a.letter > b.letter`:                     "0",
		`select (max(letter) < nextval(pg_get_serial_sequence('outbox_dead', 'letter')))::text from outbox_dead`:                   "true",
		`select concat_ws(' ', stream, term, scan_from, coalesce(max_payload::text, 'null')) from outbox_relay`:                    "OUTBOX 7 0 null",
		`select string_agg(version::text, ' ' order by version) from outbox_migrations`:                                            "1 2 3 4",
		`select count(*)::text from pg_trigger where tgrelid = 'outbox'::regclass and tgname = 'outbox_check' and tgenabled = 'O'`: "1",
	} {
		if got := o.text(t, sql); got != want {
			t.Errorf("%s: got %s, want %s", sql, got, want)
		}
	}
}

// An upgrade that is interrupted before any of its steps goes on where it stopped.
func TestUpgradeGoesOn(t *testing.T) {
	o := newOld(t, Table{})
	o.fill(t)
	for interrupted := 0; ; interrupted++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		seen := 0
		o.log.each = func(message string) {
			if message == "upgrade the tables" {
				if seen++; seen == 2 { // One step more each time.
					cancel(errors.New("interrupted"))
				}
			}
		}
		err := o.migrate(ctx, t, time.Minute)
		cancel(nil)
		if err == nil {
			if interrupted < 10 {
				t.Errorf("it was interrupted %d times only", interrupted)
			}
			break
		}
		if version := o.text(t, `select max(version)::text from outbox_migrations`); version == strconv.Itoa(latestVersion()) {
			t.Fatalf("interrupted it is at version %s already", version)
		}
		if interrupted > 100 {
			t.Fatalf("it does not go on: %v", err)
		}
		// A relay of version 1 goes on meanwhile.
		o.exec(t, `insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error)
select max(seq) + 1, gen_random_uuid(), 't', 'A', '1', 'E', '', now(), 3, 'refused' from outbox_dead`)
	}
	o.exec(t, `delete from outbox_dead where seq > 1000`)
	o.kept(t)
}

// What a build that was interrupted has left is removed.
func TestUpgradeRemovesInvalidIndex(t *testing.T) {
	o := newOld(t, Table{})
	o.fill(t)
	o.exec(t, `update outbox set topic = topic`)
	reader := o.connect(t)
	if _, err := reader.Exec(t.Context(), `begin isolation level repeatable read; select count(*) from outbox_relay`); err != nil {
		t.Fatal(err)
	}
	_, err := o.conn.Exec(t.Context(), `set statement_timeout = 300`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.conn.Exec(t.Context(), `create index concurrently outbox_dead_seq_idx on outbox_dead (seq)`); err == nil {
		t.Fatal("the index was built though an older transaction is under way")
	}
	o.exec(t, `set statement_timeout = 0`)
	if _, err := reader.Exec(t.Context(), `rollback`); err != nil {
		t.Fatal(err)
	}
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.kept(t)
	if got := o.text(t, `select indisvalid::text from pg_index where indexrelid = 'outbox_dead_seq_idx'::regclass`); got != "true" {
		t.Error("the index is invalid")
	}
}

// An index of a large table is built while producers insert and an old transaction reads something else; it is waited
// for, and named if that takes too long.
func TestUpgradeOfLargeTable(t *testing.T) {
	o := newOld(t, Table{})
	o.exec(t, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 't', 'A', '1', 'E', convert_to(repeat('x', 500), 'UTF8') from generate_series(1, 20000) n`)
	o.exec(t, `create table other (n int)`)
	reader := o.connect(t)
	if _, err := reader.Exec(t.Context(), `set application_name = 'the reader'; begin isolation level repeatable read; select count(*) from other`); err != nil {
		t.Fatal(err)
	}
	err := o.migrate(t.Context(), t, 300*time.Millisecond)
	for _, want := range []string{"older transactions", fmt.Sprintf("pid %d ", reader.PgConn().PID()), "the reader", "run this again later"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("got %v, want an error with %q", err, want)
		}
	}
	if _, err := reader.Exec(t.Context(), `rollback`); err != nil {
		t.Fatal(err)
	}
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := o.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// producers insert, four at once, until task has returned, and return how long each insert took, in rising order.
func (o *old) producers(t *testing.T, task func() error) []time.Duration {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	latencies := make([][]time.Duration, 4)
	for i := range latencies {
		conn := o.connect(t)
		wg.Go(func() {
			for ctx.Err() == nil { // An insert is not interrupted.
				start := time.Now()
				if _, err := conn.Exec(context.WithoutCancel(ctx), `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`); err != nil {
					t.Error(err)
					return
				}
				latencies[i] = append(latencies[i], time.Since(start))
				time.Sleep(time.Millisecond)
			}
		})
	}
	err := task()
	stop()
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(slices.Values(slices.Concat(latencies...)))
}

// Producers wait neither for an upgrade nor for its lock request, though one of them keeps the table for a second.
func TestUpgradeLetsProducersPass(t *testing.T) {
	o := newOld(t, Table{})
	alone := o.producers(t, func() error { return pause(t.Context(), 2*time.Second) })
	slow := o.connect(t)
	if _, err := slow.Exec(t.Context(), `begin; insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`); err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	time.AfterFunc(1500*time.Millisecond, func() {
		defer close(released)
		_, _ = slow.Exec(t.Context(), `commit`)
	})
	defer func() { <-released }() // The connection is closed after that.
	beside := o.producers(t, func() error { return o.Migrate(t.Context()) })
	// On a machine that is busy with others an insert takes long by itself.
	busy, got := alone[len(alone)-1], beside[len(beside)*999/1000]
	if most := 100*time.Millisecond + busy; got > most {
		t.Errorf("a producer in a thousand waited %v, want at most %v", got, most)
	}
	if got := beside[len(beside)-1]; got > time.Second+busy {
		t.Errorf("a producer waited %v", got)
	}
	if got := o.log.String(); !strings.Contains(got, "a table to be altered is in use") || !strings.Contains(got, fmt.Sprintf("pid %d ", slow.PgConn().PID())) {
		t.Errorf("the log does not name the transaction that is waited for:\n%s", got)
	}
}

func TestUpgradeNamesWhoIsInTheWay(t *testing.T) {
	o := newOld(t, Table{})
	if _, err := o.conn.Exec(t.Context(), `set application_name = 'nightly job'; begin; insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`); err != nil {
		t.Fatal(err)
	}
	err := o.migrate(t.Context(), t, 500*time.Millisecond)
	for _, want := range []string{`"public"."outbox" is in use by pid `, "nightly job", "idle in transaction", "end that transaction"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	o.exec(t, `commit`)
	if err := o.Migrate(t.Context()); err != nil {
		t.Error(err)
	}
}

// Rows that are older than the checks stay; the relay can note what became of them, and new ones are refused.
func TestUpgradeKeepsRows(t *testing.T) {
	o := newOld(t, Table{})
	o.exec(t, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers, attempts) values
		('', 'A', '1', 'E', '', null, 0), ('t', 'A', '1', 'E', '', '{"a": {"b": "c"}}', 0), ('t', 'A', '1', 'E', '', '["x"]', 0), ('t', 'A', '1', 'E', '', null, 2147483647)`)
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.exec(t, `update outbox set attempts = least(attempts::bigint + 1, 1000000), retry_at = now(), last_error = 'refused'`)
	o.exec(t, `update outbox set given_up_at = now()`)
	if got := o.text(t, `select count(*)::text from outbox where given_up_at is not null`); got != "4" {
		t.Errorf("%s of 4 old rows are there", got)
	}
	if _, err := o.conn.Exec(t.Context(), `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('', 'A', '1', 'E', '')`); err == nil {
		t.Error("a new row without a topic was taken")
	}
}

// grantsOfVersion1 are what a relay of version 1 needed.
func grantsOfVersion1(t Table, role string) string {
	grants, _, _ := strings.Cut(t.Grants(role), "; GRANT SELECT ON SEQUENCE")
	return strings.Replace(grants, ", "+t.candidatesTable()+", "+t.pause(), "", 1)
}

// The roles that relays and producers had before go on without a GRANT.
func TestUpgradePassesPrivilegesOn(t *testing.T) {
	o := newOld(t, Table{})
	names := map[string]string{}
	for _, name := range []string{"relay", "producer", "columns"} {
		names[name] = fmt.Sprintf("Old %s %d", name, time.Now().UnixNano())
		o.exec(t, `create role `+quote(names[name]))
		t.Cleanup(func() {
			_, _ = o.conn.Exec(context.WithoutCancel(t.Context()), `drop owned by `+quote(names[name])+`; drop role `+quote(names[name]))
		})
	}
	o.exec(t, grantsOfVersion1(o.Table(), quote(names["relay"])))
	o.exec(t, `grant insert on outbox to `+quote(names["producer"]))
	o.exec(t, `grant insert (topic, aggregate_type, aggregate_id, event_type, data) on outbox to `+quote(names["columns"]))
	o.exec(t, `alter default privileges revoke execute on functions from public`)
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.exec(t, `set role `+quote(names["relay"]))
	if err := o.Table().check(t.Context(), o.conn); err != nil {
		t.Errorf("the relay's role: %v", err)
	}
	for _, name := range []string{"producer", "columns"} {
		o.exec(t, `reset role`)
		o.exec(t, `set role `+quote(names[name]))
		if got := o.text(t, `select has_function_privilege('outbox_emit(text, text, text, text, text, jsonb, uuid)', 'EXECUTE')::text`); got != "true" {
			t.Errorf("%s may not call outbox_emit", name)
		}
	}
	o.exec(t, `reset role`)
	o.exec(t, `alter default privileges grant execute on functions to public`)
}

// Only an owner can alter tables: others are told whom to ask, before anything is changed.
func TestUpgradeNeedsTheOwner(t *testing.T) {
	o := newOld(t, Table{})
	role := fmt.Sprintf("relay_%d", time.Now().UnixNano())
	o.exec(t, `create role `+role)
	t.Cleanup(func() {
		_, _ = o.conn.Exec(context.WithoutCancel(t.Context()), `drop owned by `+role+`; drop role `+role)
	})
	o.exec(t, grantsOfVersion1(o.Table(), role))
	limited, err := Open(o.dsn+"&role="+role, Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = limited.Migrate(t.Context())
	if !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), "only the owner of the tables, role ") {
		t.Errorf("got %v, want ErrPrivilege that names the owner", err)
	}
}
