// Package postgres launches throw-away PostgreSQL servers from the binaries of the machine it runs on.
//
// It is the half of the test kit that does not know of tests: a demo or a benchmark program uses it as it is, and
// package storetest wraps it for the functions of a test. What [Launch] guarantees:
//
//   - The server is a fresh cluster in a directory of its own, on a port of 127.0.0.1 of its own, with trust
//     authentication for the superuser "postgres". Nothing else on the machine is touched.
//   - It is as durable as a server in production: fsync, synchronous_commit and full_page_writes keep their defaults.
//     [Options].Settings turns off what a test does not need.
//   - [Server.Stop] and [Server.Start] keep the data directory and the port, so that clients find the same server
//     again after a crash.
//   - Neither process nor directory outlives the program, whichever way the program ends: [Server.Close] was called,
//     it returned from main without it, it panicked, or it was killed with SIGKILL.
//   - It works as root, although PostgreSQL refuses to: the server then runs as user postgres, or nobody.
//
// The last but one is the work of a guard, a shell that reads from a pipe which the program holds open. The kernel
// closes that pipe when the program ends; the guard wakes up, ends the server, and removes its directory. Server and
// guard are one process group apart from the program's, so that Ctrl-C in a terminal reaches the program alone.
//
// Only Unix systems are supported. Elsewhere [Launch] returns [ErrNotFound].
//
// Who needs no more than databases, and will make do with a server of the user's choice, has a [Host] instead: it makes
// them on the server that OUTBOX_TEST_DSN in the environment leads to and, without it, launches one.
package postgres
