package main

import (
	"runtime/debug"

	"github.com/go-outbox/go-outbox/config"
)

// relaxedGC is a value of GOGC: how much the heap may grow between two collections, in per cent of what is in use.
const relaxedGC = 400

// relaxCollector makes the garbage collector run less often, unless GOGC is set. A relay's heap is a few MB, so with the
// default of 100 the collector would run every few pages of rows. The higher value costs some ten MB, and saves about a sixth
// of the relay's processor time. An embedded server has a large heap, with every message id of the duplicate window, so for
// that the default stays.
func relaxCollector(c config.Config, p *process) {
	if value, _ := p.lookupEnv("GOGC"); value == "" && !c.NATS.Embedded() {
		debug.SetGCPercent(relaxedGC)
	}
}
