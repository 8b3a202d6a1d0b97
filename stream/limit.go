package stream

// MaxData returns the size in bytes of the largest payload that can be stored
// now, by what the server and the stream take, less the smallest headers that an
// event has; 0 as long as the publisher has not been opened. It may be called
// from any goroutine.
//
// It is as of the last Open, Look or reconnect. A server does not tell its
// clients when its max_payload is lowered by a reload: it closes the connection
// of the first one that sends more, and Open makes another.
func (p *Publisher) MaxData() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.maxPayload <= 0 {
		return 0
	}
	most := p.maxPayload
	if p.maxMessage > 0 {
		most = min(most, p.maxMessage)
	}
	return int(max(most-smallestHeader, 1))
}

// smallestHeader is the size of the header block of an event all of whose texts
// are empty.
const smallestHeader = int64(plainHeaderSize + len("00000000-0000-0000-0000-000000000000") + len("0") + len("2006-01-02T15:04:05Z"))

// limits notes what the server takes.
func (p *Publisher) limits(maxPayload int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.maxPayload = maxPayload
}
