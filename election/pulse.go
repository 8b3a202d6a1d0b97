package election

import (
	"context"
	"sync"
	"time"
)

// Time budgets of a [Pulse].
const (
	pulseEvery = time.Second
	// pulseMissed is the shortest gap that is reported: a busy machine causes shorter ones.
	pulseMissed = 2 * time.Second
	// pulseMemory is how long after a gap it still explains what goes wrong.
	pulseMemory = 10 * time.Second
)

// Pulse notices that this process did not run: the process, its container or its machine was stopped, or it got no processor.
// Its requests have then timed out, and the servers are not to blame. The zero value is ready.
//
// Pulse uses the monotonic clock, which stands still while a whole machine is suspended: that it does not notice.
type Pulse struct {
	mu    sync.Mutex    // Protects what follows.
	last  time.Time     // The latest beat; zero while it does not beat.
	gap   time.Duration // The latest gap,
	ended time.Time     // and when it ended.
}

// Run beats until ctx ends, and calls missed after each gap; nil for nobody.
func (p *Pulse) Run(ctx context.Context, missed func(gap time.Duration)) {
	ticker := time.NewTicker(pulseEvery)
	defer ticker.Stop()
	defer p.stop()
	p.beat(time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if gap := p.beat(time.Now()); gap > 0 && missed != nil {
				missed(gap)
			}
		}
	}
}

// Gap returns how long this process did not run, if that ended within the last ten seconds or has
// just been noticed; otherwise 0.
func (p *Pulse) Gap() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if late := now.Sub(p.last); !p.last.IsZero() && late >= pulseMissed {
		return late // The beat is to come.
	}
	if p.gap > 0 && now.Sub(p.ended) < pulseMemory {
		return p.gap
	}
	return 0
}

// beat notes a beat, and returns the gap before it; 0 for none.
func (p *Pulse) beat(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	late := now.Sub(p.last)
	missed := !p.last.IsZero() && late >= pulseMissed
	p.last = now
	if !missed {
		return 0
	}
	p.gap, p.ended = late, now
	return late
}

func (p *Pulse) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Time{}
}
