// Package stream adapts NATS JetStream: the form of an event in the stream, the
// set-up of the stream, the connection to the servers, publishing and reading back,
// and whose fault it is if an event is not stored.
//
// # What it guarantees
//
//   - Two events have the same subject if, and only if, they agree in every
//     field that the template names, whatever text the fields hold; and a
//     consumer gets that text back, byte for byte ([Decode]).
//   - No row can command the server, break the protocol, or switch off the
//     recognition of duplicates, by its fields or by its headers.
//   - A fault of the stream, the server or the network is never taken for an
//     event's ([Classify]).
//   - An existing stream is never altered ([Setup.Ensure]).
//   - No error shows a payload, a header's value, a password or a token.
//
// # The wire format
//
// The subject comes from a [Template], by default
//
//	outbox.{topic}.{aggregate_type}.{aggregate_id}
//
// where each placeholder becomes one token: letters, digits and - _ ~ = : @ as
// they are, other bytes as %XX, the empty text as %-, and what would be longer
// than 112 bytes as %h and a hash ([EncodeToken]). A subject has at most 512
// bytes. The payload is the row's data, unchanged. The headers are:
//
//	Nats-Msg-Id            the event's ID, a UUID in canonical text
//	Outbox-Seq             its place in the outbox table, decimal
//	Outbox-Topic           the four fields, as text: what a header cannot
//	Outbox-Aggregate-Type    carry, and the percent sign, is %XX
//	Outbox-Aggregate-Id      (EncodeHeaderValue)
//	Outbox-Event-Type
//	Outbox-Created-At      RFC 3339 with up to nine decimals, UTC
//	…                      the row's own headers, as they are
//	ce-…                   those of a CloudEvent in binary mode, if wanted
//
// A message without Outbox-Seq is no event: Decode returns [ErrNoEvent].
//
// # Publishing
//
// A [Publisher] sends events in one of two ways, over a connection of its own:
//
//   - Each event by itself (Publish), without waiting for the answers. If one event
//     fails, the stream stores later ones all the same. So a caller that keeps an
//     order sends an event only when the outcome of its predecessor is known. This
//     works with every server that has JetStream.
//   - In an ordered batch (PublishInOrder), by the fast-ingest protocol of ADR-50. It
//     needs nats-server 2.14 and a stream with allow_batched, as Ensure creates it.
//     The stream stores all events before a failed one and none after it, so the
//     caller need not wait for outcomes. One acknowledgement covers hundreds of
//     events, which makes this way the faster one for a backlog. The messages are
//     written to the connection past nats.go, at a third of the cost, with or without
//     TLS; over a WebSocket they go through nats.go. Pipeline tells whether ordered
//     batches can be used now. They cannot for some seconds in a cluster after a batch
//     ended badly, nor for a minute after the server refused a batch as such.
//
// Neither way repeats anything by itself. Every event that was taken has one outcome,
// which Collect returns: stored, or a fault. Collect also returns trouble that
// concerns no single event, such as a lost connection.
//
// # Reading back
//
// What the stream holds decides what has been published:
//
//   - Fence stores a message on a control subject, one for each outbox, which says
//     that a term has begun. From then on the stream refuses ordered batches that a
//     former leader begins: the first message of each batch expects that the latest
//     fence is the one of its own term.
//   - Scan tells which events are stored before the fence.
//   - Find tells which event a single message carries.
//   - Verify tells whether the stream has lost data since its previous state.
//
// A message on the control subject that is not the relay's is skipped, and
// Fence.Warning names it.
//
// The control subject is _outbox.<stream>.<id>, apart from the events, if the stream
// listens there, as a stream that Ensure created does. In any other stream it is one
// of the template's subjects, with the token %fence, which no event has. Decode
// returns ErrNoEvent for its messages.
//
// # States
//
// [Connect] makes one attempt to connect, so that the caller decides about the next.
// From then on the connection reconnects by itself for ever, unless nats.go closes it:
// then Open makes another. While the connection is down, publishes fail at once;
// nothing is buffered to be sent later. Servers before 2.9 are refused ([CheckServer]).
// Every wait ends with its context.
//
// A stream is absent, unusable, usable with warnings, or usable. Ensure creates an
// absent stream, if it may. For an unusable stream it returns an error with all that
// is wrong and the commands that mend it. Each warning names a condition of "exactly
// once" that does not hold.
//
// # Failures
//
// Every failure has one of three faults:
//
//	row       too large, with headers that cannot be sent, or on a subject
//	          that is denied or full: only this event and its aggregate are
//	          concerned
//	setup     no stream, sealed, other subjects, refused credentials, a denied
//	          request, full with nothing that makes room: all wait until a
//	          person changes something
//	weather   no server, no leader, full until consumers or age make room, too
//	          slow, fenced off, anything unknown: all wait until it passes
//
// A failure is ambiguous if the message may have been stored although no
// acknowledgement came: the event is in doubt ([Error.Ambiguous]). A row's fault is
// permanent if trying again within seconds is of no use ([Error.Permanent]).
//
// A permission violation names a subject. If it is the subject of a pending event,
// the violation is this event's fault; if it is that of a request, the request fails
// with a [PermissionError], which names the permission to give. A refusal at a limit
// tells the figures, and what to do.
//
// # What counts as an answer
//
// Anybody who knows a reply subject can answer, and another stream may listen on our
// subjects. An answer counts if it is well formed, fits what was sent, names our
// stream, and has a sequence above all that the stream had given before the message
// was sent. After any other answer the event is in doubt: it is never reported as
// stored.
//
//   - An answer with another stream's name is the set-up's fault. The first message
//     of an ordered batch names our stream, and another stream refuses it.
//   - An answer with a sequence that the stream had given before is a [LostError]: the
//     stream was created anew, or put back from a copy. Nothing else is sent until
//     the stream is opened or fenced again. After idleness this is found out with one
//     event (Alone) or by Verify (VerifyFirst).
//   - If an ordered batch cannot have stored all of its events, it has skipped one
//     whose ID the stream had already. That is a [SkippedError], since the stream does
//     not say which one. For some seconds, events then go by themselves, for which the
//     stream says it (Outcome.Duplicate).
//
// # Sources
//
// NATS ADR-4 (headers), ADR-6 (names and subjects), ADR-7 (error codes), ADR-22
// (no responders), ADR-50 (batches); docs.nats.io on the client protocol and on
// JetStream's headers; CloudEvents' NATS protocol binding 1.0.3-wip, the first with a
// binary mode;
// errors.json, stream.go, client.go and sublist.go of nats-server 2.15.2.
package stream
