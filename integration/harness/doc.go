// Package harness is what the tests from outside stand on: the outbox-relay binary, a Postgres and a nats-server, each
// in a process of its own that can be killed.
//
//   - [World] starts them and speaks SQL and NATS to them
//   - [Producers] write to the outbox and keep their own account of what they committed; [Producers.Audit] compares
//     it with what the stream holds
//   - [Backlog] inserts a great many rows at once, and audits likewise
//   - [NATS], [Cluster] and [Process] can be killed, frozen and started again; [SlowLine] and
//     [Proxy] stand between them
package harness
