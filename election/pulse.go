package election

import (
	"context"
	"sync"
	"time"
)

// Time budgets of a [Pulse].
const (
	pulseEvery = time.Second
	// pulseMissed is from when on a gap is worth a word: a busy machine makes shorter ones.
	pulseMissed = 2 * time.Second
	// pulseMemory is for how long a gap explains what is noticed after it.
	pulseMemory = 10 * time.Second
)

// Pulse notices that this process did not run: it was stopped, or its container or machine was, or it got no processor.
// Whatever it waited for has then timed out, and none of those who did not answer is to blame. The zero value is ready.
//
// It goes by the monotonic clock, which stands still while a whole machine is suspended: of that it notices nothing.
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

// Gap returns for how long this process did not run, if that ended within the last seconds or has just been noticed, and
// otherwise 0.
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
