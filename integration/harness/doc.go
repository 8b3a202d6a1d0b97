// Package harness runs what the tests from outside test: the outbox-relay binary, a Postgres and a nats-server, each in a
// process of its own that can be killed.
//
//   - [World] starts them and speaks SQL and NATS to them
//   - [Producers] write to the outbox and record what they committed; [Producers.Audit] compares that with what the stream
//     holds
//   - [Backlog] inserts a great many rows at once, and compares in the same way
//   - [NATS], [Cluster] and [Process] can be killed, frozen and started again; [SlowLine] and
//     [Proxy] stand between them
package harness
