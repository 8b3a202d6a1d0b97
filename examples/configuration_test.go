package examples_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
)

// The relay in a program of your own, with the settings of outbox-relay.
func Example_configuration() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	dsn := newDatabase(ctx, store.Table{})
	insert(ctx, dsn, store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "17", EventType: "OrderPlaced", Data: []byte(`{}`)})
	check(os.Setenv("OUTBOX_DATABASE_DSN", dsn))
	defer os.Unsetenv("OUTBOX_DATABASE_DSN")
	check(os.Setenv("OUTBOX_NATS_URL", newNATS()))
	defer os.Unsetenv("OUTBOX_NATS_URL")
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	hooks := relay.Hooks{Published: func(p relay.Published) {
		fmt.Println("events published:", p.Events)
		stop() // Your program has other reasons.
	}}

	settings, err := config.Load(config.Sources{}) // config/relay.toml, and OUTBOX_… from the environment.
	check(err)
	c := settings.RelayConfig()
	c.Logger, c.Hooks = log, hooks
	r, err := relay.New(c)
	check(err)
	check(r.Prepare(ctx)) // Waits for Postgres, and migrates. From here on your program may insert events.
	check(r.Run(ctx))     // Relays; cleans up when ctx ends.

	// Output:
	// events published: 1
}
