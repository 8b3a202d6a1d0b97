// Package examples shows how the library is used: its examples are run by go test, against a real PostgreSQL and a real
// nats-server.
//
// The directories below it hold whole programs: producer, an HTTP service with the relay built in; consumer, which
// handles each event once; and demo, which puts them together and kills relays.
//
// Their tests, and tests of your own, get real servers from the library's kits: store/storetest a fresh Postgres database,
// stream/streamtest a nats-server in the test's process.
package examples
