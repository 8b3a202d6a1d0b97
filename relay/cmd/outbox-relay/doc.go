// Command outbox-relay moves events from a transactional outbox in Postgres to a NATS JetStream stream. It is what
// the container runs.
//
//	outbox-relay                                   relay events until SIGTERM or SIGINT; so does outbox-relay run
//	outbox-relay migrate                           create or upgrade the tables; --print prints the SQL that would, and
//	                                               --print-grants what each role needs
//	outbox-relay dead list|show|requeue|discard    list, show, requeue or remove the events that were given up
//	outbox-relay replay ID... | --all | FLAGS      publish again what was published, from the archive
//	outbox-relay pause --reason TEXT               have all relays publish nothing, until resume
//	outbox-relay resume                            end a pause
//	outbox-relay status                            show who leads, what is pending and what was given up
//	outbox-relay find ID | SEQ | TYPE/ID           tell where an event is
//	outbox-relay audit                             compare the archive with the stream
//	outbox-relay tail                              follow what is stored in the stream
//	outbox-relay doctor                            check all that exactly-once delivery depends on
//	outbox-relay healthcheck [--ready]             ask the relay of this configuration how it is
//	outbox-relay version
//
// It is configured by a file and the environment, see package config; outbox-relay help config lists every setting.
//
// # Starting
//
// All faults of the configuration are reported at once, before anything is connected to. After that the relay starts
// whether or not Postgres and NATS are there, says what it waits for, and goes on when they are. Only what waiting
// cannot mend ends it, such as a foreign table of the outbox's name or, with strict = true, a stream that is not fit for
// exactly-once delivery: see package relay.
//
// # Stopping
//
// On the first SIGTERM or SIGINT the relay finishes what is in flight, records it, hands over the leadership and exits with
// 0, within relay.shutdown_timeout. A second signal, a second or more later, ends it at once, with 1. Nothing is lost by
// that: the next leader finds in the stream what was not recorded.
//
// # Replaying
//
// With --new-ids, replay makes new events of archived ones. Without it they keep their ids, and the relay publishes only those
// that the stream no longer has, whatever its duplicate window: the relay begins another term, in which it
// reads the stream back from before the oldest of them on. So the leader is interrupted for a moment.
//
// # Tracing
//
// If OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, a running relay sends spans of the events that
// carry a trace context there, over OTLP/HTTP: see package relay/tracing.
//
// # Exit codes
//
//	0  stopped as asked, or done
//	1  failed: the message on standard error says at what
//	2  the configuration or the command line is wrong: the message lists everything that is
//
// Healthcheck exits with 0 or 1 only, as Docker wants it. So does doctor, which reports a wrong configuration like anything
// else: 0 if nothing failed and, with strict = true, there is no warning either.
//
// Results go to standard output; logs, and errors as "outbox-relay: …", to standard error. Payloads are shown by
// outbox-relay dead show and outbox-relay tail --data, and nowhere else.
package main
