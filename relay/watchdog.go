package relay

import (
	"sync/atomic"
	"time"
)

const (
	// turnsEvery is for how long the relay's loop waits for something to happen before it turns all the same. A loop that has
	// not turned for stalledAfter hangs: then the relay has to be restarted.
	turnsEvery   = 2 * time.Second
	stalledAfter = 10 * time.Second
)

// watchdog knows when the relay's loop last turned.
type watchdog struct {
	last atomic.Pointer[time.Time] // Nil while no loop is to turn.
}

// turn notes that the loop turns.
func (w *watchdog) turn(now time.Time) { w.last.Store(&now) }

// rest notes that no loop need turn now: whatever the relay waits for has a time limit of its own.
func (w *watchdog) rest() { w.last.Store(nil) }

// stalled returns for how long the loop has not turned, if that is too long, and otherwise 0.
func (w *watchdog) stalled(now time.Time) time.Duration {
	last := w.last.Load()
	if last == nil || now.Sub(*last) < stalledAfter {
		return 0
	}
	return now.Sub(*last)
}
