package stream

// MaxData returns the size in bytes of the largest payload that can be stored
// now: the limit of the server or of the stream, less the smallest headers that an
// event has. It is 0 until the publisher was opened. It may be called from any
// goroutine.
//
// The size is that of the last Open, Verify or reconnect. A server does not tell its
// clients when its max_payload is lowered by a reload: it closes the connection
// of the first one that sends more, and Open makes another.
func (p *Publisher) MaxData() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := p.largest()
	if most == 0 {
		return 0
	}
	return int(max(most-smallestHeader, 1))
}

// largest returns the size of the largest message that can be stored now, headers
// included; 0 if it is not known. The caller holds mu.
func (p *Publisher) largest() int64 {
	if p.maxPayload > 0 && p.maxMessage > 0 {
		return min(p.maxPayload, p.maxMessage)
	}
	return max(p.maxPayload, 0)
}

func (p *Publisher) most() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.largest()
}

// smallestHeader is the size of the header block of an event whose texts are all
// empty.
const smallestHeader = int64(plainHeaderSize + len("00000000-0000-0000-0000-000000000000") + len("0") + len("2006-01-02T15:04:05Z"))

// limits notes what the server takes.
func (p *Publisher) limits(maxPayload int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.maxPayload = maxPayload
}
