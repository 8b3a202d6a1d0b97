package relay

import "time"

// probe measures how long acknowledgements take, of one event at a time: to note the time of each would cost more than it
// tells.
type probe struct {
	underWay bool
	seq      int64 // Of the event whose acknowledgement is awaited, if one is.
	sent     time.Time
}

func (p *probe) begin(seq int64) { *p = probe{true, seq, time.Now()} }

// end returns how long the acknowledgement took; 0 if none was awaited.
func (p *probe) end() time.Duration {
	if !p.underWay {
		return 0
	}
	p.underWay = false
	return time.Since(p.sent)
}
