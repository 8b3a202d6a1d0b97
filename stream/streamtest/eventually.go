package streamtest

import (
	"testing"
	"time"
)

// Eventually waits until done, for 15 s at most.
func Eventually(tb testing.TB, done func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(15 * time.Second); !done(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("not in time")
		}
	}
}
