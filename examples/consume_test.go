package examples_test

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// A consumer of the events of one topic. Decode has the producer's own words, whatever the subject made of them. The
// program in consumer also handles failures, and repeated deliveries.
func Example_consume() {
	ctx := context.Background()
	natsURL := relayed(ctx,
		store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "no. 17", EventType: "OrderPlaced", Data: []byte(`{"items":2}`)},
		store.Event{Topic: "orders", AggregateType: "Order", AggregateID: "no. 17", EventType: "OrderPaid", Data: []byte(`{"eur":40}`)},
	)

	conn, err := nats.Connect(natsURL)
	check(err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	check(err)
	consumer, err := js.CreateOrUpdateConsumer(ctx, "OUTBOX", jetstream.ConsumerConfig{
		Durable:       "bookkeeping",
		FilterSubject: "outbox.orders.>",
		AckPolicy:     jetstream.AckExplicitPolicy,
		MaxAckPending: 1, // Nothing overtakes a message that has to be delivered again.
	})
	check(err)
	for range 2 {
		msg, err := consumer.Next()
		check(err)
		event, err := stream.Decode(msg.Headers(), msg.Data())
		check(err)
		fmt.Println(msg.Subject())
		fmt.Printf("  %s of %s %q: %s\n", event.EventType, event.AggregateType, event.AggregateID, event.Data)
		check(msg.Ack())
	}

	// Output:
	// outbox.orders.Order.no%2E%2017
	//   OrderPlaced of Order "no. 17": {"items":2}
	// outbox.orders.Order.no%2E%2017
	//   OrderPaid of Order "no. 17": {"eur":40}
}

// relayed returns the URL of a NATS server whose stream OUTBOX has the events, by way of an outbox.
func relayed(ctx context.Context, events ...store.Event) (natsURL string) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	dsn := newDatabase(ctx, store.Table{})
	natsURL = newNATS() //nolint:contextcheck // The start of a server takes none.
	insert(ctx, dsn, events...)
	left := len(events)
	r, err := relay.New(relay.Config{Postgres: dsn, NATS: natsURL, Logger: newLog(), Hooks: relay.Hooks{Published: func(p relay.Published) {
		if left -= p.Events; left == 0 {
			stop()
		}
	}}})
	check(err)
	check(r.Run(ctx))
	return natsURL
}
