// Package wire is what lies below nats.go: the network connection to a NATS server, and writing to it past nats.go.
//
// # What it guarantees
//
//   - Nothing is written to a connection once the question that its [Dialer] was made with is
//     answered with false: the lease has ended. It is asked before each write, so that
//     what nats.go had in a buffer when the process was stopped is not sent when the process
//     goes on.
//   - After [Dialer.Close] nothing more is written, and no connection is made. nats.go, when it
//     is closed, sends what is left in its buffer.
//   - A [Writer] writes whole messages, with nothing of nats.go in between, with or without
//     TLS: the Dialer does TLS itself, below the connection that nats.go sees.
//
// # Failures
//
// After a write that failed, half a message may be on the connection. So the Writer closes the
// connection, and nats.go makes another. A WebSocket is nats.go's own, above the
// connection: for it, [Dialer.Raw] returns nil.
package wire
