// Package integration tests the relay from outside: the outbox-relay binary, a Postgres and a nats-server, spoken to by
// SQL and NATS only. The tests break something and then ask the audit of package harness, or look at what a user
// would see.
package integration
