// Package doctor looks at all that a relay's exactly-once delivery depends on: the configuration, Postgres and the tables,
// NATS, the stream, and the limits and permissions there. [Run] says of each whether it is well and, if not, what is wrong,
// with figures, and what to do. The command outbox-relay doctor prints its findings.
//
//	for _, f := range doctor.Run(ctx, config, doctor.Options{}).Findings {
//		if f.Severity != doctor.OK {
//			log.Warn(f.Detail, "check", f.Check, "place", f.Place, "remedy", f.Remedy)
//		}
//	}
//
// It changes nothing, works whether or not a relay runs, and shows no secrets. To try whether the relay may read back the
// stream it has the broker make a consumer for a moment; to try whether it may publish, it sends messages that the stream
// refuses; and to try whether the stream could be created, it sends a request that no server grants. Each question is
// bounded by some seconds, and so is the whole by less than a minute. What cannot be looked at, since something before it
// failed, has no finding.
package doctor
