package examples_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// runRelay relays from the outbox at dsn to a NATS server. Run it in as many processes as you like: one of them leads, the
// others stand by.
func runRelay(ctx context.Context, dsn, natsURL string, log *slog.Logger) error {
	r, err := relay.New(relay.Config{Postgres: dsn, NATS: natsURL, Logger: log})
	if err != nil {
		return err
	}
	return r.Run(ctx) // Waits for Postgres, makes tables and stream, relays; cleans up when ctx ends.
}

// The relay in a program of your own.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	dsn, natsURL := newDatabase(ctx, store.Table{}), newNATS()
	execute(ctx, dsn, `select outbox_emit('orders', 'Order', '17', 'OrderPlaced', '{"id":17}')`)

	ended := make(chan error, 1)
	go func() { ended <- runRelay(ctx, dsn, natsURL, newLog()) }()
	awaitEmptyOutbox(ctx, dsn)
	stop()
	check(<-ended)
	fmt.Println("the event is published")

	// Output:
	// the event is published
}

// The relay put together by hand, of parts that can be wrapped and replaced.
func Example_parts() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	dsn, natsURL, log := newDatabase(ctx, store.Table{}), newNATS(), newLog()
	execute(ctx, dsn, `select outbox_emit('orders', 'Order', '17', 'OrderPlaced', '{"id":17}')`)
	hooks := relay.Hooks{Published: func(p relay.Published) {
		fmt.Println("events published:", p.Events)
		stop() // Your program has other reasons.
	}}

	outbox, err := store.Open(dsn, store.Options{Retain: relay.DefaultRetain, Logger: log})
	check(err)
	broker, err := publisher.New(publisher.Options{
		Connect: stream.ConnectOptions{URL: natsURL},
		Setup:   stream.Setup{Create: true},
	})
	check(err)
	r, err := relay.Assemble(relay.Parts{
		Store:     relay.StoreOf(outbox),
		Publisher: relay.PublisherOf(broker),
		Elector:   relay.AdvisoryLock(outbox, relay.DefaultAdvisoryLock, log),
	}, relay.Options{Logger: log, Hooks: hooks})
	check(err)
	check(r.Run(ctx)) // Blocks; stops gracefully when ctx ends.

	// Output:
	// events published: 1
}

// What an operator does: handle dead letters, publish again what was published, see the state.
func Example_operator() {
	ctx := context.Background()
	dsn := newDatabase(ctx, store.Table{})
	execute(ctx, dsn, `select outbox_emit('orders', 'Order', '17', 'OrderPlaced', '{"id":17}')`)
	r, err := relay.New(relay.Config{Postgres: dsn, NATS: newNATS(), Logger: newLog()})
	check(err)

	found, err := r.Outbox().Inspect(ctx)
	check(err)
	fmt.Println("pending:", found.Waiting.Rows)
	dead, err := r.Outbox().DeadLetters(ctx, store.DeadFilter{Topic: "orders"}, false)
	check(err)
	fmt.Println("given up:", len(dead))

	// Output:
	// pending: 1
	// given up: 0
}

func newLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// awaitEmptyOutbox returns when all is published and settled.
func awaitEmptyOutbox(ctx context.Context, dsn string) {
	conn, err := pgx.Connect(ctx, dsn)
	check(err)
	defer conn.Close(ctx)
	for pending := 1; pending > 0; {
		check(conn.QueryRow(ctx, `select count(*) from outbox`).Scan(&pending))
		time.Sleep(10 * time.Millisecond)
	}
}
