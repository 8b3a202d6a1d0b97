package main

import (
	"runtime/debug"

	"github.com/go-outbox/go-outbox/config"
)

// relaxedGC is a value of GOGC: how much the heap may grow between two collections, in per cent of what is in use.
const relaxedGC = 400

// relaxCollector lets garbage lie for longer, unless the environment says how long. A relay's heap is a few MB, so with the
// default of 100 the collector would run every few pages; this costs some ten MB, and saves about a sixth of the relay's
// processor time. An embedded server's heap is another matter: it holds every message id of the duplicate window.
func relaxCollector(c config.Config, p *process) {
	if value, _ := p.lookupEnv("GOGC"); value == "" && !c.NATS.Embedded() {
		debug.SetGCPercent(relaxedGC)
	}
}
