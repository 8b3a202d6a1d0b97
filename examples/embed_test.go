package examples_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// relayEvents relays from the outbox behind dsn to a NATS server, and creates tables and stream as needed. Run it in as
// many processes as you like: one of them leads, the others stand by.
func relayEvents(ctx context.Context, dsn, natsURL string, hooks relay.Hooks) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

	outbox, err := store.Open(dsn, store.Options{Retain: 5 * time.Minute, Logger: log})
	check(err)
	defer outbox.Close(context.WithoutCancel(ctx)) // The relay leaves its session open.
	check(outbox.Migrate(ctx))                     // Safe at every start, and from many processes at once.

	publisher, err := stream.NewPublisher(stream.PublisherOptions{
		Connect: stream.ConnectOptions{URL: natsURL},
		Setup:   stream.Setup{Create: true, MinWindow: relay.MinDuplicateWindow(stream.DefaultAckTimeout)},
	})
	check(err)

	elector := election.NewAdvisoryLock(outbox.Session(), election.AdvisoryLockOptions{
		Key: 42, Table: outbox.Table().LockKey(), ResignChannel: outbox.Table().ResignChannel(),
		Fatal: store.Fatal, Logger: log,
	})
	events, err := relay.New(outbox, publisher, elector, relay.Options{Logger: log, Hooks: hooks})
	check(err)
	check(events.Run(ctx)) // Blocks; stops gracefully when ctx ends.
}

// The relay in a program of your own, put together by hand.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	dsn, natsURL := newDatabase(ctx, store.Table{}), newNATS()
	execute(ctx, dsn, `select outbox_emit('orders', 'Order', '17', 'OrderPlaced', '{"id":17}')`)

	relayEvents(ctx, dsn, natsURL, relay.Hooks{Published: func(p relay.Published) {
		fmt.Println("events published:", p.Events)
		stop() // Your program has other reasons.
	}})

	// Output:
	// events published: 1
}
