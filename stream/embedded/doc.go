// Package embedded runs a nats-server with JetStream inside the process: for
// the relay's demo and for programs that would rather not run a second one.
//
// Start returns once the server takes connections and its streams are
// recovered, or with the server's own reason why not. Close returns once
// everything is written and stopped. Between the two the server behaves like
// any other: it may be reached from outside, under the address that it was
// given. It catches no signals, prints nothing and never ends the process.
//
// It asks for no credentials: on another address than loopback's, whoever reaches it may read, publish and delete. And
// it is for one relay. A second relay with a server of its own would, once it leads, publish to another stream than the
// first one did.
//
// After a write that failed, as on a full disk, a nats-server does not write again
// before a restart. This one restarts itself, on the same port, once there is room:
// clients see an outage of a moment.
//
// It is a single server. What it acknowledges survives the process, but not
// the machine: it asks for fsync every two minutes, the server's default.
package embedded
