package store_test

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/store/storetest/impostor"
)

// Whatever others have created, and wherever the role would find it first, none of it is called: not by what the relay and
// the commands say, and not by what Insert says on a producer's own connection.
func TestImpostorsAreNeverCalled(t *testing.T) {
	recorder := &impostor.Recorder{}
	use := func(dsn, superuser string) {
		t.Helper()
		outbox := open(t, dsn, store.Options{Retain: time.Hour, HoldDead: true, BeforeConnect: recorder.Hook})
		if err := outbox.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		config.Tracer = recorder
		producer, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer producer.Close(context.WithoutCancel(t.Context()))
		db := stdlib.OpenDB(*config)
		defer db.Close()
		turn := 0
		useAll(t, outbox, func(events ...store.Event) {
			t.Helper()
			for i := range events {
				events[i].Headers = map[string]string{"X-Kind": "test"}
			}
			turn++
			// One, and several, in both ways.
			insertBoth(t, outbox.Table(), producer, db, turn, events[:len(events)-1]...)
			insertBoth(t, outbox.Table(), producer, db, turn+1, events[len(events)-1])
		})
		for _, c := range []store.Candidacy{{Name: "me", Reason: "because"}, {Name: "me", Fit: true}} {
			if _, err := outbox.Stand(t.Context(), "EVENTS", c); err != nil {
				t.Fatal(err)
			}
		}
		useLocks(t, outbox, connect(t, superuser))
		woken := make(chan struct{}, 100)
		hear(t, outbox, woken)
		await(t, "wake-up of the listener", woken)
	}
	first := storetest.NewDatabase(t)
	use(first, first)
	statements := recorder.Statements()

	dsn := storetest.NewDatabase(t)
	role, roleDSN := newRole(t, dsn)
	planted := impostor.Plant(t, connect(t, dsn), role, statements)
	for _, want := range []string{
		"function pg_try_advisory_lock", "function pg_advisory_unlock", "function get_bit", "function unnest", "function octet_length", "function clock_timestamp", "function count",
		"function has_table_privilege", "function to_regclass", "function pg_notify", "function set_config", "function pg_terminate_backend", "function age", "function sum", "function texteq", "function pg_current_xact_id",
		"operator =", "operator *", "operator -", "operator <<", "operator |", "operator <>", "operator ||", "type uuid", "type text", "type bytea", "type jsonb", "type timestamptz",
	} {
		if !slices.Contains(planted, want) {
			t.Errorf("no %s was planted; the statements are not read right, or not all are there", want)
		}
	}
	t.Logf("planted against %d statements: %s", len(statements), strings.Join(planted, ", "))

	// Without our precautions they are called.
	victim := connect(t, roleDSN)
	for _, statement := range []string{
		`select pg_backend_pid()`, `select get_bit('\x00'::bytea, 0::int)`, `select 1::bigint * interval '1 second'`, `select count(*) from pg_catalog.pg_class`, `select pg_try_advisory_lock('1', '2')`,
		`select 'a'::text`, `select 1::bigint = 1::bigint`, `select 1::bigint from (select) s where 1 in (select 2)`,
	} {
		if _, err := victim.Exec(t.Context(), statement, pgx.QueryExecModeSimpleProtocol); err == nil {
			t.Errorf("%s: called no impostor; this test cannot fail", statement)
		}
	}
	use(roleDSN, dsn)
}

// useLocks makes round trips until the relay looks at the locks of a transaction that holds back the others.
func useLocks(t *testing.T, outbox *store.Outbox, holder *pgx.Conn) {
	t.Helper()
	if _, err := holder.Exec(t.Context(), `begin; select pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = holder.Exec(t.Context(), `rollback`) }()
	term := begin(t, outbox, "EVENTS")
	for i := range 3 {
		time.Sleep(20 * time.Millisecond) // More than it bears with such a transaction.
		_, err := term.RoundTrip(t.Context(), store.Request{Checkpoint: uint64(i) + 5, Fetch: &store.Fetch{Rows: 10, Bytes: 1 << 20, Highest: 1000}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// insertBoth inserts by pgx or by database/sql, in turns.
func insertBoth(t *testing.T, table store.Table, producer *pgx.Conn, db *sql.DB, turn int, events ...store.Event) {
	t.Helper()
	if turn%2 == 0 {
		err := pgx.BeginFunc(t.Context(), producer, func(tx pgx.Tx) error { return table.Insert(t.Context(), tx, events...) })
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := table.InsertSQL(t.Context(), tx, events...); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}
