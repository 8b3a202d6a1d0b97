// Package election decides which of several relays may publish.
//
// An elector's Run campaigns, calls a function for each term, and campaigns again after the function has returned. The
// function's context ends with the lease. Before each act the [Lease] itself tells whether it is still valid.
//
// # Electors
//
//   - [AdvisoryLock]: whoever holds a session-level advisory lock in Postgres.
//   - [KeyValue]: whoever holds an entry of a JetStream key-value bucket.
//   - [Always]: a relay that is known to be alone. It is elected at once and for ever.
//
// # States of an AdvisoryLock
//
//	campaigning   no connection, or another holds the lock; tries again every Retry, and at once when the leader resigns
//	leading       holds the lock; round trips on its session, at least every second or so, renew the lease
//	resigning     ctx ended or the leader returned: unlocks, tells the standbys, and campaigns again or returns
//	lost          the session broke or went unanswered for LeaseDuration: ends the term, closes the session
//
// # Failures with an AdvisoryLock
//
//   - The leader is killed: the server sees the closed socket and frees the lock in milliseconds. A standby gets the lock
//     within Retry.
//   - The leader's network fails: keepalives end the session within about 11 s. The leader stops by itself LeaseDuration
//     after the start of its last good round trip.
//   - The leader is frozen (SIGSTOP, a paused VM): Postgres ends the silent session a second after LeaseDuration.
//     When the process wakes, its lease has run out by its own monotonic clock, which it reads before it writes.
//     That clock stands still while a whole machine is suspended. After that the leader may publish until its first round
//     trip fails: the broker's duplicate window covers these messages.
//   - Postgres stops: all relays campaign until it is back.
//
// A [Pulse] tells a leader that its own process did not run. The leader then reports that, and not that Postgres did not
// answer.
//
// # States of a KeyValue
//
//	campaigning   no connection, or another holds the entry; watches it, and reads it every Retry
//	leading       wrote the entry last; writes it again, every 1.1 s of a lease of 5 s, to renew the lease
//	resigning     ctx ended or the leader returned: deletes the entry, which tells the standbys, and campaigns again or
//	              returns
//	lost          an update was refused, since the entry was changed or deleted, or none succeeded for Lease: ends the term
//
// Every write names the revision that it replaces, and the server refuses the write if that is not the newest revision.
//
// Invariant. No two relays hold a valid lease at the same time, but for the failures below that say so.
//
// Why.
//
//  1. A leader's lease begins before it sends the update that renews the lease, and lasts for Lease.
//  2. A standby takes the entry over once the leader has deleted it, which the leader does after its term, or once the
//     standby has seen it unchanged for 1.2 times the lease, by its own monotonic clock. The leader's lease began before the
//     entry was written, and so before the standby saw it. So it has ended by then.
//  3. A leader that renews meanwhile has changed the revision, so the server refuses the standby's write.
//
// Test. TestOneLeadsAtATimeOnAnUnreliableNetwork, TestVacancy, TestSilentHolderIsReplacedAfterItsLease.
//
// Entries do not expire. The servers would decide that by their wall clocks, and a clock that is set forward would remove
// the entry of a leader that still leads. A KeyValue needs nothing that nats-server 2.10 does not have.
//
// # Failures with a KeyValue
//
//   - The leader is killed: a standby takes over about 6 s later, after 1.2 times the lease. An AdvisoryLock is quicker:
//     nobody tells JetStream that a client is gone. A relay that is alone and restarts waits as long, too.
//   - The leader's network fails, or the leader is frozen: the same. The leader stops by itself a lease after the start of
//     its last good update. After its machine was suspended, it may publish as with an AdvisoryLock.
//   - The answer to an update is lost: the leader reads the entry and, if the entry is still its own, goes on from the
//     revision that it read. If the read fails or comes from a replica that lags, that costs an update that is refused.
//   - A standby reads an old state: that, too, costs an update that is refused.
//   - NATS stops: a restart within the lease deposes nobody. After a longer outage a relay is elected as soon as NATS is
//     back: the standbys' waiting time goes on meanwhile, and the previous leader does not wait for itself.
//   - A server of a NATS cluster fails: the election goes on if most of the bucket's replicas are left. If the server had the
//     only replica, nobody leads until it is back. The bucket is created with KeyValueOptions.Replicas, for which outbox-relay
//     takes stream_replicas: so the election survives whatever the stream survives. An existing bucket is never altered; to
//     do so run `nats stream edit KV_OUTBOX_election --replicas=3`.
//   - NATS forgets the entry (a bucket in memory, a deleted bucket, a restored backup): each relay that saw the entry waits
//     for the lease to end. A relay that starts just then did not see it, and may be elected while the old leader still has
//     a valid lease: until the old leader's next update is refused, after 1.1 s. This is the exception to the invariant.
//   - Somebody deletes the entry by hand: the same exception. Somebody writes another value: the bucket is unfit, and Run
//     ends.
//
// Unlike an AdvisoryLock, a KeyValue does not need Postgres, and does not tell whether Postgres can be reached. The leader's
// session is then not tied to its leadership: the session may break during a term, and may last longer than the term. So a
// leader that resigns must itself give back whatever it holds on the session, such as the sleep lock of package store.
//
// With either elector, a message may still be on its way when the lease ends. The broker's duplicate window covers it.
package election
