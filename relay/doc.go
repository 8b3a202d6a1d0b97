// Package relay moves events from an outbox in Postgres to a stream in NATS JetStream.
//
//	r, err := relay.New(relay.Config{Postgres: dsn, NATS: natsURL, Logger: log})
//	…
//	err = r.Run(ctx) // Waits for Postgres, makes tables and stream, relays; cleans up when ctx ends.
//	…
//	r.Status() // Always says why: also while another leads, without Postgres, paused.
//
// [New] takes a [Config], of which only Postgres is needed: what is left zero has the default of the command outbox-relay, so
// that relays in a program and in a container work for one outbox. Package config fills one from a file and the environment.
// New connects to nothing. [Relay.Run] blocks until its context ends; any number of relays may run for one outbox, one of
// which leads. [Relay.Prepare] makes the tables before Run does, [Relay.PrepareStream] the stream, and [Relay.Outbox] has the
// operator's verbs: dead letters, replay, inspection. Signals, HTTP (package admin) and metrics (package metrics, by way of
// Config.Hooks) are left to the program.
//
// [Assemble] makes a relay of three parts that a program has made, wrapped or replaced: a [Store] (package store), a
// [Publisher] (package stream) and an [Elector] (package election). A type that embeds one of them keeps all that it can do.
// [PublishOnly] adapts a publisher that can only send. The relay says at start what is given up by the choice of parts.
//
// # What stops Run, and what does not
//
// Run returns nil when its context has ended, and an error only for what waiting does not mend:
//
//   - One that store.Fatal knows, from the [Store] or the [Elector]: store.ErrForeignTable, ErrNewSchema, ErrPooler,
//     ErrServerVersion, ErrParameter or ErrOtherStream.
//   - stream.ErrRefused, from Open: Config.Strict is set, and the stream does not meet a condition of exactly-once delivery.
//   - Whatever else ends the Elector's Run, such as an election's bucket that is not fit.
//   - [ErrRunning]: the relay runs already.
//
// All others it waits out, and says so in Status and log:
//
//   - Tables that cannot be prepared are tried again after 100 ms, doubling to a second.
//   - After an error of Stand or, while it does not lead, of Open, the relay does not campaign: see Fit to lead.
//   - An error of Begin, Exchange or Standbys ends the term. The next one begins after 100 ms, doubling to 5 s. After one of
//     Listen the relay polls.
//   - An error of Open or Publish, and an outcome that is one, pauses publishing, until it is tried again after 50 ms,
//     doubling to a second. Only a *stream.Error with stream.FaultRow is the row's own: see Refusals.
//   - While the stream is read back, a *stream.Error pauses publishing, and another error ends the term. So does a
//     *stream.DeposedError: the stream has seen a later term.
//   - store.ErrKept and store.ErrUnarchived pause publishing: somebody's trigger changes what the relay does.
//
// So a Store of a program's own stops the relay by an error that store.Fatal knows, and a Publisher by stream.ErrRefused. A
// Publisher says by a *stream.Error whose fault a failure is; any other error of Open or Publish is what stream.Classify
// makes of it.
//
// # Guarantees
//
//   - Every event whose transaction committed is stored in the stream, and none whose did not.
//   - It is stored once, however long an interruption between publishing and settling lasts: whenever an outcome is in
//     doubt, the relay reads what the stream holds before it goes on. See Recovery.
//   - No row stops another. Whatever a row holds, only its own aggregate waits for it. See Refusals.
//   - An aggregate's events are stored in the order of their seq. Few events are sent each by itself, the next one
//     of an aggregate when the outcome of the one before is known; a backlog goes in one ordered batch, if the broker
//     takes them, where nothing after a failed event is stored. Between aggregates there is no order.
//   - What is stored is then removed from the outbox, and nothing else is.
//   - What the broker loses after it has acknowledged it is published again, in order and before anything newer of its
//     aggregate, if the archive still has it: see store.Options.Retain.
//
// The conditions: the stream keeps what it has, but for what its limits remove at its beginning (limits retention, no
// limit on messages a subject); nobody else publishes on the outbox's subjects with its ids; one relay leads at a time;
// and the stream's duplicate window is at least [MinDuplicateWindow]. The last is for one case only: a message that an
// earlier leader, frozen or cut off, had in flight outside of an ordered batch when its lease ran out. README.md tells the
// one sequence of faults in which the window is not enough.
//
// # Recovery
//
// The stream is the truth: what it holds is published, what it does not hold is not. The outbox keeps a checkpoint, a
// sequence of the stream: each event that is still in the table is stored after it, or not at all. A leader whose term
// begins, or that has an outcome in doubt (an acknowledgement lost, a timeout, a broken connection), publishes nothing
// more and
//
//  1. waits until nothing is in flight;
//  2. puts up a fence: a message on a subject of the relay's own. Whatever ordered batch a former leader has yet to begin
//     is refused from then on;
//  3. reads the stream from the checkpoint to the fence, and settles the events it finds there;
//  4. compares the archive with what it found, and puts back into the table what the stream should have and has not.
//
// Then it fetches anew, and goes on. No clock and no duplicate window has a part in that, except that the next checkpoint
// is not recorded before each message that was sent outside of a batch has arrived or is lost: see checkpoints.go.
//
// The relay looks at the stream every second or so while it publishes, and every five seconds while it does not. It reads
// the stream back if that look finds another stream, a shorter one, or another message at the sequence acknowledged last;
// and if an acknowledgement has a sequence that the stream had given before. If somebody deletes the stream, the server says
// so (package stream, hearOfDeletion). After idleness the relay sends one event alone, so
// that a stream that was created anew or put back is noticed before anything else is stored in it; that event carries the
// fence or, where there is none or the stream would not look for it, follows a look at the stream.
//
// A leader that stops gracefully hands over: nothing is in flight, and it leaves a checkpoint that says so. If its
// successor finds that fence as the last one in the stream, it reads nothing back (handover.go).
//
// A relay whose [Publisher] does not read back does none of that: then the stream's duplicate window is all there is.
//
// # States
//
//	campaigning   not elected: it has not been run yet, waits for its tables, another leads, or something that a leader needs
//	              cannot be reached
//	stopped       Run has returned, or is about to
//	leading       fetches, publishes, settles; asleep while there is nothing to do
//	paused        leading, but the broker or the stream is not fit: see below
//
// [Relay.Status] tells which, and why the relay is not ready. A term ends when the lease does, when a round trip
// to the outbox fails, when the relay is to stop, or when another relay could publish and this one cannot. The next term
// holds no rows when it begins.
//
// # Fit to lead
//
// A relay campaigns once it has reached Postgres, the broker and the stream, and no longer than it does: it looks every two
// seconds. It tells the others through the outbox that it could publish ([Store].Stand). A leader that has been unable to
// publish for three seconds asks whether another one could (Standbys), and makes way if so: it stays out of the
// election for five seconds and until it could publish again. Without such a standby it stays.
//
// A standby knows that it can connect and that the stream is there, not that an event would be stored. If all are kept from
// publishing, as by a stream that is full, each that makes way does not say that it could publish for ten seconds, then
// for twice as long, up to ten minutes. So they do not go on making way for each other.
//
// # Failures
//
// Package stream says whose fault a failed publish is:
//
//   - The row's own (too large, a reserved header): see Refusals.
//   - The stream's set-up, or the weather (an outage, a timeout, a full stream): nobody's attempts are spent. The relay
//     pauses as a whole, says why, and looks again after 50 ms, doubling to a second.
//   - A failed round trip to Postgres ends the term. What was published and not settled is found in the stream by the
//     next one. A round trip that is slow, or waits for a lock, costs no term: store.Outbox.Watch proves that the server
//     lives, and names whoever is in the way.
//   - Postgres keeps rows that were deleted, or the archive does not have what was put into it: somebody's trigger or rule
//     does that. Publishing pauses, as a fault of the set-up, since everything would be published again.
//
// # Refusals
//
// A row that the broker refuses for a reason of the row's own is tried again after Options.RetryBackoff, doubling, up to
// Options.MaxAttempts times, and then given up: it becomes a dead letter. What cannot change within seconds, such as an event
// that is too large, is given up on its first attempt. What can never be published, the fetch does not even read.
//
// Only the row's aggregate waits meanwhile. A fetch leaves blocked aggregates out, the first thousand by name and the
// rows of others by seq, so that their backlog costs nobody anything. What follows a dead letter is the store's to decide: by
// default the aggregate goes on. The log tells ten refusals in ten seconds, and sums up the others.
//
// A kept row is one of which Postgres refuses to record the outcome: a foreign key, or somebody's trigger. The round trip is
// repeated in steps, so that the other rows get through, and the kept row is set aside: it is tried again, and the log and
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
