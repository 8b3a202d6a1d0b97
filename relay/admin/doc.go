// Package admin serves a relay's health and metrics over HTTP.
//
//	GET /         an index in plain text
//	GET /healthz  200 unless the relay has stopped: does the process have to be restarted?
//	GET /readyz   200 if the relay publishes or knows another to lead, otherwise 503: is it of any use just now?
//	GET /metrics  what Prometheus scrapes
//
// An outage of Postgres or NATS makes a relay unready and not unhealthy, since a restart would not mend it. So
// whatever restarts relays is to ask /healthz, and whatever watches them /readyz.
//
// Both answer with the relay's state as JSON, [Report]. Other methods than GET and HEAD are refused. Nothing that
// is served holds a secret or a payload, but trouble is described with the names of hosts and streams: listen on
// loopback, or where only those connect who may know.
//
// [NewHandler] makes the handler, to be mounted anywhere; [Listen] returns a [Server] for it.
package admin
