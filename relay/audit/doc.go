// Package audit compares the archive with the stream: it proves the relay's claim in production, and names what breaks it.
//
// # What it finds
//
// The archive has the events that were published within the relay's retain. For each of them an audit asks of the stream:
//
//	missing    the stream does not have it
//	twice      the stream has it more than once
//	order      it is stored after an event of its aggregate that has a higher seq, and was settled no earlier
//
// An event is known by its id and its seq, which the message has as Nats-Msg-Id and Outbox-Seq. What is not in the archive is
// not judged: other outboxes' events, events in flight, and what was published before.
//
// # Beside live traffic
//
// An audit may run at any time, beside any number of relays, and needs no rights but theirs. What the archive has was stored
// before, so the stream is read after the archive, up to its end at that time. An event is not named
//
//   - if the stream's limits, or a purge of the whole stream, may have removed it: that is counted as unchecked. So is every
//     event that is not there, if the stream keeps a number of messages of each subject;
//   - if the broker lost it and the relay puts it back: what is missing is looked for again for Options.Patience, and is not
//     named if it is in the outbox again, a dead letter, or published anew;
//   - if it was replayed: with new ids it is another event, and without it leaves the archive until it is published again;
//   - as out of order if it was settled after the events that it follows in the stream. A dead letter that was requeued and
//     an event that was replayed come late, and nothing in the tables tells them from others. So they are counted, as late.
//     So is an event that was settled in the same transaction as those, if it has the created_at of an earlier event: it was
//     replayed with a new id.
//
// So what the relay stored out of order in one round trip is named, and what somebody stored later is, too; an event that was
// both stored and settled later is only counted.
//
// If the stream is replaced, or loses messages that were read, the audit ends with ErrReplaced: run it again.
//
// # Again and again
//
// Watch audits all of the archive at intervals, and tells of each violation once. The outbox-relay command does so with
// relay.audit_interval, while it leads.
//
// # Memory
//
// An event takes 56 bytes. If the archive has more than two million events, they are compared in shares of that size, each
// with all events of some aggregates, and the stream is read once for each share.
package audit
