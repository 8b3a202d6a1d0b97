package examples_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/examples/internal/sandbox"
	"github.com/go-outbox/go-outbox/store"
)

// box is what the examples run on.
var box sandbox.Sandbox //nolint:gochecknoglobals // Nobody could hand it to an example.

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run returns the exit status. It cleans up even if an example panics.
func run(m *testing.M) (code int) {
	defer func() {
		if err := box.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}()
	return m.Run()
}

// check ends an example that has failed, and its deferred calls run.
func check(err error) {
	if err != nil {
		log.Panic(err)
	}
}

// newDatabase returns the connection string of a database with the tables of an outbox, and one of orders.
func newDatabase(ctx context.Context, table store.Table) string {
	dsn, err := box.Database(ctx)
	check(err)
	outbox, err := store.Open(dsn, store.Options{Table: table})
	check(err)
	check(outbox.Migrate(ctx))
	execute(ctx, dsn, `create table orders (id bigint primary key, paid boolean not null default false)`)
	execute(ctx, dsn, `insert into orders (id) values (17)`)
	return dsn
}

// newNATS returns the URL of a NATS server with an empty JetStream.
func newNATS() string {
	url, err := box.NATS()
	check(err)
	return url
}

func execute(ctx context.Context, dsn, statement string) {
	conn, err := pgx.Connect(ctx, dsn)
	check(err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	check(err)
}

// printOutbox prints the pending events of an outbox.
func printOutbox(ctx context.Context, dsn, table string) {
	conn, err := pgx.Connect(ctx, dsn)
	check(err)
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `select format('%s: %s %s, %s', topic, aggregate_type, aggregate_id, event_type), data from `+table+` order by seq`)
	check(err)
	var event string
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&event, &data}, func() error {
		fmt.Printf("%s %s\n", event, data)
		return nil
	})
	check(err)
}

// insert adds events to the default outbox, in a transaction of their own.
func insert(ctx context.Context, dsn string, events ...store.Event) {
	conn, err := pgx.Connect(ctx, dsn)
	check(err)
	defer conn.Close(ctx)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return store.Insert(ctx, tx, events...) })
	check(err)
}
