package election

import (
	"testing"
	"testing/synctest"
	"time"
)

// A gap is what lies between two beats that are too far apart. It explains what is noticed in the seconds after it, and
// also before the next beat.
func TestPulse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		expect := func(p *Pulse, when string, want time.Duration) {
			t.Helper()
			if got := p.Gap(); got != want {
				t.Errorf("%s: a gap of %v, want %v", when, got, want)
			}
		}
		var p Pulse
		expect(&p, "before the first beat", 0)
		time.Sleep(time.Hour)
		if gap := p.beat(time.Now()); gap != 0 {
			t.Errorf("the first beat tells of a gap of %v", gap)
		}
		time.Sleep(pulseMissed - time.Nanosecond)
		expect(&p, "within what is usual", 0)
		p.beat(time.Now())
		time.Sleep(8 * time.Second)
		expect(&p, "before the next beat", 8*time.Second)
		if gap := p.beat(time.Now()); gap != 8*time.Second {
			t.Errorf("the beat tells of a gap of %v, want 8s", gap)
		}
		for range int(pulseMemory/pulseEvery) - 1 {
			time.Sleep(pulseEvery)
			p.beat(time.Now())
			expect(&p, "some beats later", 8*time.Second)
		}
		time.Sleep(pulseEvery)
		p.beat(time.Now())
		expect(&p, "when it is forgotten", 0)
	})
}
