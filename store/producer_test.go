package store_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// role creates a role that may log in, and drops it with all its rights when the test ends.
func (f *fixture) role(tb testing.TB) (name, dsn string) {
	tb.Helper()
	name = "producer_" + query[string](tb, f, `select md5(random()::text)`)
	f.exec(tb, `create role `+name+` login`)
	tb.Cleanup(func() {
		if _, err := f.conn.Exec(context.WithoutCancel(tb.Context()), `drop owned by `+name+`; drop role `+name); err != nil {
			tb.Error(err)
		}
	})
	return name, f.dsn + "&user=" + name
}

// What a producer needs is the right to insert, whether the relay sleeps or not: the trigger asks for nothing more.
func TestProducerNeedsInsertOnly(t *testing.T) {
	s := listen(t, newFixtureAt(t, storetest.NewDatabase(t), store.Options{Table: store.Table{Schema: "app"}}))
	name, dsn := s.role(t)
	// As a cautious administrator has it.
	s.exec(t, `revoke all on schema public from public`)
	s.exec(t, `revoke execute on all functions in schema app from public`)
	s.exec(t, s.Table().ProducerGrants(name))
	conn := connect(t, dsn)

	produce := func() {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			if err := s.Table().Insert(t.Context(), tx, event("1")); err != nil {
				return err
			}
			if err := s.Table().Insert(t.Context(), tx, event("2"), event("3")); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), strings.Replace(insertSQL, "outbox", "app.outbox", 1))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	produce()
	if !s.sleep(t) {
		t.Fatal("could not fall asleep")
	}
	produce()
	await(t, "wake-up by a role that may do nothing but insert", s.woken)
	if got := len(s.fetch(t)); got != 8 {
		t.Errorf("got %d rows, want 8", got)
	}
}

func TestInsertSaysWhatIsMissing(t *testing.T) {
	f := newFixture(t, store.Options{})
	name, dsn := f.role(t)
	conn := connect(t, dsn)
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// Both ways in, in a transaction that is rolled back.
	inserts := map[string]func(table store.Table, events ...store.Event) error{
		"pgx": func(table store.Table, events ...store.Event) error {
			tx, err := conn.Begin(t.Context())
			if err != nil {
				return err
			}
			defer tx.Rollback(t.Context()) //nolint:errcheck // Nothing to keep.
			return table.Insert(t.Context(), tx, events...)
		},
		"sql": func(table store.Table, events ...store.Event) error {
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				return err
			}
			defer tx.Rollback() //nolint:errcheck // Nothing to keep.
			return table.InsertSQL(t.Context(), tx, events...)
		},
	}
	f.exec(t, `create schema closed; create table closed.outbox ()`)
	tests := []struct {
		name  string
		table store.Table
		want  error
		text  []string
		first string // SQL to run before.
	}{
		{name: "missing table", table: store.Table{Name: "nowhere"}, want: store.ErrNoTable, text: []string{"public.nowhere", "outbox-relay migrate"}},
		{name: "missing schema", table: store.Table{Schema: "nowhere"}, want: store.ErrNoTable, text: []string{"nowhere.outbox", "outbox-relay migrate"}},
		{name: "no INSERT", want: store.ErrPrivilege, text: []string{`GRANT INSERT (id, topic, aggregate_type, aggregate_id, event_type, data, headers) ON "public"."outbox"`, `GRANT USAGE ON SCHEMA "public"`}},
		{name: "no USAGE", table: store.Table{Schema: "closed"}, want: store.ErrPrivilege, text: []string{`GRANT USAGE ON SCHEMA "closed"`}},
		{name: "another shape", want: store.ErrForeignTable, text: []string{"migrate --print", "headers"}, first: `grant insert on outbox to ` + name + `; alter table outbox rename headers to headings`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.exec(t, tt.first)
			for by, insert := range inserts {
				for _, events := range [][]store.Event{{event("1")}, {event("1"), event("2")}} {
					err := insert(tt.table, events...)
					if !errors.Is(err, tt.want) {
						t.Errorf("%s, %d events: got %v, want %v", by, len(events), err, tt.want)
						continue
					}
					texts := tt.text
					if errors.Is(err, store.ErrPrivilege) {
						texts = append(slices.Clone(texts), map[string]string{"pgx": `outbox" TO "` + name + `"`, "sql": `outbox" TO <role>`}[by])
					}
					for _, text := range texts {
						if !strings.Contains(err.Error(), text) {
							t.Errorf("%s, %d events: error %q does not tell %q", by, len(events), err, text)
						}
					}
				}
			}
		})
	}
}

func TestInsertNeedsATransaction(t *testing.T) {
	if err := store.Insert(t.Context(), nil, event("1")); err == nil {
		t.Error("inserted with a nil pgx.Tx")
	}
	if err := store.InsertSQL(t.Context(), nil, event("1")); err == nil {
		t.Error("inserted with a nil *sql.Tx")
	}
}
