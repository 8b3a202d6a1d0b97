// Package admin serves a relay's health and metrics over HTTP.
//
//	GET /         an index in plain text
//	GET /healthz  200 unless the relay has stopped or hangs: does the process have to be restarted?
//	GET /readyz   200 if it publishes, or could and another leads, otherwise 503: is it of any use just now?
//	GET /metrics  what Prometheus scrapes
//
// An outage of Postgres or NATS makes a relay unready and not unhealthy, since a restart would not mend it. So
// whatever restarts relays is to ask /healthz, and whatever watches them /readyz.
//
// Both answer with the relay's state as JSON, [Report], and with its [Identity]: where containers share their ports, whoever
// asks can tell the relay that was meant from its neighbour. Other methods than GET and HEAD are refused. Nothing that
// is served holds a secret or a payload, but trouble is described with the names of hosts and streams: listen on
// loopback, or where only those connect who may know.
//
// [NewHandler] makes the handler, to be mounted anywhere; [Listen] returns a [Server] for it. A Server keeps few
// connections open, and closes those that are silent where there would be too many: a crowd of clients takes neither the
// relay's memory nor its descriptors.
package admin
