// Package examples shows how the library is used: its examples are run by go test, against a real PostgreSQL and a real
// nats-server.
//
// The directories below it hold whole programs: producer, an HTTP service with the relay built in; consumer, which
// handles each event once; demo, which puts them together and kills relays; and transfer, which moves money from one database to
// another while all in between is killed.
//
// Their tests, and tests of your own, get real servers from the library's kits: store/storetest a fresh Postgres database,
// stream/streamtest a nats-server in the test's process.
package examples
