// Package stream is the contract with NATS JetStream, for the relay, consumers and operators:
// the form of an event in the stream, the set-up of the stream, the connection to the
// servers, and whose fault it is if an event is not stored.
//
// A consumer needs [Connect], [Decode] and [ErrNoEvent]. What the relay does with the stream is in
// two packages below this one: stream/publisher sends events, and stream/history
// fences off earlier terms and reads back what the stream holds. Below both are the leaves
// stream/answer (which answers count), stream/wire (the network connection), stream/await and
// stream/excerpt.
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
// A message without Outbox-Seq is no event: Decode returns [ErrNoEvent]. So it does for the
// relay's own messages: package history says where they are.
//
// # States
//
// [Connect] makes one attempt to connect, so that the caller decides about the next.
// From then on the connection reconnects by itself for ever, unless nats.go closes it:
// then its owner makes another. While the connection is down, publishes fail at once;
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
// # Sources
//
// NATS ADR-4 (headers), ADR-6 (names and subjects), ADR-7 (error codes), ADR-22
// (no responders), ADR-50 (batches); docs.nats.io on the client protocol and on
// JetStream's headers; CloudEvents' NATS protocol binding 1.0.3-wip, the first with a
// binary mode;
// errors.json, stream.go, client.go and sublist.go of nats-server 2.15.2.
package stream
