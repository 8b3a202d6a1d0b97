// Package publisher sends events to JetStream, and tells what became of each.
//
// # What it guarantees
//
//   - Every event that was taken has one outcome: stored, or a fault. Only a
//     well-formed answer of our own stream counts (package stream/answer); after any other, or none, the
//     event is in doubt.
//   - Nothing is repeated: a client that sends a message again by itself changes the
//     order.
//   - Of an ordered batch, the stream stores no event after one that failed, and
//     nothing at all if a later term has put up a fence.
//   - Nothing is sent after the lease has ended (Guard), or buffered for later while
//     there is no connection.
//
// # The order of calls
//
// Open, then Begin, which puts up the fence, then what the [Session] has. Nothing can be
// published before the fence: the methods are the session's. Begin and Close end the
// session before.
//
// # Two ways to send
//
//   - Each event by itself (Publish), without waiting for the answers. If one event
//     fails, the stream stores later ones all the same. So a caller that keeps an
//     order sends an event only when the outcome of its predecessor is known. This
//     works with every server that has JetStream.
//   - In an ordered batch (PublishOrdered), by the fast-ingest protocol of ADR-50. It
//     needs nats-server 2.14 and a stream with allow_batched, as stream.Setup creates it.
//     The stream stores all events before a failed one and none after it, so the
//     caller need not wait for outcomes. One acknowledgement covers hundreds of
//     events, which makes this way the faster one for a backlog. The messages are
//     written to the connection past nats.go (package stream/wire), at a third of the cost, with or
//     without TLS; over a WebSocket they go through nats.go. BatchWindow tells whether ordered
//     batches can be used now. They cannot for some seconds in a cluster after a batch
//     ended badly, nor for a minute after the server refused a batch as such.
//
// The first message of a batch carries the stream's name and the fence, so that another
// stream, or a stream that has seen a later term, refuses it, and with it the whole batch.
//
// # States
//
// A Publisher is closed, open, or must be opened again. Open connects and ensures the
// stream; after trouble, and after an outcome whose fault is not the row's, Open tells whether
// publishing can go on. From a [stream.LostError] on nothing is sent until the stream is
// opened, or another session begins. Close may come at any time, also to end a call that waits for the network.
//
// # Failures
//
//   - A fault of one event is that event's outcome. If it was part of an ordered
//     batch, the events after it are told as not sent (Outcome.Retry).
//   - Trouble, which Collect returns beside the outcomes, concerns no single event: a lost
//     connection, a denied subscription, a stream that is not the one that it was.
//   - If an ordered batch cannot have stored all of its events, it has skipped one
//     whose ID the stream had already: [SkippedError], since the stream does
//     not say which one. For some seconds, events then go by themselves, for which the
//     stream says it (Outcome.Duplicate).
//   - After idleness, one event finds out whether the stream still is the one that it was
//     (Alone), or the stream is verified first (VerifyFirst).
//   - A permission violation names a subject. If it is that of a pending event, the
//     violation is this event's fault; if it is that of a request, the request fails with a
//     [stream.PermissionError].
//
// # Locks
//
// Publisher.mu guards what is sent and unanswered, and what is known of the stream; requests.mu the
// requests to the server, which History asks over the same connection. Nothing calls nats.go
// under either, but to close a connection that nobody else knows.
package publisher
