package consumer

import (
	"sync"
	"time"
)

// place is a message's place in a stream. The time at which the server stored the message recognises it: a stream that was put
// back to an earlier state gives a sequence again, to another message.
type place struct {
	sequence uint64
	stored   time.Time
}

// pending are the messages that are read and not yet done, in the order of the stream.
type pending struct {
	mu    sync.Mutex
	queue []*message
	low   place // All up to here is done.
}

// begin forgets all, and begins after a place.
func (p *pending) begin(at place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue, p.low = nil, at
}

func (p *pending) add(m *message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, m)
}

// done takes note that a message needs nothing more.
func (p *pending) done(m *message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.done = true
	n := 0
	for n < len(p.queue) && p.queue[n].done {
		p.low = p.queue[n].place
		p.queue[n] = nil
		n++
	}
	p.queue = p.queue[n:]
}

// lowest returns a place up to which all is done, and how many messages after it are under way.
func (p *pending) lowest() (at place, underWay int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.low, len(p.queue)
}
