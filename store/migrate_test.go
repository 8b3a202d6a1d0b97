package store_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

func open(tb testing.TB, dsn string, options store.Options) *store.Outbox {
	tb.Helper()
	outbox, err := store.Open(dsn, options)
	if err != nil {
		tb.Fatal(err)
	}
	return outbox
}

func TestMigrateManyAtOnce(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	var wg sync.WaitGroup
	errs := make(chan error, 40)
	for range cap(errs) {
		wg.Go(func() { errs <- open(t, dsn, store.Options{Table: store.Table{Schema: "app"}}).Migrate(t.Context()) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if err := open(t, dsn, store.Options{Table: store.Table{Schema: "app"}}).Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestScriptEqualsMigrate(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	script, err := store.Table{Name: "events"}.Script()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := connect(t, dsn).Exec(t.Context(), script); err != nil {
		t.Fatal(err)
	}
	outbox := open(t, dsn, store.Options{Table: store.Table{Name: "events"}})
	if err := outbox.Check(t.Context()); err != nil {
		t.Errorf("after the script: %v", err)
	}
	if err := outbox.Migrate(t.Context()); err != nil {
		t.Errorf("migrating after the script: %v", err)
	}
}

func TestMigrateRefusesForeignTables(t *testing.T) {
	const predecessor = `create table outbox (
		id uuid primary key, event_type text not null, aggregate_type text not null, aggregate_id text not null,
		data bytea not null, created_at timestamptz not null default now(), sent_at timestamptz, status text not null,
		attempts int not null default 0, topic text not null)`
	tests := []struct {
		name, ddl string
		want      []string
	}{
		{"predecessor's", predecessor, []string{`column "seq" is missing`, `column "headers" is missing`, `column "status" is not known and must be filled`}},
		{"other types", `create table outbox (seq integer primary key, id text)`, []string{`column "seq" is integer instead of bigint`, `column "id" is text instead of uuid`}},
		{"view", `create view outbox as select 1 as seq`, []string{`column "id" is missing`, `a view instead of an ordinary table`}},
		{"materialized view", `create materialized view outbox as select 1 as seq`, []string{`a materialized view`}},
		{"partitions", `create table outbox (seq bigint not null, id uuid) partition by range (seq)`, []string{`a partitioned table`}},
		{"no columns", `create table outbox ()`, []string{`column "id" is missing`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dsn := storetest.NewDatabase(t)
			conn := connect(t, dsn)
			if _, err := conn.Exec(t.Context(), tt.ddl); err != nil {
				t.Fatal(err)
			}
			columns := func() (list string) {
				err := conn.QueryRow(t.Context(), `select string_agg(attname || atttypid, ',' order by attnum) from pg_attribute where attrelid = 'outbox'::regclass`).Scan(&list)
				if err != nil {
					t.Fatal(err)
				}
				return list
			}
			before := columns()
			outbox := open(t, dsn, store.Options{})
			for operation, err := range map[string]error{"migrate": outbox.Migrate(t.Context()), "check": outbox.Check(t.Context())} {
				if !errors.Is(err, store.ErrForeignTable) || !store.Fatal(err) {
					t.Errorf("%s: got error %v, want a fatal ErrForeignTable", operation, err)
					continue
				}
				for _, want := range tt.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%s: error %q does not tell %q", operation, err, want)
					}
				}
			}
			if after := columns(); after != before {
				t.Errorf("the table was altered from %s to %s", before, after)
			}
		})
	}
}

func TestCheckErrors(t *testing.T) {
	t.Run("no table", func(t *testing.T) {
		err := open(t, storetest.NewDatabase(t), store.Options{}).Check(t.Context())
		if !errors.Is(err, store.ErrNoTable) || store.Fatal(err) {
			t.Errorf("got %v, want ErrNoTable, which is not fatal", err)
		}
	})
	tests := []struct {
		name, sql string
		want      error
		text      string
	}{
		{"unrecorded", `delete from outbox_migrations`, store.ErrForeignTable, "no recorded schema version"},
		{"newer", `insert into outbox_migrations (version) values (99)`, store.ErrNewSchema, "version 99"},
		{"table dropped", `drop table outbox cascade`, store.ErrNoTable, "migrate"},
		{"column changed", `alter table outbox rename topic to subject`, store.ErrForeignTable, `column "topic" is missing`},
		{"text that is padded", `alter table outbox alter topic type char(50)`, store.ErrForeignTable, `column "topic" is character(50) instead of text`},
		{"text of a length", `alter table outbox alter topic type varchar(50), alter last_error type varchar`, nil, ""},
		{"texts of a domain", `create domain a as text; create domain b as a; alter table outbox alter topic type b`, nil, ""},
		{"number of a domain", `create domain a as bigint; alter table outbox alter attempts type a`, store.ErrForeignTable, `column "attempts" is bigint instead of integer`},
		{"more columns", `alter table outbox add x int not null default 1, add y int generated always as (attempts + 1) stored`, nil, ""},
		{"view in its place", `alter table outbox rename to outbox_old; create view outbox as select * from outbox_old`, store.ErrForeignTable, "a view"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, store.Options{})
			f.exec(t, tt.sql)
			err := f.Check(t.Context())
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
			// The tables were right before: whoever has changed them can change them back.
			if changed := errors.Is(err, store.ErrTableChanged); changed != errors.Is(tt.want, store.ErrForeignTable) || changed && store.Fatal(err) {
				t.Errorf("got %v, fatal: %v; want that it is ErrTableChanged if the shape is wrong, and not fatal then", err, store.Fatal(err))
			}
		})
	}
}

// advised is the statement that err says an owner must run, for the role.
func advised(t *testing.T, err error, role string) string {
	t.Helper()
	if !errors.Is(err, store.ErrPrivilege) {
		t.Fatalf("got %v, want ErrPrivilege", err)
	}
	_, text, _ := strings.Cut(err.Error(), "an owner must run `")
	statement, _, _ := strings.Cut(text, "`")
	if !strings.Contains(statement, ` "`+role+`"`) || strings.Contains(statement, "<role>") {
		t.Fatalf("%q does not tell what to run for role %s", err, role)
	}
	return statement
}

func TestPrivileges(t *testing.T) {
	f := newFixture(t, store.Options{})
	role, dsn := f.role(t)
	limited := open(t, dsn, store.Options{})
	check := limited.Check(t.Context())
	_, dead := limited.DeadLetters(t.Context(), store.DeadFilter{}, false)
	_, inspected := limited.Inspect(t.Context())
	for _, err := range []error{check, dead, inspected} {
		if got, want := advised(t, err, role), f.Table().Grants(`"`+role+`"`); got != want {
			t.Errorf("%v\nadvises %s, want %s", err, got, want)
		}
	}
	f.exec(t, `grant select on outbox_migrations to `+role)
	// What the message says is what helps.
	f.exec(t, advised(t, limited.Check(t.Context()), role))
	if err := limited.Check(t.Context()); err != nil {
		t.Errorf("after the grants: %v", err)
	}
	f.exec(t, `alter table outbox enable row level security`)
	if err := limited.Check(t.Context()); !errors.Is(err, store.ErrRowSecurity) {
		t.Errorf("got %v, want ErrRowSecurity", err)
	}
}

// Of the role that migrates, and not of the one that has logged in.
func TestMigrateSaysWhatIsMissing(t *testing.T) {
	for name, table := range map[string]store.Table{"no CREATE": {}, "no schema": {Schema: "app"}} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, store.Options{Table: store.Table{Name: "another"}})
			f.exec(t, `revoke create on schema public from public`)
			role, _ := f.role(t)
			outbox := open(t, f.dsn+"&role="+role, store.Options{Table: table})
			f.exec(t, advised(t, outbox.Migrate(t.Context()), role))
			if err := outbox.Migrate(t.Context()); err != nil {
				t.Errorf("after that: %v", err)
			}
		})
	}
}

// Of many that migrate at once one creates the tables, and says so.
func TestMigrateTellsWhatItDid(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	var wg sync.WaitGroup
	logs := make([]strings.Builder, 4)
	for i := range logs {
		wg.Go(func() {
			if err := open(t, dsn, store.Options{Logger: textLogger(&logs[i])}).Migrate(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	created := 0
	for i := range logs {
		created += strings.Count(logs[i].String(), `msg="tables created" table=public.outbox`)
	}
	if created != 1 {
		t.Errorf("%d have created the tables, want one", created)
	}
}
