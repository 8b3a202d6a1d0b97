// Package versions tests the relay with each minor version of nats-server that it supports: the newest release of each,
// as published, and the version that this module requires. With all of them a backlog is in the stream once and in order,
// also if the relay or the server crashes meanwhile.
//
// The programs are built from the module proxy once, and kept: see [harness.NATSServer].
package versions
