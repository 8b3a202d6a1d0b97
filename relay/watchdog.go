package relay

import (
	"sync/atomic"
	"time"
)

const (
	// turnsEvery is how long the relay's loop waits for events before it turns all the same, and stalledAfter is when it must
	// have turned: whoever restarts relays that do not then has a reason to.
	turnsEvery   = 2 * time.Second
	stalledAfter = 10 * time.Second
)

// watchdog knows when the relay's loop last turned.
type watchdog struct {
	last atomic.Pointer[time.Time] // Nil while no loop is to turn.
}

// turn notes that the loop turns.
func (w *watchdog) turn(now time.Time) { w.last.Store(&now) }

// rest notes that no loop is to turn: what is waited for now has a limit of its own.
func (w *watchdog) rest() { w.last.Store(nil) }

// stalled returns for how long the loop has not turned, if that is too long, and otherwise 0.
func (w *watchdog) stalled(now time.Time) time.Duration {
	last := w.last.Load()
	if last == nil || now.Sub(*last) < stalledAfter {
		return 0
	}
	return now.Sub(*last)
}
