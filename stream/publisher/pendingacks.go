package publisher

import "time"

// pendingAck is an event that was sent by itself and is not answered yet.
type pendingAck struct {
	seq   int64
	until time.Time // When the wait for the answer ends.
	last  uint64    // A sequence that the stream had given before the event was sent.
	sizes sizes
	mark  uint64 // Its subject's mark.
	known bool   // The outcome is known; the entry only keeps its place.
}

// pendingAcks holds the acknowledgements that are still to come, in the order of
// sending, numbered by consecutive tokens: an entry for each event from the oldest
// unanswered one to the newest. Answers mostly come in that order, so few entries
// are answered ones.
type pendingAcks struct {
	entries []pendingAck // From head on.
	head    int
	first   uint64 // The token of entries[head].
}

// push adds an event and returns its token.
func (a *pendingAcks) push(p pendingAck) uint64 {
	if a.head > 0 && len(a.entries) == cap(a.entries) {
		// Do not grow: use the room of the answered entries.
		a.entries = a.entries[:copy(a.entries, a.entries[a.head:])]
		a.head = 0
	}
	a.entries = append(a.entries, p)
	return a.first + uint64(len(a.entries)-a.head) - 1
}

// take removes a pending acknowledgement and returns it; false if it is not pending.
func (a *pendingAcks) take(token uint64) (taken pendingAck, ok bool) {
	if token < a.first || token-a.first >= uint64(len(a.entries)-a.head) {
		return pendingAck{}, false
	}
	p := &a.entries[a.head+int(token-a.first)]
	if p.known {
		return pendingAck{}, false
	}
	taken = *p
	p.known = true
	for a.head < len(a.entries) && a.entries[a.head].known {
		a.head++
		a.first++
	}
	if a.head == len(a.entries) {
		a.entries, a.head = a.entries[:0], 0
	}
	return taken, true
}

// takeMarked removes the pending acknowledgement of the event that was sent first
// among those with a subject, and returns it; false if there is none.
func (a *pendingAcks) takeMarked(mark uint64) (taken pendingAck, ok bool) {
	for i := range a.entries[a.head:] {
		if p := &a.entries[a.head+i]; p.mark == mark && !p.known {
			return a.take(a.first + uint64(i))
		}
	}
	return pendingAck{}, false
}

// oldest returns the pending acknowledgement of the event that was sent first.
func (a *pendingAcks) oldest() (token uint64, p pendingAck, ok bool) {
	if a.empty() {
		return 0, pendingAck{}, false
	}
	return a.first, a.entries[a.head], true
}

// empty reports whether no acknowledgement is pending.
func (a *pendingAcks) empty() bool { return a.head == len(a.entries) }

// clear forgets all; their tokens are not used again.
func (a *pendingAcks) clear() {
	a.first += uint64(len(a.entries) - a.head)
	a.entries, a.head = a.entries[:0], 0
}
