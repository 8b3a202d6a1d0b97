// Package relay moves events from an outbox in Postgres to a stream in NATS JetStream.
//
//	r, err := relay.New(relay.Config{Postgres: dsn, NATS: natsURL, Logger: log})
//	…
//	err = r.Run(ctx) // Waits for Postgres, makes tables and stream, relays; cleans up when ctx ends.
//	…
//	r.Status() // Always says why: also while another leads, without Postgres, paused.
//
// [New] takes a [Config]. Only Config.Postgres is needed. Fields that are zero have the defaults of the command outbox-relay,
// so that a relay in a program and one in a container can work for the same outbox. Package config fills a Config from a file
// and the environment. New connects to nothing. [Relay.Run] blocks until its context ends. Any number of relays may run for
// one outbox; one of them leads. [Relay.Prepare] makes the tables before Run does, [Relay.PrepareStream] the stream, and
// [Relay.Outbox] has the operator's verbs: dead letters, replay, inspection. Signals, HTTP (package admin) and metrics
// (package metrics, through Config.Hooks) are left to the program.
//
// [Assemble] makes a relay of three parts that a program has made, wrapped or replaced: a [Store] ([StoreOf] makes one of a
// *store.Outbox), a [Publisher] ([PublisherOf], of a *publisher.Publisher) and an [Elector] (package election). A type that
// embeds one of them keeps all that it can do. [PublishOnly] adapts what can only send. At start the relay logs which
// guarantees the chosen parts weaken. The order of calls is in the types: Store.Begin returns the [Term] that settles and
// fetches, Publisher.Begin the [Session] that publishes after its fence. Package relaytest has suites for replacements, and
// parts in memory for a program's own tests.
//
// README.md has the conditions of the guarantees, and how the relay works: reading back, who is fit to lead, failures, refusals.
//
// # What stops Run, and what does not
//
// Run returns nil when its context has ended. It returns an error only if waiting does not help:
//
//   - An error of the [Store] or the [Elector] that store.Fatal knows: store.ErrForeignTable, ErrNewSchema, ErrPooler,
//     ErrServerVersion, ErrParameter or ErrOtherStream.
//   - stream.ErrRefused, from Open: Config.Strict is set, and the stream does not meet a condition of exactly-once delivery.
//   - Any other error that ends the Elector's Run, such as a bucket that cannot be used for elections.
//   - [ErrRunning]: the relay runs already.
//
// Run waits until every other error is over, and tells it in Status and log:
//
//   - Tables that cannot be prepared are tried again after 100 ms, doubling to a second.
//   - After an error of Stand or, while it does not lead, of Open, the relay does not campaign.
//   - An error of Begin, RoundTrip or Standbys ends the term. The next term begins after 100 ms, doubling to 5 s. After an
//     error of Listen the relay polls.
//   - An error of Open or Publish, or in an outcome, pauses publishing. The relay tries again after 50 ms, doubling to a
//     second. Only a *stream.Error with stream.FaultRow is the row's own fault: only its
//     aggregate waits, and the row becomes a dead letter at last.
//   - While the stream is read back, a *stream.Error pauses publishing, and another error ends the term. So does a
//     *history.DeposedError: the stream has seen a later term.
//   - store.ErrKept and store.ErrUnarchived pause publishing: somebody's trigger changes what the relay does.
//
// So a program's own Store stops the relay by an error that store.Fatal knows, and its own Publisher by stream.ErrRefused. A
// Publisher returns a *stream.Error to tell whose fault a failure is; stream.Classify decides that for any other error of Open
// or Publish.
//
// # Guarantees
//
//   - Every event whose transaction committed is stored in the stream, and none whose did not.
//   - It is stored once, however long an interruption between publishing and settling lasts: whenever an outcome is in
//     doubt, the relay reads the stream back before it goes on.
//   - No row stops another. Whatever a row holds, only its own aggregate waits for it.
//   - An aggregate's events are stored in the order of their seq. Between aggregates there is no order.
//   - An event that is stored is then settled, that is, removed from the outbox. No other event is.
//   - An event that the broker loses after it has acknowledged it is published again, in order and before any newer event of
//     its aggregate, if the archive still has it: see store.Options.Retain.
//
// The conditions: the stream keeps its messages, except those that its limits remove at its beginning (limits retention, no
// limit on messages per subject); nobody else publishes on the outbox's subjects with its ids; one relay leads at a time;
// and the stream's duplicate window is at least [MinDuplicateWindow].
//
// # States
//
//	campaigning   not elected: it has not been run yet, waits for its tables, another leads, or something that a leader needs
//	              cannot be reached
//	stopped       Run has returned, or is about to
//	leading       fetches, publishes, settles; asleep while there is nothing to do
//	paused        leading, but the broker or the stream is not fit, and the circuit breaker is not closed
//	              Paused by hand: a person has ordered that nothing be published (store.Outbox.Pause)
//
// [Relay.Status] tells which, and why the relay is not ready. A term ends when the lease does, when a round trip
// to the outbox fails, when the relay is to stop, or when another relay could publish and this one cannot. The next term
// holds no rows when it begins.
//
// # Stopping
//
// When Run's context ends, a leader finishes what is in flight, settles it, hands over, gives the lock back and tells the
// standbys, within Options.ShutdownTimeout. A relay that is killed instead leaves the same state, without what was still to
// be settled: its successor finds in the stream what was published.
package relay
