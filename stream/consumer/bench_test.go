package consumer_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/consumer"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// What it costs to have effects once, beside what one writes otherwise. Compare events/s within one run:
//
//   - one outstanding: a durable consumer with MaxAckPending 1, the usual way to keep the order, and a handler of 1 ms;
//   - lanes: the consumer with the same handler;
//   - no inbox: the effect, begin and commit, by as many goroutines as there are lanes;
//   - inbox: the consumer with this effect, and with 50 in a transaction.
func BenchmarkConsumer(b *testing.B) {
	const aggregates = 5000
	dsn := storetest.NewDatabase(b)
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		b.Fatal(err)
	}
	config.MaxConns = 40
	pool, err := pgxpool.NewWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	if _, err := pool.Exec(b.Context(), fmt.Sprintf(`create table account (id text primary key, balance bigint not null default 0); insert into account select n from generate_series(0, %d) n`, aggregates)); err != nil {
		b.Fatal(err)
	}
	js := streamtest.Start(b).JetStream(b)
	fill(b, js, 50_000, aggregates)

	effect := func(ctx context.Context, tx pgx.Tx, e consumer.Event) error {
		_, err := tx.Exec(ctx, `update account set balance = balance + 1 where id = $1`, e.AggregateID)
		return err
	}
	pause := func(context.Context, pgx.Tx, consumer.Event) error {
		time.Sleep(time.Millisecond) // The handler's work.
		return nil
	}
	b.Run("one outstanding", func(b *testing.B) { oneOutstanding(b, js) })
	b.Run("lanes", func(b *testing.B) { consume(b, js, pool, pause, 1) })
	b.Run("no inbox", func(b *testing.B) { noInbox(b, pool, effect) })
	b.Run("inbox", func(b *testing.B) { consume(b, js, pool, effect, 1) })
	b.Run("inbox, 50 in a transaction", func(b *testing.B) { consume(b, js, pool, effect, 50) })
}

// fill stores events.
func fill(b *testing.B, js jetstream.JetStream, events, aggregates int) {
	b.Helper()
	if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}}); err != nil {
		b.Fatal(err)
	}
	template, err := stream.ParseTemplate("")
	if err != nil {
		b.Fatal(err)
	}
	for seq := range events {
		e := event(int64(seq+1), fmt.Sprint(seq%aggregates))
		e.Data = make([]byte, 256)
		msg, err := stream.Encoder{Template: template}.Message(e, "")
		if err != nil {
			b.Fatal(err)
		}
		msg.Header.Set(stream.HeaderMsgID, e.ID.String())
		if _, err := js.PublishMsgAsync(msg); err != nil {
			b.Fatal(err)
		}
	}
	<-js.PublishAsyncComplete()
}

// report runs f, which calls done for each of b.N events, and reports the rate.
func report(b *testing.B, f func(ctx context.Context, done func())) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var n atomic.Int64
	b.ResetTimer()
	f(ctx, func() {
		if n.Add(1) == int64(b.N) {
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			cancel()
		}
	})
}

func consume(b *testing.B, js jetstream.JetStream, pool *pgxpool.Pool, handle func(context.Context, pgx.Tx, consumer.Event) error, batch int) {
	b.Helper()
	report(b, func(ctx context.Context, done func()) {
		c, err := consumer.New(consumer.Config{
			Name: uuid.NewString(), Pool: pool, JetStream: js, Batch: batch,
			Handle: func(ctx context.Context, tx pgx.Tx, e consumer.Event) error {
				err := handle(ctx, tx, e)
				done()
				return err
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Run(ctx); err != nil {
			b.Fatal(err)
		}
	})
}

func oneOutstanding(b *testing.B, js jetstream.JetStream) {
	b.Helper()
	report(b, func(ctx context.Context, done func()) {
		durable, err := js.CreateConsumer(ctx, "OUTBOX", jetstream.ConsumerConfig{Durable: uuid.NewString(), AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1})
		if err != nil {
			b.Fatal(err)
		}
		messages, err := durable.Messages()
		if err != nil {
			b.Fatal(err)
		}
		defer messages.Stop()
		for ctx.Err() == nil {
			msg, err := messages.Next(jetstream.NextContext(ctx))
			if err != nil {
				return
			}
			time.Sleep(time.Millisecond)
			if err := msg.Ack(); err != nil {
				b.Fatal(err)
			}
			done()
		}
	})
}

func noInbox(b *testing.B, pool *pgxpool.Pool, handle func(context.Context, pgx.Tx, consumer.Event) error) {
	b.Helper()
	report(b, func(ctx context.Context, done func()) {
		var next atomic.Int64
		ended := make(chan struct{})
		for range consumer.DefaultLanes {
			go func() {
				defer func() { ended <- struct{}{} }()
				for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
					_ = pgx.BeginFunc(context.WithoutCancel(ctx), pool, func(tx pgx.Tx) error {
						return handle(context.WithoutCancel(ctx), tx, consumer.Event{Event: *event(i, fmt.Sprint(i%5000))})
					})
					done()
				}
			}()
		}
		for range consumer.DefaultLanes {
			<-ended
		}
	})
}
