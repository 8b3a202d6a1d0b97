//go:build !linux

package bench_test

import (
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// What stands here only lets the benchmarks compile: they take the figures of memory and processor time from Linux.

type memory struct{}

func warm(w *harness.World, _ backlog) *memory {
	w.Helper()
	w.Skip("only on Linux")
	return nil
}

func (*memory) give(*harness.World, int) {}

func processorTime(w *harness.World) time.Duration {
	w.Helper()
	w.Skip("only on Linux")
	return 0
}
