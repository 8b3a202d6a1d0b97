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
// [Assemble] makes a relay of three parts that a program has made, wrapped or replaced: a [Store] (package store), a
// [Publisher] (package stream) and an [Elector] (package election). [StoreOf] and [PublisherOf] adapt those of the packages. A
// type that embeds one of them keeps all that it can do. [PublishOnly] adapts what can only send. Their order is in the types:
// Store.Begin returns the [Term] that settles and fetches, Publisher.Begin the [Session] that publishes after its fence. At start the relay logs which guarantees the chosen parts weaken.
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
//   - After an error of Stand or, while it does not lead, of Open, the relay does not campaign: see Fit to lead.
//   - An error of Begin, RoundTrip or Standbys ends the term. The next term begins after 100 ms, doubling to 5 s. After an
//     error of Listen the relay polls.
//   - An error of Open or Publish, or in an outcome, pauses publishing. The relay tries again after 50 ms, doubling to a
//     second. Only a *stream.Error with stream.FaultRow is the row's own fault: see Refusals.
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
//     doubt, the relay reads the stream back before it goes on. See Recovery.
//   - No row stops another. Whatever a row holds, only its own aggregate waits for it. See Refusals.
//   - An aggregate's events are stored in the order of their seq. If there are few events, each is sent by itself: the next
//     event of an aggregate once the outcome of the one before is known. A backlog goes in an ordered batch, if the broker
//     takes such batches: it stores nothing of the batch after an event that failed. Between aggregates there is no order.
//     If the stream takes no batches, a long backlog of one aggregate takes its time, and the others do not wait for it.
//   - An event that is stored is then settled, that is, removed from the outbox. No other event is.
//   - An event that the broker loses after it has acknowledged it is published again, in order and before any newer event of
//     its aggregate, if the archive still has it: see store.Options.Retain.
//
// The conditions: the stream keeps its messages, except those that its limits remove at its beginning (limits retention, no
// limit on messages per subject); nobody else publishes on the outbox's subjects with its ids; one relay leads at a time;
// and the stream's duplicate window is at least [MinDuplicateWindow]. The last condition is for one case only: a message that
// an earlier leader, frozen or cut off, had in flight outside of an ordered batch when its lease ran out. README.md tells the
// one sequence of faults in which the window is not enough.
//
// # Recovery
//
// The stream is the truth: an event is stored if the stream holds it, and otherwise not. The outbox keeps a checkpoint, a
// sequence of the stream: each event that is still in the table is stored after it, or not at all. At the beginning of a
// term, and when an outcome is in doubt (a lost acknowledgement, a timeout, a broken connection), the leader publishes nothing
// more and
//
//  1. waits until nothing is in flight;
//  2. puts up a fence, a message on a subject of the relay's own: from then on the broker refuses each ordered batch that a
//     former leader has yet to begin;
//  3. reads the stream from the checkpoint to the fence, and settles the events that it finds there;
//  4. compares the archive with them, and puts back into the table the events that the stream should have and has not.
//
// Then it fetches all rows anew, and goes on. None of this depends on a clock or on a duplicate window, with one exception:
// the next checkpoint is not recorded before every message that was sent outside of a batch has arrived or is lost (see
// checkpoints.go).
//
// The relay verifies the stream about every second while it publishes, and every five seconds while it does not. It reads
// the stream back if it finds another stream, a shorter one, or another message at the sequence acknowledged last; or if an
// acknowledgement has a sequence that the stream had given before. If somebody deletes the stream, the server says so
// (package stream, hearOfDeletion). After an idle time the relay sends one event alone, to notice a stream that was created
// anew or restored from a backup before anything else is stored in it. That event carries the fence. If there is no fence, or
// the stream would not check it, the relay verifies the stream before it sends the event.
//
// A leader that stops gracefully hands over: nothing is in flight, and it leaves a last fence and a checkpoint that says so.
// If its successor finds that fence as the last one in the stream, it reads nothing back (handover.go).
//
// A relay whose [Publisher] does not read back does none of that: then only the stream's duplicate window prevents
// duplicates.
//
// # States
//
//	campaigning   not elected: it has not been run yet, waits for its tables, another leads, or something that a leader needs
//	              cannot be reached
//	stopped       Run has returned, or is about to
//	leading       fetches, publishes, settles; asleep while there is nothing to do
//	paused        leading, but the broker or the stream is not fit, and the circuit breaker is not closed: see Failures
//
// [Relay.Status] tells which, and why the relay is not ready. A term ends when the lease does, when a round trip
// to the outbox fails, when the relay is to stop, or when another relay could publish and this one cannot. The next term
// holds no rows when it begins.
//
// # Fit to lead
//
// A relay campaigns while it can reach Postgres, the broker and the stream: it checks that every two seconds. It tells the
// others through the outbox that it could publish ([Store].Stand). A leader that has been unable to publish for three seconds
// asks whether another relay could (Standbys), and makes way if so: it stays out of the election for five seconds, and until
// it could publish again. Without such a standby it stays.
//
// A standby knows that it can connect and that the stream is there, not that an event would be stored. If no relay can
// publish, for example because the stream is full, a relay that made way does not say that it could publish for ten seconds,
// the next time for twice as long, up to ten minutes. So the relays do not go on making way for each other.
//
// # Failures
//
// Package stream says whose fault a failed publish is:
//
//   - The row's own (too large, a reserved header): see Refusals.
//   - The stream's set-up, or the weather (an outage, a timeout, a full stream): no event's attempts are spent. The circuit
//     breaker opens: the relay publishes nothing, says why, and tries to connect again after 50 ms, doubling to a second. Once
//     it has connected, the breaker is half-open: the relay reads the stream back or, if its publisher cannot, sends one event
//     at a time until one is stored. Then the breaker is closed.
//   - A failed round trip to Postgres ends the term. The next term finds in the stream what was stored and not settled. A
//     round trip that is slow, or waits for a lock, does not end the term: store.Outbox.Watch proves that the server lives,
//     and names whoever is in the way.
//   - Postgres keeps rows that were deleted, or the archive does not have what was put into it: a trigger or rule that
//     somebody made does that. Publishing pauses, as a fault of the set-up, since everything would be published again.
//
// # Refusals
//
// A row that the broker refuses for a reason of the row's own is tried again after Options.RetryBackoff, doubling, up to
// Options.MaxAttempts times, and then given up: it becomes a dead letter. If the reason cannot change within seconds, for
// example because the event is too large, the row is given up on its first attempt. A row that can never be published is not
// even read by the fetch.
//
// Only the row's aggregate waits meanwhile. A fetch leaves blocked aggregates out, the first thousand by name and the rows of
// the others by seq, so that their backlog costs other aggregates nothing. The store decides whether an aggregate goes on
// after a dead letter: by default it does. The log tells ten refusals in ten seconds, and sums up the others.
//
// A kept row is a row whose outcome Postgres refuses to record, because of a foreign key or somebody's trigger. The round trip
// is repeated in steps, so that the other rows get through. The kept row is set aside and tried again later, and the log and
// [Hooks].Kept name it. A row that is given up and cannot be moved to the dead letters stays in the outbox, marked with
// given_up_at, and is not fetched again. With more than a hundred rows aside, publishing pauses.
//
// A double is a row whose id the stream had already. The relay looks up what is stored under that id: the same event, from an
// attempt whose answer was lost, or another row with the same id. The latter is settled, not archived, and the log and
// [Hooks].Twice name both rows.
//
// # Stopping
//
// When Run's context ends, a leader finishes what is in flight, settles it, hands over, gives the lock back and tells the
// standbys, within Options.ShutdownTimeout. A relay that is killed instead leaves the same state, without what was still to
// be settled: its successor finds in the stream what was published.
package relay
