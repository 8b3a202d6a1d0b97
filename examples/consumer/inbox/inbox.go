// Package inbox is the other end of an outbox: a durable JetStream consumer that handles every event once, and the events
// of an aggregate in their order.
//
// The stream has each event once and in order. Deliveries to a consumer may still repeat and overtake each other. A message
// whose acknowledgement was lost is delivered again, so an [Inbox] remembers the ids that it has handled. And while one message
// waits to be delivered again, later ones would be delivered; so an Inbox has one message outstanding at a time.
//
// What it remembers ends with the process. A consumer that changes a database keeps the ids there, and adds the id in the
// transaction of the change: then no crash comes between the two.
package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
)

const (
	// retryWait is the pause before what failed is tried again.
	retryWait = 500 * time.Millisecond

	// ackWait is how long a message stays with a consumer that crashed. It must exceed the time that handling takes.
	ackWait = 10 * time.Second

	// memory is how many ids are remembered. With one message outstanding, the latest id would be enough for repeated
	// deliveries; the others are for a stream that has an event twice after all.
	memory = 10_000
)

// Options of an Inbox. All are needed.
type Options struct {
	// Stream is the name of the stream, and Filter the subjects in it that are wanted, such as "outbox.users.>".
	Stream, Filter string

	// Durable is the consumer's name, under which the stream keeps how far it has come.
	Durable string

	// Handle deals with one event. If it fails, it gets the same event again, before any other.
	Handle func(ctx context.Context, event stream.Event) error

	// Logger receives what the inbox waits for, and what failed.
	Logger *slog.Logger
}

// Inbox consumes events.
type Inbox struct {
	js      jetstream.JetStream
	options Options
	log     *slog.Logger

	handled   *recent // Belongs to Run.
	trouble   string  // Belongs to Run: what was logged last, so as not to repeat it.
	consuming atomic.Bool
}

// New returns an inbox that does nothing until Run is called.
func New(js jetstream.JetStream, options Options) *Inbox {
	return &Inbox{js: js, options: options, log: options.Logger, handled: newRecent(memory)}
}

// Run handles events until ctx ends. It waits for the stream, and for a broker that is away.
func (i *Inbox) Run(ctx context.Context) {
	for {
		err := i.consume(ctx)
		i.consuming.Store(false)
		if ctx.Err() != nil {
			return
		}
		i.complain(ctx, err)
		select {
		case <-time.After(retryWait):
		case <-ctx.Done():
			return
		}
	}
}

// Check returns nil if events that are stored now would be handled now.
func (i *Inbox) Check(context.Context) error {
	if !i.consuming.Load() {
		return errors.New("not consuming yet")
	}
	return i.connected()
}

func (i *Inbox) connected() error {
	if status := i.js.Conn().Status(); !i.js.Conn().IsConnected() {
		return fmt.Errorf("the connection to NATS is %s", status)
	}
	return nil
}

// complain logs why no events come, once for each reason.
func (i *Inbox) complain(ctx context.Context, err error) {
	if err.Error() == i.trouble {
		return
	}
	i.trouble = err.Error()
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		i.log.InfoContext(ctx, "waiting for the stream; the first relay to lead creates it", slog.String("stream", i.options.Stream))
		return
	}
	i.log.WarnContext(ctx, "not consuming; trying again", slog.Any("error", err))
}

// consume handles events until something fails.
func (i *Inbox) consume(ctx context.Context) error {
	if err := i.connected(); err != nil {
		return err
	}
	consumer, err := i.js.CreateOrUpdateConsumer(ctx, i.options.Stream, jetstream.ConsumerConfig{
		Durable:       i.options.Durable,
		FilterSubject: i.options.Filter,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxAckPending: 1, // Nothing overtakes a message that has to be delivered again.
	})
	if err != nil {
		return fmt.Errorf("consumer %s: %w", i.options.Durable, err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("consumer %s: %w", i.options.Durable, err)
	}
	defer messages.Stop()

	i.log.InfoContext(ctx, "consuming", slog.String("stream", i.options.Stream), slog.String("filter", i.options.Filter))
	i.trouble = ""
	i.consuming.Store(true)
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("next message: %w", err)
		}
		if err := i.receive(ctx, msg); err != nil {
			return err
		}
	}
}

// receive deals with one message. An error is one of the connection.
func (i *Inbox) receive(ctx context.Context, msg jetstream.Msg) error {
	event, err := stream.Decode(msg.Headers(), msg.Data())
	switch {
	case errors.Is(err, stream.ErrNoEvent):
		return msg.Ack() // Somebody else's message on our subjects.
	case err != nil:
		i.log.ErrorContext(ctx, "message skipped", slog.String("subject", msg.Subject()), slog.Any("error", err))
		return msg.Term()
	case i.handled.has(event.ID):
		i.log.DebugContext(ctx, "event handled before", slog.String("id", event.ID.String()))
		return msg.Ack()
	}
	if err := i.options.Handle(ctx, event); err != nil {
		i.log.WarnContext(ctx, "event not handled; trying again", slog.Int64("seq", event.Seq), slog.Any("error", err))
		return msg.NakWithDelay(retryWait)
	}
	i.handled.add(event.ID)
	return msg.Ack()
}
