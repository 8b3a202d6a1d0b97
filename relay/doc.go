// Package relay moves events from an outbox in Postgres to a stream in NATS JetStream.
//
// A [Relay] is put together from three parts, each behind a small interface and replaceable: a [Store] (package
// store), a [Publisher] (package stream) and an [Elector] (package election). [Relay.Run] blocks until its context
// ends; any number of relays may run for one outbox, one of which leads.
//
// # Guarantees
//
//   - Every event whose transaction committed is stored in the stream, and none whose did not.
//   - It is stored once, however long an interruption between publishing and settling lasts: whenever an outcome is
//     open, the relay looks what the stream holds before it goes on. See Recovery.
//   - An aggregate's events are stored in the order of their seq. Few events are sent each by itself, the next one
//     of an aggregate when the outcome of the one before is known; a backlog goes in one ordered pipe, if the broker
//     has one, where nothing behind a failed event is stored. Between aggregates there is no order.
//   - What is stored is then removed from the outbox, and nothing else is.
//   - What the broker loses after it has acknowledged it is published again, in order and before anything newer of its
//     aggregate, if the archive still has it: see store.Options.Retain.
//
// The conditions: the stream keeps what it has, but for what its limits remove at its beginning (limits retention, no
// limit on messages a subject); nobody else publishes on the outbox's subjects with its ids; one relay leads at a time;
// and the stream's duplicate window is at least [MinDuplicateWindow]. The last is for one case only: a message that an
// earlier leader, frozen or cut off, had under way outside of an ordered batch when its lease ran out.
//
// # Recovery
//
// The stream is the truth: what it holds is published, what it does not hold is not. The outbox keeps a checkpoint, a
// sequence of the stream that all events still in the table are stored behind, if at all. A leader that takes office,
// or that has seen an outcome stay open (an acknowledgement lost, a timeout, a broken connection), publishes nothing more
// and
//
//  1. waits until nothing is in flight;
//  2. puts up a fence: a message on a subject of the relay's own. Whatever ordered batch a former leader has yet to begin
//     is refused from then on;
//  3. reads the stream from the checkpoint to the fence, and settles the events it finds there;
//  4. compares the archive with what it found, and puts back into the table what the stream should have and has not.
//
// Then it fetches anew, and goes on. No clock and no duplicate window has a part in that, but that the next checkpoint is
// not recorded before whatever was sent outside of a batch has arrived or is lost. The same happens when a look at
// the stream, which it takes every second or so while it publishes and every five while it does not, shows that it is
// another, or shorter than it was, or has another message at the sequence acknowledged last.
//
// A relay whose [Publisher] is no [Reader] does none of that: then the stream's duplicate window is all there is.
//
// # States
//
//	stopped       before Run and after it
//	campaigning   not elected: another leads, or something that a leader needs cannot be reached
//	leading       fetches, publishes, settles; asleep while there is nothing to do
//	paused        leading, but the broker or the stream is not fit: see below
//
// [Relay.Status] tells which, and why the relay is not ready. A term of office ends when the lease does, when a round trip
// to the outbox fails, when the relay is to stop, or when another relay could publish and this one cannot. The next term
// begins with nothing in hand.
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
//   - The row's own (too large, a reserved header): it is tried again after Options.RetryBackoff, doubling, up to
//     Options.MaxAttempts times, then moved to the dead letters. Only its aggregate waits meanwhile. What follows a
//     dead letter is the store's to decide: by default the aggregate goes on.
//   - The stream's set-up, or the weather (an outage, a timeout, a full stream): nobody's attempts are spent. The relay
//     pauses as a whole, says why, and looks again after 50 ms, doubling to a second.
//   - A failed round trip to Postgres ends the term. What was published and not settled is found in the stream by the
//     next one.
//
// Run returns an error only for what waiting does not mend, such as a foreign table of the outbox's name.
//
// # Stopping
//
// When Run's context ends, a leader finishes what is in flight, settles it, gives the lock back and tells the
// standbys, within Options.ShutdownTimeout. A relay that is killed instead leaves the same state behind, minus the
// settling: its successor finds in the stream what was published.
package relay
