// Package election decides which of several relays may publish.
//
// An elector's Run campaigns, calls a function for each term of office, and campaigns again when it returned. The
// function's context ends with the lease, and the [Lease] itself tells, before each act, whether it is still held.
//
// # Electors
//
//   - [AdvisoryLock]: whoever holds a session-level advisory lock in Postgres.
//   - [KeyValue]: whoever holds an entry of a JetStream key-value bucket.
//   - [Always]: elected at once and for ever, for a relay that is known to be alone.
//
// # States of an AdvisoryLock
//
//	campaigning   no connection, or the lock is somebody else's; tries again every Retry, at once on a resignation
//	leading       holds the lock; round trips on its session, at least every second or so, renew the lease
//	resigning     ctx ended or the leader returned: unlocks, tells the standbys, and campaigns again or returns
//	lost          the session broke or went unanswered for LeaseDuration: ends the term, closes the session
//
// # Failures with an AdvisoryLock
//
//   - The leader is killed: the server sees the closed socket and frees the lock in milliseconds; a standby has it
//     within Retry.
//   - The leader's network vanishes: keepalives end the session within about 11 s; the leader stops by itself
//     LeaseDuration after its last good round trip.
//   - The leader is frozen (SIGSTOP, a paused VM): Postgres ends the silent session a second after LeaseDuration.
//     When the process wakes, its lease has run out by its own monotonic clock, which it reads before it writes.
//     That clock stands still while a whole machine is suspended: what it then publishes on waking, before its first
//     failed round trip, is left to the duplicate window.
//   - Postgres stops: everybody campaigns until it is back.
//
// A leader whose own process did not run finds that out by a [Pulse], and says so, rather than that Postgres did not
// answer.
//
// # States of a KeyValue
//
//	campaigning   no connection, or the entry is somebody else's; watches it, and looks at it every Retry
//	leading       wrote the entry last; writes it again, every 1.1 s of a lease of 5 s, to renew the lease
//	resigning     ctx ended or the leader returned: deletes the entry, which tells the standbys, and campaigns again or
//	              returns
//	lost          an update was refused, since the entry is not as it left it, or none was answered for Lease: ends the
//	              term
//
// Every write names the revision that it replaces, and the server refuses it if that is not the newest. A standby takes
// the entry at once if its leader has deleted it. Otherwise it takes it once it has seen it unchanged for 1.2 times the
// lease, by its own monotonic clock, and the leader's lease, which began before that was written, has ended by then.
// Entries do not expire: the servers would do it by their wall clocks, and one that is set forward would end an entry
// whose leader still leads. It needs nothing that nats-server 2.10 does not have.
//
// # Failures with a KeyValue
//
//   - The leader is killed: a standby takes over about 6 s later, 1.2 times the lease. An AdvisoryLock is quicker: nobody
//     tells JetStream that a client is gone. A relay that is alone waits as long for its former self.
//   - The leader's network vanishes, or it is frozen: the same, and what was said above of a suspended machine holds.
//     The leader stops by itself a lease after the start of its last good update.
//   - The answer to an update is lost: the leader asks what the entry is now and goes on from there, if it is its own.
//     That it is asked in vain, or of a replica that lags, does no harm: it costs an update that is refused.
//   - A standby reads what is out of date: likewise.
//   - NATS stops: a restart within the lease deposes nobody. After a longer outage one is elected as soon as NATS is back:
//     the time that standbys wait goes on meanwhile, and the leader that there was needs not wait for itself.
//   - A server of a NATS cluster fails: the election goes on if most of the bucket's replicas are left; if it had the only
//     one, nobody leads until it is back. The bucket is created with KeyValueOptions.Replicas, for which outbox-relay takes
//     stream_replicas: the election outlasts what the stream does. One that exists is never altered, which
//     `nats stream edit KV_OUTBOX_election --replicas=3` does.
//   - NATS forgets the entry (a bucket in memory, one that was deleted, a backup): whoever saw it waits for the lease to
//     end. A relay that starts just then did not, and may be elected while the old leader still believes in its lease:
//     until its next update is refused, after 1.1 s.
//   - Somebody deletes the entry by hand: so it goes then, too. Somebody writes another value: that is unfit, Run ends.
//
// Unlike an AdvisoryLock, a KeyValue does not need Postgres, and does not tell whether it is there. The session on which
// the leader works is then no longer tied to its leadership: it may break in mid-term, and outlast it. Whatever rests on
// the session, such as the sleep lock of package store, a leader that goes has to give back itself.
//
// What remains, with either, is a message that was on its way when the lease ran out. The broker's duplicate window
// covers it.
package election
