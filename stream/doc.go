// Package stream adapts NATS JetStream: what an event looks like there, the
// stream that holds it, the connection to it, and whose fault it is when an
// event does not get there.
//
// # What it guarantees
//
//   - Two events have the same subject if, and only if, they agree in every
//     field that the template names, whatever text the fields hold; and a
//     consumer gets that text back, byte for byte (Decode).
//   - No row can command the server, break the protocol, or switch off the
//     recognition of duplicates, by its fields or by its headers.
//   - No event is blamed for what it is not to blame for (Classify).
//   - An existing stream is never altered (Setup.Ensure).
//   - No error shows a payload, a header's value, a password or a token.
//
// # The wire format
//
// The subject comes from a Template, by default
//
//	outbox.{topic}.{aggregate_type}.{aggregate_id}
//
// where each placeholder becomes one token: letters, digits and - _ ~ = : @ as
// they are, other bytes as %XX, the empty text as %-, and what would be longer
// than 112 bytes as %h and a hash (EncodeToken). A subject has at most 512
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
// A message without Outbox-Seq is no event, and Decode answers ErrNoEvent.
//
// # Publishing
//
// A Publisher sends in one of two ways, over a connection of its own:
//
//   - Each event by itself (Publish), without waiting for the answers: the
//     asynchronous window. If one fails, later ones are stored all the same, so
//     whoever keeps an order sends an event when its predecessor's outcome is
//     known. It works with every server that has JetStream.
//   - In an ordered batch (PublishInOrder): the fast-ingest protocol of ADR-50,
//     nats-server 2.14 and later, on a stream with allow_batched, as Ensure
//     creates it. All before a failed event is stored and nothing after it, so
//     nobody has to wait; and acknowledgements come for hundreds at once, which
//     makes it the faster one for a backlog. Its messages are written to the
//     connection past nats.go, at a third of the cost, over TCP and TLS alike;
//     over a WebSocket they go through nats.go. Pipeline tells whether it can be
//     used now: not in a cluster for some seconds after a batch ended badly, nor
//     for a minute after the server would not take one.
//
// Neither repeats anything by itself. Every event that was taken has one outcome,
// which Collect returns: stored, or a fault. Collect also returns trouble that is
// no one event's, such as a lost connection.
//
// # Reading back
//
// What the stream holds decides what has been published. Fence stores a message
// on a control subject, one for each outbox, which says that a term has begun:
// ordered batches that a former leader has yet to begin are refused from then on
// (the first message of each expects the latest fence to be its own). Scan tells
// which events are stored up to there, Find which one a single message is, and
// Verify whether the stream has lost something since it was last looked at.
//
// Somebody else's message on the control subject is skipped, and Fence.Warning
// names it.
//
// In a stream that listens there, as one that Ensure created does, the control
// subject is _outbox.<stream>.<id>, apart from the events; in any other stream it is one of the template's, with
// the token %fence, which no event has. Decode answers ErrNoEvent to its messages.
//
// # States
//
// A connection is made once (Connect; one attempt, so that the caller decides
// about the next) and from then on reconnects for ever, unless nats.go closes it:
// then Open makes another. While it is down, publishes fail at once; nothing is
// kept to be sent later, out of its time. Servers before 2.9 are refused by name
// (CheckServer). Every wait ends with its context.
//
// A stream is absent, unusable, usable with warnings, or usable. Ensure
// creates an absent one, if it may; refuses an unusable one with all that is
// wrong and the commands that mend it; and returns the warnings, each a
// condition of "exactly once" that is given up.
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
// and is ambiguous or not: whether the message may have been stored although
// no acknowledgement came. A row's fault is permanent if trying again within
// seconds is of no use (Error.Permanent).
//
// A violation of a permission names a subject: that of a pending event is this
// event's fault, that of a request its error, with the permission to give
// (PermissionError). A refusal at a limit tells the figures, and what to do.
//
// # What counts as an answer
//
// Whoever knows a reply subject can answer, and another stream may listen on our
// subjects. An answer counts if it is well formed, fits what was sent, names our
// stream, and has a sequence above all that the stream had given before the
// message was sent. Anything else leaves the event in doubt: it is never reported
// as stored.
//
//   - Another stream's name is the set-up's fault. The first message of an ordered
//     batch names our stream, and another one refuses it.
//   - A sequence that was given before is a LostError: the stream was created anew,
//     or put back from a copy. Nothing else is sent before it is opened or fenced
//     again. After idleness this is found out with one event (Alone) or by a look
//     (VerifyFirst).
//   - An ordered batch that cannot have stored all of its events has skipped one
//     whose ID the stream had already: a SkippedError, since the stream does not
//     say which. Plain publishes, which tell it (Outcome.Duplicate), follow for
//     some seconds.
//
// # Sources
//
// NATS ADR-4 (headers), ADR-6 (names and subjects), ADR-7 (error codes), ADR-22
// (no responders), ADR-50 (batches); docs.nats.io on the client protocol and on
// JetStream's headers;
// CloudEvents' NATS protocol binding 1.0.3-wip, the first with a binary mode;
// errors.json, stream.go, client.go and sublist.go of nats-server 2.15.2.
package stream
