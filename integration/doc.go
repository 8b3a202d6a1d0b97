// Package integration tests the relay from outside: the outbox-relay binary, a Postgres and a nats-server. The tests
// use only SQL and NATS. They break something, and then run the audit of package harness or look at what a user would see.
package integration
