package relay

import "time"

// backoff doubles from first to most.
type backoff struct{ first, most time.Duration }

// after returns the wait after the n-th failure in a row, n from 1.
func (b backoff) after(n int) time.Duration {
	wait := b.first
	for ; n > 1 && wait < b.most; n-- {
		wait *= 2
	}
	return min(wait, b.most)
}
