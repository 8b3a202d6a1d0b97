// Package consumer applies the effect of each event exactly once: in a Postgres database, in the order of each aggregate, and
// many aggregates at a time.
//
//	c, err := consumer.New(consumer.Config{
//		Name: "payments", Pool: pool, JetStream: js, Subjects: []string{"outbox.orders.>"},
//		Handle: func(ctx context.Context, tx pgx.Tx, event consumer.Event) error {
//			_, err := tx.Exec(ctx, `update account …`)
//			return err
//		},
//	})
//	…
//	err = c.Run(ctx) // Makes its tables, waits for Postgres, NATS and the stream, and consumes until ctx ends.
//
// Any number of processes may run a consumer of one name; one of them leads and consumes. The others take over: at once when
// it stops, and within half a second when it is killed.
//
// # Guarantees
//
//   - Each event's effect is committed exactly once: the handler's transaction also records the event in the inbox.
//   - Effects of one aggregate are committed in the order in which the stream has its events. That is the order of their Seq if
//     producers lock the aggregate before they insert, as package store says.
//   - An event that fails is tried again in its place. Only its lane waits: 1 in Lanes of all aggregates.
//   - Nothing is left out without a trace. What is given up is in the table outbox_parked, whole and with the reason, and what
//     cannot be decoded is there, too.
//
// The conditions: the effects are in the database of Pool, and the events of an aggregate come from one outbox.
//
// # How it works
//
// The inbox has one row for each consumer and aggregate, with the Seqs of the latest 16 events whose effects are committed. So it
// grows with the aggregates, and never with the events. A lane begins a transaction and enters the event's Seq in one round
// trip. If it is there already, the event was handled before and is skipped. So is an older one, if the stream had it before
// those 16.
//
// An event that is older and whose message is new, such as a dead letter that was requeued late or an event that somebody
// replays, may have been handled or not. It is parked, and [Consumer.Redo] applies it.
//
// Invariant. No effect is committed twice, and none before that of an earlier event of its aggregate.
//
// Why. The transaction with the effect changes the row, and holds its lock until the end. Two processes that overlap, such as
// one that was frozen and its successor, wait for each other there, and whoever comes second finds the event entered. Each
// process works off an aggregate's events in one lane, in the order of the stream, without a gap. So when it comes to an
// event, all earlier ones are committed by itself or skipped, since they were committed by somebody.
//
// Test. TestKilledAndFrozen, TestTwoAtOnce.
//
// So leadership, an advisory lock of package election, is only there to save work. The position, in outbox_inbox_position, is
// a lower bound: all events up to it are committed. It is recorded about every second, and a process that takes over reads on
// from there; what comes again is skipped.
//
// The stream is read by a consumer of JetStream that is made for each term and forgotten by the server afterwards: no
// acknowledgements, no redeliveries. If a message is missing between two (the sequence of deliveries has a gap), reading
// begins anew after the last one that came. If the stream is not the one that was read, because it was made anew or put back
// to an earlier state, it is read from its beginning: what was handled is skipped, by Seq.
//
// # States
//
//	standing by   another process consumes
//	waiting       for Postgres, NATS or the stream; Status tells why
//	consuming
//	stopping      ctx has ended; lanes finish the events that they are at, within StopTimeout
//
// # Failures
//
//   - The handler returns an error or panics: the transaction is rolled back, and the event is tried again after RetryBackoff,
//     doubling to RetryBackoffMax. With MaxAttempts, or if the error is [Permanent], it is parked: the aggregate goes on.
//   - Postgres is away, ends a connection, or rolls a transaction back because of a deadlock or a serialization failure: tried
//     again, and no attempt is counted. Whether a commit that was cut off has
//     taken place, the inbox tells.
//   - The broker is away: the consumer waits. The read-ahead is bounded by MaxPending messages; once a failing event has so
//     many younger ones behind it, all lanes wait for it.
//   - The process is killed or frozen at any point: see above.
//
// What an operator sees in NATS is less than with a durable consumer: its lag is in [Status] and not in "nats consumer info",
// and a stream with interest or work-queue retention does not know of it. The relay wants limits retention anyway.
package consumer
