package examples_test

import (
	"context"
	"database/sql"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // The driver "pgx" of database/sql.

	"github.com/go-outbox/go-outbox/store"
)

// An event is inserted in the transaction of its change, after the change: by then the order's row is locked, so its events are
// in the order of its changes.
func Example_insert() {
	ctx := context.Background()
	dsn := newDatabase(ctx, store.Table{})

	conn, err := pgx.Connect(ctx, dsn)
	check(err)
	defer conn.Close(ctx)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `update orders set paid = true where id = 17`); err != nil {
			return err
		}
		return store.Insert(ctx, tx, store.Event{
			Topic: "orders", AggregateType: "Order", AggregateID: "17",
			EventType: "OrderPaid", Data: []byte(`{"id":17}`),
		})
	})
	check(err)

	printOutbox(ctx, dsn, "outbox")
	// Output:
	// orders: Order 17, OrderPaid {"id":17}
}

// The same with database/sql. Several events are one statement, here as with pgx.
func Example_insertDatabaseSQL() {
	ctx := context.Background()
	dsn := newDatabase(ctx, store.Table{})

	db, err := sql.Open("pgx", dsn)
	check(err)
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	check(err)
	defer tx.Rollback() //nolint:errcheck // After a commit it does nothing.
	_, err = tx.ExecContext(ctx, `update orders set paid = true where id = 17`)
	check(err)
	err = store.InsertSQL(ctx, tx,
		store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "17", EventType: "OrderPaid", Data: []byte(`{"id":17}`)},
		store.Event{Topic: "stock", AggregateType: "Item", AggregateID: "4711", EventType: "ItemReserved", Data: []byte(`{"order":17}`)},
	)
	check(err)
	check(tx.Commit())

	printOutbox(ctx, dsn, "outbox")
	// Output:
	// orders: Order 17, OrderPaid {"id":17}
	// stock: Item 4711, ItemReserved {"order":17}
}

// Any language that speaks SQL is a producer. The function takes text, JSON or bytes.
func Example_insertPlainSQL() {
	ctx := context.Background()
	dsn := newDatabase(ctx, store.Table{})

	execute(ctx, dsn, `
with changed as (
    update orders set paid = true where id = 17 returning *
)
select outbox_emit('orders', 'Order', id::text, 'OrderPaid', row_to_json(changed)) from changed`)

	printOutbox(ctx, dsn, "outbox")
	// Output:
	// orders: Order 17, OrderPaid {"id":17,"paid":true}
}

// A plain INSERT is as good, if text is converted: a literal for a bytea column is read in the escape format, which takes a
// backslash away here, and refuses most others.
func Example_insertWithoutTheFunction() {
	ctx := context.Background()
	dsn := newDatabase(ctx, store.Table{})

	execute(ctx, dsn, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers)
values ('orders', 'Order', '17', 'OrderPrinted', convert_to('{"path":"C:\\new"}', 'UTF8'), '{"tenant": "a"}')`)

	printOutbox(ctx, dsn, "outbox")
	// Output:
	// orders: Order 17, OrderPrinted {"path":"C:\\new"}
}

// An outbox may have another name than public.outbox, and a database several of them.
func Example_customTable() {
	ctx := context.Background()
	table := store.Table{Schema: "shop", Name: "events_to_send"}
	dsn := newDatabase(ctx, table) // By store.Open(dsn, store.Options{Table: table}) and Migrate.

	conn, err := pgx.Connect(ctx, dsn)
	check(err)
	defer conn.Close(ctx)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		return table.Insert(ctx, tx, store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "17", EventType: "OrderPlaced", Data: []byte(`{}`)})
	})
	check(err)

	printOutbox(ctx, dsn, "shop.events_to_send")
	// Output:
	// orders: Order 17, OrderPlaced {}
}
