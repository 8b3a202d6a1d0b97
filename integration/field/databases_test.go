package field_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/integration/harness"
)

var leading = regexp.MustCompile(`leading.*term=\d+`)

// settings of roles and databases, in groups that are tried together.
var settingsOfRoles = []struct { //nolint:gochecknoglobals // A constant, were it not a slice.
	name     string
	settings []string
	since    int // The major version that knows them all; 0 for any.
}{
	{"time-outs", []string{"statement_timeout = '100ms'", "lock_timeout = '10ms'", "idle_in_transaction_session_timeout = '50ms'", "idle_session_timeout = '300ms'"}, 0},
	{"transaction time-out", []string{"transaction_timeout = '100ms'"}, 17},
	{"read-only", []string{"default_transaction_read_only = on"}, 0},
	{"serializable", []string{"default_transaction_isolation = 'serializable'", "default_transaction_deferrable = on"}, 0},
	{"serializable and read-only", []string{"default_transaction_isolation = 'serializable'", "default_transaction_read_only = on", "default_transaction_deferrable = on"}, 0},
	{"texts", []string{
		"datestyle = 'German, DMY'", "intervalstyle = 'sql_standard'", "timezone = 'Asia/Kathmandu'", "bytea_output = 'escape'", "extra_float_digits = -15",
		"standard_conforming_strings = off", "escape_string_warning = off", "backslash_quote = on", "client_encoding = 'LATIN1'", "xmlbinary = 'hex'", "xmloption = 'document'", "quote_all_identifiers = on",
		"transform_null_equals = on", "array_nulls = off", "default_text_search_config = 'simple'", "lc_messages = 'C'",
	}, 0},
	{"plans", []string{
		"enable_indexscan = off", "enable_indexonlyscan = off", "enable_hashjoin = off", "enable_mergejoin = off", "enable_nestloop = off", "enable_sort = off", "enable_material = off",
		"enable_tidscan = off", "plan_cache_mode = 'force_generic_plan'", "jit = on", "jit_above_cost = 0", "work_mem = '64kB'", "temp_buffers = 100", "random_page_cost = 1000",
		"cursor_tuple_fraction = 1", "from_collapse_limit = 1", "constraint_exclusion = off", "enable_partition_pruning = off",
	}, 0},
	{"custom plans", []string{"plan_cache_mode = 'force_custom_plan'", "enable_seqscan = on", "random_page_cost = 0", "max_parallel_workers_per_gather = 8", "min_parallel_table_scan_size = 0"}, 0},
	{"row security off", []string{"row_security = off"}, 0},
	{"replication", []string{"synchronous_commit = 'remote_apply'", "session_replication_role = 'replica'"}, 0},
	{"logs", []string{"log_min_duration_statement = 0", "log_statement = 'all'", "log_parameter_max_length_on_error = -1", "client_min_messages = 'debug5'", "track_activities = off", "debug_print_plan = on"}, 0},
	{"compatibility", []string{"check_function_bodies = off", "default_table_access_method = 'heap'", "default_toast_compression = 'pglz'", "gin_fuzzy_search_limit = 1", "vacuum_freeze_min_age = 0", "tcp_keepalives_idle = 1", "tcp_user_timeout = 100"}, 0},
	{"search path", []string{"search_path = ''"}, 0},
}

// The relay's role has settings that were meant for people or for other programs.
func TestSettings(t *testing.T) {
	t.Parallel()
	for _, group := range settingsOfRoles {
		t.Run(group.name, func(t *testing.T) {
			t.Parallel()
			s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
			needsVersion(t, s.conn, group.since)
			role := s.role()
			for _, setting := range group.settings {
				s.Exec(s.conn, `alter role `+role+` set `+setting)
			}
			s.ordinary()
		})
	}
	t.Run("of the database", func(t *testing.T) {
		t.Parallel()
		s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
		for _, group := range settingsOfRoles[5:7] {
			for _, setting := range group.settings {
				s.Exec(s.conn, `alter database `+pgx.Identifier{s.conn.Config().Database}.Sanitize()+` set `+setting)
			}
		}
		s.ordinary()
	})
}

// A new leader has much to read, and statements of its role may not take long.
func TestStatementTimeoutAndLargeArchive(t *testing.T) {
	t.Parallel()
	s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
	role := s.role()
	s.CommandWith(s.settings, "migrate")
	s.Exec(s.conn, `
insert into outbox_published (part, stream, after, seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at)
select 0, 'ANOTHER', 1, 1000000000 + i, gen_random_uuid(), 't', 'A', 'a', 'E', '', now() from generate_series(1, 400000) i`)
	s.Exec(s.conn, `alter role `+role+` set statement_timeout = '30ms'`)
	s.ordinary()
}

func needsVersion(t *testing.T, conn *pgx.Conn, major int) {
	t.Helper()
	var version int
	if err := conn.QueryRow(t.Context(), `select current_setting('server_version_num')::int / 10000`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < major {
		t.Skipf("needs PostgreSQL %d", major)
	}
}

// A publication of all tables refuses updates and deletions where a table has no replica identity.
func TestPublication(t *testing.T) {
	t.Parallel()
	t.Run("before the tables", func(t *testing.T) {
		t.Parallel()
		s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
		s.Exec(s.conn, `create publication everything for all tables`)
		s.ordinary()
	})
	t.Run("after the tables", func(t *testing.T) {
		t.Parallel()
		s := newScene(t)
		s.Exec(s.conn, `create publication everything for all tables`)
		s.ordinary()
	})
	t.Run("and the stream is lost", func(t *testing.T) {
		t.Parallel()
		s := newScene(t)
		s.Exec(s.conn, `create publication everything for all tables`)
		s.Relay(s.settings...).Leads()
		b := s.Backlog()
		b.Add(s.conn, 200).Audit(s.conn)
		s.loseStream()
		harness.Eventually(t, 30*time.Second, "what the stream held comes back", func() bool { return b.Stored() >= 200 })
		b.Audit(s.conn)
	})
}

// loseStream deletes the stream and creates it anew.
func (s *scene) loseStream() {
	s.Helper()
	js := s.JetStream()
	stream, err := js.Stream(s.Context(), "OUTBOX")
	if err != nil {
		s.Fatal(err)
	}
	config := stream.CachedInfo().Config
	if err := js.DeleteStream(s.Context(), "OUTBOX"); err != nil {
		s.Fatal(err)
	}
	if _, err := js.CreateStream(s.Context(), config); err != nil {
		s.Fatal(err)
	}
}

// The connection string names two hosts, and the first does not answer.
func TestHosts(t *testing.T) {
	t.Parallel()
	frozen := silent(t)
	for name, first := range map[string]string{"frozen": frozen, "closed": "127.0.0.1:1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.use(strings.Replace(s.DSN, "127.0.0.1:", first+",127.0.0.1:", 1))
			s.relay = s.Relay(s.settings...)
			if !s.relay.Await(20*time.Second, leading) {
				s.problem("the second host is not reached within 20 s")
				s.verdict()
				return
			}
			s.EndSessions(s.conn)
			terms := regexp.MustCompile(`leading.*term=2`)
			if !s.relay.Await(20*time.Second, terms) {
				s.problem("the second host is not reached again within 20 s")
			}
			s.verdict()
		})
	}
}

// silent listens, takes connections and says nothing.
func silent(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
	}()
	return listener.Addr().String()
}

// There are functions, operators, types and tables with the names of those in pg_catalog, in a schema that comes first in the
// search_path of the relay's role. None of them may run or count.
func TestImpostors(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"before pg_catalog": `evil, pg_catalog, public`, "after pg_catalog": `evil, public`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
			role := s.role()
			plant(s)
			s.Exec(s.conn, `grant usage on schema evil to `+role)
			s.Exec(s.conn, `alter role `+role+` set search_path = `+path)
			s.ordinary()
			var called string
			if err := s.conn.QueryRow(t.Context(), `select coalesce(string_agg(distinct name, ', '), '') from evil.called`).Scan(&called); err != nil {
				t.Fatal(err)
			}
			if called != "" {
				t.Errorf("run as the relay's role: %s", called)
			}
		})
	}
}

// plant makes the schema evil. It has each function of pg_catalog, with the same arguments and with arguments that fit a call
// better; operators and types likewise. Each call of one leaves a trace.
func plant(s *scene) {
	s.Helper()
	s.Exec(s.conn, `
create schema evil;
create table evil.called (name text);
grant insert on evil.called to public;
do $plant$
declare
    f record;
begin
    for f in select p.proname, pg_get_function_identity_arguments(p.oid) arguments, format_type(p.prorettype, null) result
               from pg_proc p
              where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f' and not proretset and provariadic = 0
                and prorettype not in (select oid from pg_type where typtype = 'p')
                and not exists (select from unnest(proargtypes) a join pg_type t on t.oid = a where t.typtype = 'p')
                and proname !~ '^(binary_upgrade|pg_replication|pg_logical|txid_|lo_)' loop
        begin
            execute format('create function evil.%I(%s) returns %s language plpgsql as $f$ begin insert into evil.called values (%L); return null; end $f$',
                f.proname, f.arguments, f.result, f.proname);
        exception when others then
            null; -- Not all can be made again.
        end;
    end loop;
    for f in select oprname, format_type(oprleft, null) l, format_type(oprright, null) r, format_type(oprresult, null) result, row_number() over () n
               from pg_operator where oprnamespace = 'pg_catalog'::regnamespace and oprkind = 'b'
                and oprresult not in (select oid from pg_type where typtype = 'p')
                and oprleft not in (select oid from pg_type where typtype = 'p') and oprright not in (select oid from pg_type where typtype = 'p') loop
        begin
            execute format('create function evil.operator_%s(%s, %s) returns %s language plpgsql as $f$ begin insert into evil.called values (%L); return null; end $f$',
                f.n, f.l, f.r, f.result, f.l || ' ' || f.oprname || ' ' || f.r);
            execute format('create operator evil.%s (leftarg = %s, rightarg = %s, function = evil.operator_%s)', f.oprname, f.l, f.r, f.n);
        exception when others then
            null;
        end;
    end loop;
    for f in select name, arguments, result from (values
            ('get_bit', 'bytea, integer', 'integer'), ('has_table_privilege', 'regclass, text', 'boolean'), ('has_table_privilege', 'text, varchar', 'boolean'),
            ('pg_try_advisory_lock', 'text, text', 'boolean'), ('pg_try_advisory_lock', 'numeric', 'boolean'), ('pg_advisory_unlock', 'text, text', 'boolean'),
            ('to_regclass', 'varchar', 'regclass'), ('set_config', 'varchar, varchar, boolean', 'text'), ('current_setting', 'varchar', 'text'),
            ('pg_notify', 'varchar, varchar', 'text'), ('format', 'varchar, text', 'text'), ('octet_length', 'varchar', 'integer'), ('length', 'varchar', 'integer'),
            ('least', 'bigint, bigint', 'bigint'), ('greatest', 'bigint, bigint', 'bigint')) v (name, arguments, result) loop
        execute format('create function evil.%I(%s) returns %s language plpgsql as $f$ begin insert into evil.called values (%L); return null; end $f$',
            f.name, f.arguments, f.result, f.name || '(' || f.arguments || ')');
    end loop;
    create function evil.times(bigint, interval) returns interval language plpgsql as $f$ begin insert into evil.called values ('bigint * interval'); return null; end $f$;
    create operator evil.* (leftarg = bigint, rightarg = interval, function = evil.times);
    for f in select typname from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype = 'b' and typname !~ '^_' and typname <> 'char' loop
        execute format('create domain evil.%I as pg_catalog.int4 check (false)', f.typname);
    end loop;
    for f in select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'v') loop
        begin
            execute format('create view evil.%I as select * from pg_catalog.%I where false', f.relname, f.relname);
        exception when others then
            null; -- Some have columns of types that nobody may use.
        end;
    end loop;
end
$plant$;
grant select on all tables in schema evil to public;`)
}

// What the relay publishes is UTF-8, whatever the database's encoding.
func TestEncodings(t *testing.T) {
	t.Parallel()
	for encoding, text := range map[string]string{"LATIN1": "é–", "EUC_JP": "日本", "SQL_ASCII": "é日", "WIN1252": "€é"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			if encoding == "LATIN1" {
				text = "éß"
			}
			w := harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true})
			w.DSN = databaseIn(t, w.DSN, encoding)
			s := newBareScene(t, w)
			s.CommandWith(s.settings, "migrate")
			s.start()
			s.Exec(s.conn, `set client_encoding = 'UTF8'`)
			s.Exec(s.conn, `insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data, headers)
				values ('00000000-0000-4000-8000-0000000000ee', $1, $1, $1, $1, 'x', jsonb_build_object('Name', $1::text))`, text)
			harness.Pause(t.Context(), 2*time.Second)
			s.expectText(text)
			if encoding == "SQL_ASCII" { // Bytes that are no UTF-8: refused or carried as they are, and nobody else's trouble.
				s.Exec(s.conn, `insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data, headers)
					values ('00000000-0000-4000-8000-0000000000ef', 't', E'\xe9\xff', E'\xe9', E'\xe9', 'x', jsonb_build_object('Name', E'\xe9'))`)
				harness.Pause(t.Context(), 2*time.Second)
				lost, err := s.nowhere([]harness.WrittenRow{{ID: "00000000-0000-4000-8000-0000000000ef", Seq: -1}})
				if err != nil || len(lost) > 0 {
					s.problem("a row with bytes that are no UTF-8 is nowhere: %v", err)
				}
				for _, m := range s.Messages() {
					if strings.Contains(fmt.Sprint(m.Header, m.Subject), "\uFFFD") || strings.Contains(m.Subject, "%EF%BF%BD") {
						s.problem("bytes that are no UTF-8 became something else: %v", m.Header)
					}
				}
			}
			s.daily()
			s.verdict()
		})
	}
}

// expectText compares the message of the row with the text.
func (s *scene) expectText(text string) {
	s.Helper()
	for _, m := range s.Messages() {
		if m.Header.Get("Nats-Msg-Id") != "00000000-0000-4000-8000-0000000000ee" {
			continue
		}
		for _, name := range []string{"Name", "Outbox-Topic", "Outbox-Aggregate-Id", "Outbox-Event-Type"} {
			if got := m.Header.Get(name); got != text {
				s.problem("header %s is %q, want %q", name, got, text)
			}
		}
		return
	}
	s.problem("the row with %q is not stored", text)
}

// databaseIn creates a database of an encoding on the server that dsn leads to, and returns the connection string.
func databaseIn(t *testing.T, dsn, encoding string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := conn.Config().Database + "_" + strings.ToLower(encoding)
	if _, err := conn.Exec(t.Context(), fmt.Sprintf(`create database %s encoding '%s' lc_collate 'C' lc_ctype 'C' template template0`, name, encoding)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := conn.Exec(ctx, `drop database `+name+` with (force)`); err != nil {
			t.Error(err)
		}
		_ = conn.Close(ctx)
	})
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// Connection strings that were made for other programs either work, or end the relay with exit code 2 and a message without
// the secret.
func TestConnectionStrings(t *testing.T) {
	t.Parallel()
	for _, parameter := range []string{
		"default_query_exec_mode=simple_protocol", "default_query_exec_mode=exec", "default_query_exec_mode=describe_exec", "default_query_exec_mode=cache_describe",
		"statement_cache_capacity=0", "description_cache_capacity=0&default_query_exec_mode=cache_describe",
	} {
		t.Run(parameter, func(t *testing.T) {
			t.Parallel()
			s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
			s.use(s.DSN + "&" + parameter)
			s.ordinary()
		})
	}
	t.Run("wrong", func(t *testing.T) {
		t.Parallel()
		s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
		const secret = "s3cr3t"
		withPassword := s.as("postgres", secret)
		for name, dsn := range map[string]string{
			"pool_max_conns": withPassword + "&pool_max_conns=4",
			"schema":         withPassword + "&schema=public",
			"jdbc":           "jdbc:" + strings.Replace(withPassword, "postgres:", "postgresql:", 1),
			"at sign":        strings.Replace(withPassword, secret, "half@"+secret, 1),
			"hash":           strings.Replace(withPassword, secret, "half#"+secret, 1),
			"slash":          strings.Replace(withPassword, secret, "half/"+secret, 1),
			"percent":        strings.Replace(withPassword, secret, "half%"+secret, 1),
			"colon":          strings.Replace(withPassword, secret, "half:"+secret+":", 1),
			"blank":          strings.Replace(withPassword, secret, "half "+secret, 1),
			"keywords":       "host=127.0.0.1 user=postgres password=half " + secret,
			"unknown":        withPassword + "&no_such_parameter=" + secret,
			"sslmode":        strings.Replace(withPassword, "sslmode=disable", "sslmode=maybe", 1),
		} {
			for _, command := range [][]string{{"run"}, {"status"}, {"doctor"}} {
				result := s.Try(8*time.Second, []string{"OUTBOX_DATABASE_DSN=" + dsn}, command...)
				output := result.Stdout + result.Stderr
				if strings.Contains(output, secret) || strings.Contains(output, "half") {
					t.Errorf("%s: %s shows the password: %s", name, command[0], shortened(output))
				}
				works := result.Code == 0 || leading.MatchString(output) || strings.Contains(output, "standing by")
				switch {
				case works && (name == "colon" || name == "hash" || name == "blank" || name == "percent"): // Some parsers make sense of it.
				case command[0] == "doctor" && result.Code == 1: // It lists what is wrong.
				case name == "unknown" && result.Code > 0: // Only the server knows.
				case result.Code != 2:
					t.Errorf("%s: %s: exit code %d, want 2: %s", name, command[0], result.Code, shortened(output))
				}
			}
		}
	})
}

// The sequence begins anew, as after a truncate or a restore, and then the broker loses the stream. Each of two events with the
// same seq is in the stream again, or in the archive, or in the log.
func TestSequenceRestarted(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.relay = s.Relay(s.settings...)
	s.relay.Leads()
	ids := map[string]int64{}
	insert := func(n int) {
		rows, err := s.conn.Query(t.Context(), `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 't', 'A', 'a' || i % 7, 'E', 'x' from generate_series(1, $1) i returning id::text, seq`, n)
		if err != nil {
			t.Fatal(err)
		}
		written, err := pgx.CollectRows(rows, pgx.RowToStructByPos[harness.WrittenRow])
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range written {
			ids[row.ID] = row.Seq
		}
		s.Settled(s.conn, 20*time.Second)
	}
	insert(100)
	s.Exec(s.conn, `truncate outbox restart identity`)
	insert(70)
	s.loseStream()
	js := s.JetStream()
	harness.Eventually(t, 30*time.Second, "something comes back to the stream", func() bool { return s.StoredIn(js, "OUTBOX") > 0 })
	harness.Pause(t.Context(), 3*time.Second)
	s.Settled(s.conn, 20*time.Second)
	missing := s.gone(ids)
	stored := map[string]bool{}
	for _, m := range s.Messages() {
		id := m.Header.Get("Nats-Msg-Id")
		if stored[id] {
			t.Errorf("event %s is stored twice", id)
		}
		stored[id] = true
	}
	if len(missing) > 0 {
		s.problem("%d of %d events are gone from stream, archive and outbox, and the log does not name them", len(missing), len(ids))
	}
	s.verdict()
}

// gone returns the ids that are neither in the stream nor in a table nor named in the log.
func (s *scene) gone(ids map[string]int64) (missing []string) {
	s.Helper()
	kept := map[string]bool{}
	for _, m := range s.Messages() {
		kept[m.Header.Get("Nats-Msg-Id")] = true
	}
	rows, err := s.conn.Query(s.Context(), `select id::text from outbox union select id::text from outbox_published union select id::text from outbox_dead`)
	if err != nil {
		s.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.Fatal(err)
	}
	for _, id := range found {
		kept[id] = true
	}
	for id := range ids {
		if !kept[id] && s.relay.Count(regexp.MustCompile(id)) == 0 {
			missing = append(missing, id)
		}
	}
	return missing
}

// A trigger or rule keeps the rows that the relay deletes. Nothing is stored twice; publishing stops, and the log says why.
func TestSoftDelete(t *testing.T) {
	t.Parallel()
	const trigger = `create function keep() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger keep before delete on outbox for each row execute function keep()`
	for name, c := range map[string]struct{ retain, sql string }{
		"trigger, retain 5m": {"5m", trigger},
		"trigger, retain 0s": {"0s", trigger},
		"rule":               {"5m", `create rule keep as on delete to outbox do instead nothing`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "OUTBOX_DUPLICATE_WINDOW=2s", "OUTBOX_RETAIN="+c.retain)
			s.Exec(s.conn, c.sql)
			s.relay = s.Relay(s.settings...)
			s.relay.Leads()
			s.Backlog().Add(s.conn, 20)
			harness.Pause(t.Context(), 9*time.Second) // Some windows.
			s.Backlog().Add(s.conn, 1)
			harness.Pause(t.Context(), 3*time.Second)
			times := map[string]int{}
			for _, m := range s.Messages() {
				times[m.Header.Get("Nats-Msg-Id")]++
			}
			repeated, most := 0, 0
			for _, n := range times {
				if most = max(most, n); n > 1 {
					repeated++
				}
			}
			if repeated > 0 {
				s.problem("%d of %d events are stored more than once, up to %d times", repeated, len(times), most)
			}
			if !s.relay.Said("WRN", "outbox") && !s.relay.Said("ERR", "outbox") || s.relay.Count(regexp.MustCompile(`(?i)(WRN|ERR).*(trigger|delete|remove|removal)`)) == 0 {
				s.problem("the log does not say that rows cannot be removed")
			}
			if code := s.relay.Get("/readyz"); code != 503 {
				s.problem("/readyz is %d, want 503", code)
			}
			s.verdict()
		})
	}
}

// A foreign key keeps one row in the outbox. The others go on, and the log names it.
func TestForeignKey(t *testing.T) {
	t.Parallel()
	s := newScene(t, "OUTBOX_DUPLICATE_WINDOW=2s")
	s.Exec(s.conn, `create table note (seq bigint references outbox (seq))`)
	s.start()
	s.Exec(s.conn, `
with event as (insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data) values ('00000000-0000-4000-8000-0000000000fe', 't', 'A', 'noted', 'E', 'x') returning seq)
insert into note select seq from event`)
	harness.Pause(t.Context(), 6*time.Second)
	if n := s.traffic.Stored("00000000-0000-4000-8000-0000000000fe"); n != 1 {
		s.problem("the row is stored %d times", n)
	}
	if s.relay.Count(regexp.MustCompile(`(WRN|ERR).*(foreign key|note_seq_fkey|00000000-0000-4000-8000-0000000000fe)`)) == 0 {
		s.problem("the log does not name the foreign key")
	}
	s.check("beside the row")
	s.checkLog(s.began)
	s.takeover(func() {})
	harness.Pause(t.Context(), time.Second)
	s.check("at the next relay")
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	if n := s.traffic.Stored("00000000-0000-4000-8000-0000000000fe"); n != 1 {
		s.problem("the row is stored %d times in the end", n)
	}
	s.verdict()
}

// granted gives the relay a role that owns nothing and may use the tables.
func (s *scene) granted() {
	s.Helper()
	s.CommandWith(s.settings, "migrate")
	role := s.role()
	s.Exec(s.conn, `grant select, insert, update, delete, truncate on all tables in schema public to `+role)
	s.Exec(s.conn, `grant usage, select on all sequences in schema public to `+role)
	s.settings = append(s.settings, "OUTBOX_MIGRATE=false")
}

// Row-level security is switched on while a relay runs. It hides all rows from the relay, and the log says so.
func TestRowSecuritySwitchedOn(t *testing.T) {
	t.Parallel()
	s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
	s.granted()
	s.start()
	s.Exec(s.conn, `alter table outbox enable row level security`)
	if !s.relay.Await(time.Minute, regexp.MustCompile(`(?i)(WRN|ERR).*(row-level security|row security)`)) {
		s.problem("the log does not name row-level security within a minute")
	}
	if code := s.relay.Get("/readyz"); code != 503 {
		s.problem("/readyz is %d, want 503", code)
	}
	s.Exec(s.conn, `alter table outbox disable row level security`)
	began := time.Now()
	for !s.traffic.ArrivedSince(began) && time.Since(began) < 20*time.Second {
		harness.Pause(t.Context(), 50*time.Millisecond)
	}
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}

// A session locks the table for some seconds. The log names it, and the term goes on or is begun again once.
func TestExclusiveLock(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.start()
	holder := s.Connect()
	s.Exec(holder, `set application_name = 'migration-17'`)
	s.Exec(holder, `begin`)
	s.Exec(holder, `lock table outbox in access exclusive mode`)
	held := time.Now()
	names := regexp.MustCompile(fmt.Sprintf(`(WRN|ERR).*\b%d\b`, holder.PgConn().PID()))
	if !s.relay.Await(12*time.Second, names) {
		s.problem("the log does not name pid %d, which holds the table", holder.PgConn().PID())
	}
	harness.Pause(t.Context(), 12*time.Second-time.Since(held))
	s.Exec(holder, `rollback`)
	released := time.Now()
	for !s.traffic.ArrivedSince(released) && time.Since(released) < 10*time.Second {
		harness.Pause(t.Context(), 10*time.Millisecond)
	}
	if took := time.Since(released); took > 3*time.Second {
		s.problem("nothing is published until %v after the lock", took)
	}
	if terms := s.latestTerm() - s.term; terms > boundTerms {
		s.problem("%d new terms", terms)
	}
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}

// A session that is no relay holds the lock that relays compete for. The log names it.
func TestLockHeldBySomebodyElse(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.start()
	thief := s.Connect()
	s.Exec(thief, `set application_name = 'thief'`)
	var classes, objects, kinds []int64
	if err := s.conn.QueryRow(t.Context(), `
select array_agg(classid::bigint), array_agg(objid::bigint), array_agg(objsubid::bigint)
  from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`).Scan(&classes, &objects, &kinds); err != nil {
		t.Fatal(err)
	}
	s.relay.Kill()
	for i := range classes {
		if kinds[i] == 1 {
			s.Exec(thief, `select pg_advisory_lock($1::bigint)`, classes[i]<<32|objects[i])
		} else {
			s.Exec(thief, `select pg_advisory_lock($1::bigint::int4, $2::bigint::int4)`, signed(classes[i]), signed(objects[i]))
		}
	}
	s.relay = s.Relay(s.settings...)
	names := regexp.MustCompile(fmt.Sprintf(`\b%d\b|thief`, thief.PgConn().PID()))
	if !s.relay.Await(time.Minute, names) {
		s.problem("the log does not name pid %d, which holds the lock", thief.PgConn().PID())
	}
	if code := s.relay.Get("/readyz"); code != 503 {
		s.problem("/readyz is %d, want 503: nobody publishes", code)
	}
	s.Exec(thief, `select pg_advisory_unlock_all()`)
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}

// signed converts an oid back to the integer that it was made of.
func signed(oid int64) int64 { return int64(int32(uint32(oid))) }

// A role has few connections.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	for limit := 1; limit <= 3; limit++ {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}))
			role := s.role()
			s.CommandWith(s.settings, "migrate")
			s.Exec(s.conn, fmt.Sprintf(`alter role %s connection limit %d`, role, limit))
			s.relay = s.Relay(s.settings...)
			began := time.Now()
			leads := s.relay.Await(15*time.Second, leading)
			says := s.relay.Await(time.Second, regexp.MustCompile(`too many connections for role|connection limit`))
			switch {
			case leads:
				s.traffic = s.NewTraffic()
				harness.Pause(t.Context(), 5*time.Second)
				// Without a connection that listens, it polls every second.
				if d := s.traffic.Since(began, ""); d.P99 > 3*time.Second && (limit > 1 || !says) {
					s.problem("others wait: %v", d)
				}
			case limit > 1:
				s.problem("it does not lead")
			case !says:
				s.problem("the log does not name the connection limit")
			}
			if lines := s.relay.Count(regexp.MustCompile(`WRN|ERR`)); lines > 12 {
				s.problem("%d warnings in %v", lines, time.Since(began).Round(time.Second))
			}
			s.verdict()
		})
	}
}

// The password is changed, and the file with it. The relay reads the file again when it connects again.
func TestRotatedPassword(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"passfile", "database_password_file", "database_dsn_file"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := harness.NewWorld(t, harness.Options{Quiet: true})
			s := newBareScene(t, w)
			s.CommandWith(s.settings, "migrate")
			s.Exec(s.conn, `create role rotating login superuser password 'first'`)
			s.demandPasswords("rotating")
			file := filepath.Join(t.TempDir(), "secret")
			write := func(password string) {
				text := map[string]string{
					"passfile":               "*:*:*:*:" + password + "\n",
					"database_password_file": password + "\n",
					"database_dsn_file":      s.as("rotating", password) + "\n",
				}[kind]
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("first")
			switch kind {
			case "passfile":
				s.use(s.as("rotating", "") + "&passfile=" + url.QueryEscape(file))
			case "database_password_file":
				s.use(s.as("rotating", ""))
				s.settings = append(s.settings, "OUTBOX_DATABASE_PASSWORD_FILE="+file)
			default:
				s.use("")
				s.settings = append(s.settings, "OUTBOX_DATABASE_DSN_FILE="+file)
			}
			if s.relay = s.Launch(s.settings...); !s.relay.Await(20*time.Second, leading) {
				s.problem("it does not lead with the first password")
				s.verdict()
				return
			}
			s.Exec(s.conn, `alter role rotating password 'second'`)
			write("second")
			s.EndSessions(s.conn)
			if !s.relay.Await(20*time.Second, regexp.MustCompile(`leading.*term=2`)) {
				s.problem("it does not lead with the second password")
			}
			if s.relay.Said("second") {
				s.problem("the log shows the password")
			}
			s.verdict()
		})
	}
}

// demandPasswords makes the world's own Postgres ask a role for its password.
func (s *scene) demandPasswords(role string) {
	s.Helper()
	path := filepath.Join(filepath.Dir(s.Postgres.LogFile()), "data", "pg_hba.conf")
	before, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte("host all "+role+" 127.0.0.1/32 scram-sha-256\n"), before...), 0o600); err != nil {
		s.Fatal(err)
	}
	s.Exec(s.conn, `select pg_reload_conf()`)
}

// The synchronous standby is gone, so no commit that waits for it ends. The log says so.
func TestSynchronousStandbyGone(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{Quiet: true})
	s := newBareScene(t, w)
	s.CommandWith(s.settings, "migrate")
	s.Exec(s.conn, `create role replicated login superuser`)
	s.use(s.as("replicated", ""))
	s.Exec(s.conn, `set synchronous_commit = local`)
	s.Exec(s.conn, `alter role postgres set synchronous_commit = local`) // The producer's.
	s.Exec(s.conn, `alter system set synchronous_standby_names = 'gone'`)
	s.Exec(s.conn, `select pg_reload_conf()`)
	harness.Pause(t.Context(), time.Second)
	s.relay = s.Relay(s.settings...)
	works := s.relay.Await(10*time.Second, leading)
	if works {
		s.traffic = s.NewTraffic()
		s.mark()
		harness.Pause(t.Context(), 5*time.Second)
		d := s.traffic.Since(s.began, "")
		s.seen = append(s.seen, d.String())
		works = !late(d)
	}
	if !works && !s.relay.Await(time.Minute, regexp.MustCompile(`(?i)(WRN|ERR).*(synchronous|SyncRep)`)) {
		s.problem("it does not publish, and the log does not name the synchronous standby within a minute")
	}
	s.verdict()
}

// Postgres does not let the relay in. Its endpoints and its log say so, and show nothing of the secrets.
func TestNothingLeaksOverHTTP(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{Quiet: true})
	s := newBareScene(t, w)
	s.CommandWith(s.settings, "migrate")
	s.Exec(s.conn, `create role canary login superuser password 'right'`)
	s.demandPasswords("canary")
	const secret = "c4n4ry"
	file := filepath.Join(t.TempDir(), secret)
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, settings := range map[string][]string{
		"wrong password":         {"OUTBOX_DATABASE_DSN=" + s.as("canary", secret)},
		"wrong password file":    {"OUTBOX_DATABASE_DSN=" + s.as("canary", ""), "OUTBOX_DATABASE_PASSWORD_FILE=" + file},
		"unknown role":           {"OUTBOX_DATABASE_DSN=" + s.as(secret, secret)},
		"unknown database":       {"OUTBOX_DATABASE_DSN=" + strings.Replace(s.as("postgres", secret), "/postgres?", "/gone?", 1)},
		"unknown host":           {"OUTBOX_DATABASE_DSN=" + strings.Replace(s.as("postgres", secret), "127.0.0.1", "host.invalid", 1)},
		"nobody there":           {"OUTBOX_DATABASE_DSN=postgres://postgres:" + secret + "@127.0.0.1:1/postgres"},
		"wrong password of NATS": {"OUTBOX_NATS_URL=nats://relay:" + secret + "@127.0.0.1:1"},
	} {
		relay := s.Relay(append(slices.Clone(s.settings), settings...)...)
		relay.Await(5*time.Second, regexp.MustCompile(`WRN|ERR`))
		var bodies string
		for _, path := range []string{"/readyz", "/healthz", "/metrics", "/status"} {
			bodies += relay.Body(path)
		}
		if name != "unknown role" && strings.Contains(bodies, secret) || strings.Contains(bodies, ":"+secret) {
			t.Errorf("%s: an endpoint shows the secret: %s", name, shortened(bodies))
		}
		if code := relay.Get("/readyz"); code != 503 {
			t.Errorf("%s: /readyz is %d, want 503", name, code)
		}
		if relay.Said(secret) && !strings.HasPrefix(name, "unknown role") && name != "wrong password file" {
			t.Errorf("%s: the log shows the secret: %s", name, relay.Tail(2<<10))
		}
		relay.Kill()
	}
}

// The database goes back to an earlier state, as by a restore or a failover that loses commits: events that were published
// wait again, others are unknown, and new ones get their seqs. Each that is committed is stored once.
func TestDatabaseGoesBack(t *testing.T) {
	t.Parallel()
	for _, retain := range []string{"5m", "0s"} {
		t.Run("retain "+retain, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "OUTBOX_DUPLICATE_WINDOW=2s", "OUTBOX_RETAIN="+retain)
			want := map[string]string{}
			insert := func(what string, n int) {
				t.Helper()
				rows, err := s.conn.Query(t.Context(), `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select $1, 'A', 'a' || i % 7, 'E', 'x' from generate_series(1, $2::int) i returning id::text`, what, n)
				if err != nil {
					t.Fatal(err)
				}
				ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					t.Fatal(err)
				}
				for _, id := range ids {
					want[id] = what
				}
			}
			tables := []string{"outbox_dead", "outbox_relay", "outbox_published_0", "outbox_published_1", "outbox_published_2"}
			s.relay = s.Relay(s.settings...)
			s.relay.Leads()
			insert("settled before", 100)
			s.Settled(s.conn, 20*time.Second)
			if code := s.relay.Stop(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			insert("pending then", 50)
			s.Exec(s.conn, `create table then_outbox as table outbox`)
			for _, table := range tables {
				s.Exec(s.conn, `create table then_`+table+` as table `+table)
			}
			s.Exec(s.conn, `create table then_drawn as select last_value from outbox_seq_seq`)

			s.relay = s.Relay(s.settings...)
			s.relay.Leads()
			insert("undone", 40)
			s.Settled(s.conn, 20*time.Second)
			s.relay.Kill()
			s.EndSessions(s.conn)
			harness.Pause(t.Context(), 3*time.Second) // The window.

			s.Exec(s.conn, `begin`)
			s.Exec(s.conn, `truncate outbox, outbox_published; insert into outbox overriding system value select * from then_outbox`)
			for _, table := range tables {
				s.Exec(s.conn, `delete from `+table+`; insert into `+table+` overriding system value select * from then_`+table)
			}
			s.Exec(s.conn, `select setval('outbox_seq_seq', last_value) from then_drawn`)
			s.Exec(s.conn, `commit`)
			insert("new", 60)
			s.relay = s.Relay(s.settings...)
			s.relay.Leads()
			s.Settled(s.conn, 20*time.Second)
			harness.Pause(t.Context(), time.Second)
			insert("newer", 10)
			s.Settled(s.conn, 20*time.Second)
			stored := map[string]int{}
			for _, m := range s.Messages() {
				stored[m.Header.Get("Nats-Msg-Id")]++
			}
			for id, what := range want {
				if stored[id] != 1 {
					s.problem("event %s (%s) is stored %d times", id, what, stored[id])
				}
			}
			s.verdict()
		})
	}
}
