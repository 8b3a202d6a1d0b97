// Package history asks what the stream holds: what it holds decides what has been published.
//
//   - Fence stores a message on a control subject, one for each outbox, which says
//     that a term has begun. From then on the stream refuses ordered batches that a
//     former leader begins: the first message of each batch expects that the latest
//     fence is the one of its own term.
//   - Scan tells which events are stored before the fence.
//   - Find tells which event a single message carries.
//   - Verify tells whether the stream has lost data since its previous state.
//   - TryReading tells what would keep Scan and Find from working, for those who
//     set the stream up.
//
// # What it guarantees
//
//   - Scan leaves out no message between where it begins and the fence: the consumer's own
//     numbers have no gap, or reading is begun again from there. It does not end before the
//     fence, or a message after it, has come.
//   - After Fence has returned, no ordered batch of an earlier term can begin.
//   - Nothing that the stream's leader does not say is believed where a lagging server
//     could answer: fences, single messages and states are asked of the leader.
//   - Every call ends with its context.
//
// # The control subject
//
// It is _outbox.<stream>.<outbox>, apart from the events, if the stream listens there, as
// a stream that stream.Setup created does. In any other stream it is one of the template's
// subjects, with the token %fence, which no event has. A message there that is not
// the relay's is skipped, and Fence.Warning names it.
//
// # How the stream is read
//
// Through a consumer of its own, in the server's memory, headers only: about a quarter of a
// million messages a second. If the stream takes no further consumer, by direct gets, which
// bring the payloads, too, and take four times as long.
//
// # Failures
//
//   - [DeposedError]: the stream has seen a later term, and another relay leads.
//   - [stream.LostError]: the stream is not what it was, and must be read back.
//   - Any other error is a [stream.Error]. A request that was denied names the permission to
//     give, a consumer that was refused the limit.
//
// A stream that removes what was consumed (Fence.Consumed) has no history: there is no
// fence, and nothing to read back.
//
// A History has no connection of its own: it asks over a [Connection], which may be made anew beneath it.
// Its mutex guards what it knows of the stream; nothing else is locked under it.
package history
