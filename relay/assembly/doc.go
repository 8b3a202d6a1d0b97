// Package assembly puts a relay together from a configuration, as the command outbox-relay does: outbox, publisher,
// elector and relay in one call, for programs that have the relay built in and take its settings from a file and the
// environment.
//
//	c, err := config.Load(config.Sources{})
//	…
//	a, err := assembly.New(c, assembly.Options{Logger: log})
//	…
//	err = a.Prepare(ctx) // Then the program may insert events.
//	…
//	err = a.Run(ctx)
//
// [New] connects to nothing. [Assembly.Run] waits until the outbox's tables are ready, relays until its context ends, and
// closes the session on which it led.
//
// # States
//
// [Assembly.Status] is the relay's, and that of one that campaigns until the relay runs:
//
//	campaigning   made, or waiting for the tables; then Trouble says why
//	…             what package relay says, while it runs
//	stopped       Run has returned, or is about to
//
// # Failures
//
// What is wrong with the configuration itself, New tells as a [ConfigError], all of it at once. Outages are no failures:
// Run waits for Postgres and NATS, and says so. It returns an error for what waiting does not mend only: one that
// store.Fatal knows, such as a foreign table of the outbox's name, or another stream than the outbox goes to; or stream.ErrRefused, when the configuration is strict
// and the stream does not meet a condition of exactly-once delivery.
//
// # What is left to the program
//
// Signals, HTTP, and metrics, which package metrics takes from Options.Hooks. And the nats-server that nats_url =
// "embedded" asks for: package embedded runs one, but few programs want to have it linked in. One that does starts it
// before New, and tells its URL as Options.NATSURL.
package assembly
