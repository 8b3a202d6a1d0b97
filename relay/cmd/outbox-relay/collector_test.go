package main

import (
	"runtime/debug"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

func TestTheCollectorIsRelaxed(t *testing.T) {
	const before = 99
	own, embedded := config.Default(), config.Default()
	embedded.NATS.URL = config.NATSEmbedded
	for name, test := range map[string]struct {
		config config.Config
		env    environment
		want   int
	}{
		"by default":               {own, nil, relaxedGC},
		"but not against the user": {own, environment{"GOGC": "50"}, before},
		"nor with a server's heap": {embedded, nil, before},
	} {
		t.Run(name, func(t *testing.T) {
			old := debug.SetGCPercent(before)
			defer debug.SetGCPercent(old)
			relaxCollector(test.config, &process{environ: test.env.list()})
			if got := debug.SetGCPercent(before); got != test.want {
				t.Errorf("GOGC is %d, want %d", got, test.want)
			}
		})
	}
}
