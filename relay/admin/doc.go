// Package admin serves a relay's health and metrics over HTTP.
//
//	GET /         an index in plain text
//	GET /healthz  200 unless the relay has stopped or hangs: does the process have to be restarted?
//	GET /readyz   200 if it publishes, or if another leads and it could; otherwise 503: is it of any use just now?
//	GET /metrics  what Prometheus scrapes
//
// An outage of Postgres or NATS makes a relay unready, but not unhealthy: a restart would not mend it. So restart a relay by
// /healthz, and watch it by /readyz.
//
// Both answer with the relay's state as JSON, [Report]. The report includes the relay's [Identity]: where containers share
// their ports, a client can tell the relay that it meant from another one. Methods other than GET and HEAD are refused. No
// answer has a secret or a payload in it, but a description of trouble has the names of hosts and streams: listen on
// loopback, or where only people connect who may know these.
//
// [NewHandler] makes the handler, to be mounted anywhere; [Listen] returns a [Server] for it. A Server has a limit on open
// connections, and closes silent ones to stay below it: a crowd of clients takes neither the relay's memory nor its
// descriptors.
package admin
