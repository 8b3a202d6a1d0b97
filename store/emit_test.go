package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	_ "github.com/lib/pq" // The database/sql driver "postgres".

	"github.com/go-outbox/go-outbox/store"
)

// texts are payloads that come out as other bytes, or not at all, where text is taken for bytea's escape format.
func texts() []string {
	return []string{
		`{"path":"C:\\new"}`, `{"a":"say \"hi\""}`, `{"a":"x\ny"}`, `{"a":"\u00e9\ud83d\ude00"}`, "line\nbreak\r\n\ttab", `\x4142`, `\`, `\\`, `\101`,
		`it's`, `''`, `"`, `$1 %s ? :name $$ /* -- */`, "emoji 😀 日本語 é", "\x01\x7f\u2028", "", `{"a": 1.00,  "a": 2}`,
	}
}

// stored returns the payloads in the outbox, in order.
func (f *fixture) stored(t *testing.T) [][]byte {
	t.Helper()
	rows, err := f.conn.Query(t.Context(), `select data from outbox order by seq`)
	if err != nil {
		t.Fatal(err)
	}
	data, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// expectStored compares the payloads in the outbox with these, byte for byte, and empties it.
func (f *fixture) expectStored(t *testing.T, want ...string) {
	t.Helper()
	got := f.stored(t)
	if len(got) != len(want) {
		t.Fatalf("%d events in the outbox, want %d", len(got), len(want))
	}
	for i := range want {
		if string(got[i]) != want[i] {
			t.Errorf("stored %q, want %q", got[i], want[i])
		}
	}
	f.exec(t, `delete from outbox`)
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func TestEmitLiterals(t *testing.T) {
	f := newFixture(t, store.Options{})
	tests := []struct{ data, want string }{
		{`'{"a":"C:\\new"}'`, `{"a":"C:\\new"}`}, // Neither ambiguous nor bytea's escapes.
		{`'{"a": 1}'::jsonb`, `{"a": 1}`},
		{`'{"a":"\u00e9"}'::jsonb`, `{"a": "é"}`},
		{`'{"a":  1, "a": 2}'::json`, `{"a":  1, "a": 2}`},
		{`row_to_json(row(1))`, `{"f1":1}`},
		{`jsonb_build_object('a', 'b')`, `{"a": "b"}`},
		{`'\x00ff'::bytea`, "\x00\xff"},
		{`'plain'::varchar`, "plain"},
		{`E'a\nb'`, "a\nb"},
	}
	for _, tt := range tests {
		t.Run(tt.data, func(t *testing.T) {
			f.exec(t, `select outbox_emit('t', 'A', '1', 'E', `+tt.data+`)`)
			f.expectStored(t, tt.want)
		})
	}
	for _, refused := range []string{`null::text`, `null::jsonb`, `null`} {
		if _, err := f.conn.Exec(t.Context(), `select outbox_emit('t', 'A', '1', 'E', `+refused+`)`); err == nil {
			t.Errorf("data %s was taken", refused)
		}
	}
}

func TestEmitReturnsTheSeq(t *testing.T) {
	for name, table := range map[string]store.Table{"default": {}, "named": {Schema: `sh"op`, Name: `Ev'en\ts`}} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, store.Options{Table: table})
			emit := pgx.Identifier{table.Schema, table.Name + "_emit"}.Sanitize()
			if table.Name == "" {
				emit = "outbox_emit"
			}
			id := uuid.New()
			seq := query[int64](t, f, `select `+emit+`(topic => 't', aggregate_type => 'A', aggregate_id => '1', event_type => 'E', data => 'x', headers => '{"a":"b"}', id => '`+id.String()+`')`)
			next := query[int64](t, f, `select `+emit+`('t', 'A', '1', 'E', 'y')`)
			if seq < 1 || next != seq+1 {
				t.Errorf("seqs %d and %d, want rising ones", seq, next)
			}
			rows := f.fetch(t)
			if len(rows) != 2 || rows[0].Seq != seq || rows[0].ID != id || string(rows[0].Headers) != `{"a": "b"}` || rows[1].Headers != nil || rows[1].ID == uuid.Nil || rows[1].ID == id {
				t.Errorf("got %+v", rows)
			}
		})
	}
}

// A producer needs no more than is granted to it, whatever its search_path leads to.
func TestEmitNeedsTheProducersGrantOnly(t *testing.T) {
	f := newFixture(t, store.Options{})
	role, dsn := f.role(t)
	f.exec(t, f.Table().ProducerGrants(`"`+role+`"`))
	f.exec(t, `create schema planted; grant usage on schema planted to `+role+`;
create function planted.convert_to(text, text) returns bytea language sql as $$ select 'planted'::bytea $$;
create function planted.currval(regclass) returns bigint language sql as $$ select -1::bigint $$;
create function planted.gen_random_uuid() returns uuid language sql as $$ select '00000000-0000-0000-0000-000000000001'::uuid $$;
create type planted.text as (a int)`)
	producer := connect(t, dsn)
	if _, err := producer.Exec(t.Context(), `set search_path = planted, pg_catalog, public`); err != nil {
		t.Fatal(err)
	}
	for _, data := range []string{`'{"a": 1}'`, `'{"a": 1}'::jsonb`, `'{"a": 1}'::json`, `'{"a": 1}'::bytea`} {
		var seq int64
		if err := producer.QueryRow(t.Context(), `select public.outbox_emit('t', 'A', '1', 'E', `+data+`)`).Scan(&seq); err != nil || seq < 1 {
			t.Errorf("%s: seq %d, %v", data, seq, err)
		}
	}
	f.expectStored(t, `{"a": 1}`, `{"a": 1}`, `{"a": 1}`, `{"a": 1}`)

	// And can do nothing else: not say what its seq is, nor what only the relay writes.
	for _, statement := range []string{
		`insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (5, 't', 'A', '1', 'E', '')`,
		`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, attempts) values ('t', 'A', '1', 'E', '', 1)`,
		`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, last_error) values ('t', 'A', '1', 'E', '', 'x')`,
		`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, retry_at) values ('t', 'A', '1', 'E', '', now())`,
		`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, created_at) values ('t', 'A', '1', 'E', '', now())`,
		`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, given_up_at) values ('t', 'A', '1', 'E', '', now())`,
		`select * from outbox`, `delete from outbox`,
	} {
		if _, err := connect(t, dsn).Exec(t.Context(), statement); err == nil {
			t.Errorf("a producer may: %s", statement)
		}
	}
	if err := pgx.BeginFunc(t.Context(), connect(t, dsn), func(tx pgx.Tx) error {
		return store.Insert(t.Context(), tx, event("1"), event("2"))
	}); err != nil {
		t.Errorf("store.Insert: %v", err)
	}
}

// Where the database has another encoding, what is stored is UTF-8 all the same.
func TestEmitInAnotherEncoding(t *testing.T) {
	f := newFixture(t, store.Options{})
	name := fmt.Sprintf("latin_%d", time.Now().UnixNano())
	if _, err := f.conn.Exec(t.Context(), `create database `+name+` encoding 'LATIN1' locale 'C' template template0`); err != nil {
		t.Skipf("no LATIN1 database: %v", err)
	}
	t.Cleanup(func() { _, _ = f.conn.Exec(context.WithoutCancel(t.Context()), `drop database `+name+` with (force)`) })
	latin := newFixtureAt(t, strings.Replace(f.dsn, "/"+f.Database(), "/"+name, 1)+"&client_encoding=UTF8", store.Options{})
	if got := query[string](t, latin, `select getdatabaseencoding()`); got != "LATIN1" {
		t.Fatalf("the database's encoding is %s", got)
	}
	latin.exec(t, `select outbox_emit('t', 'A', '1', 'E', 'é'), outbox_emit('t', 'A', '1', 'E', '{"a":"é"}'::jsonb)`)
	latin.expectStored(t, "é", `{"a": "é"}`)
}

// What each driver does with a text: as an argument of the function, and of an insert by way of convert_to.
func TestDrivers(t *testing.T) {
	const (
		insert = `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', convert_to(%s, 'UTF8'))`
		emit   = `select outbox_emit('t', 'A', '1', 'E', %s)`
	)
	f := newFixture(t, store.Options{})
	t.Run("psql", func(t *testing.T) {
		for _, statement := range []string{insert, emit} {
			var script strings.Builder
			for _, text := range texts() {
				fmt.Fprintf(&script, statement+";\n", quoted(text))
			}
			f.psql(t, script.String())
			f.expectStored(t, texts()...)
		}
		// A variable, which psql quotes itself.
		f.psql(t, "\\set data `printf '%s' '"+`{"path":"C:\\new"}`+"'`\n"+fmt.Sprintf(emit, ":'data'")+";\n")
		f.expectStored(t, `{"path":"C:\\new"}`)
	})
	t.Run("pgx", func(t *testing.T) {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
			for _, statement := range []string{insert, emit} {
				for _, text := range texts() {
					f.execArgs(t, fmt.Sprintf(statement, "$1"), mode, text)
				}
				f.expectStored(t, texts()...)
			}
			for _, text := range texts() {
				f.execArgs(t, fmt.Sprintf(emit, "$1::bytea"), mode, []byte(text+"\x00\xff"))
			}
			for _, data := range f.stored(t) {
				if !bytes.HasSuffix(data, []byte("\x00\xff")) {
					t.Errorf("bytes were stored as %q", data)
				}
			}
			f.exec(t, `delete from outbox`)
		}
	})
	for _, driver := range []string{"postgres", "pgx"} {
		t.Run("database/sql "+driver, func(t *testing.T) {
			db, err := sql.Open(driver, f.dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for _, statement := range []string{insert, emit} {
				for _, text := range texts() {
					if _, err := db.ExecContext(t.Context(), fmt.Sprintf(statement, "$1"), text); err != nil {
						t.Fatalf("%q: %v", text, err)
					}
				}
				f.expectStored(t, texts()...)
			}
			for _, text := range texts() {
				if _, err := db.ExecContext(t.Context(), fmt.Sprintf(emit, "$1::bytea"), []byte(text)); err != nil {
					t.Fatalf("bytes %q: %v", text, err)
				}
			}
			f.expectStored(t, texts()...)
		})
	}
	for _, module := range []string{"psycopg2", "psycopg"} {
		t.Run(module, func(t *testing.T) {
			python := pythonWith(t, module)
			var list strings.Builder
			for _, text := range texts() {
				list.WriteString(hex.EncodeToString([]byte(text)) + ",")
			}
			for _, statement := range []string{fmt.Sprintf(insert, "%s"), fmt.Sprintf(emit, "%s")} {
				run(t, exec.CommandContext(t.Context(), python, "-c", `
import sys, `+module+` as driver
connection = driver.connect(sys.argv[1])
for text in sys.argv[3].split(",")[:-1]:
    connection.cursor().execute(sys.argv[2], (bytes.fromhex(text).decode(),))
connection.commit()`, f.dsn, statement, list.String()))
				f.expectStored(t, texts()...)
			}
		})
	}
}

func (f *fixture) execArgs(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := f.conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s with %q: %v", sql, args[1:], err)
	}
}

// psql runs a script, which stops at the first error.
func (f *fixture) psql(t *testing.T, script string) {
	t.Helper()
	path, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("psql is not installed")
	}
	cmd := exec.CommandContext(t.Context(), path, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f.dsn)
	cmd.Stdin = strings.NewReader(script)
	cmd.Env = append(os.Environ(), "PGCLIENTENCODING=UTF8")
	run(t, cmd)
}

// pythonWith returns a Python that has the module.
func pythonWith(t *testing.T, module string) string {
	t.Helper()
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), python, "-c", "import "+module).Run() == nil {
			return python
		}
	}
	t.Skipf("no Python with %s: apt-get install python3-%s", module, module)
	return ""
}

func run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd.Path, err, out)
	}
}
