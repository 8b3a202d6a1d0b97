package stream

import "time"

// publish is one whose answer is not known yet.
type publish struct {
	seq   int64
	until time.Time // When it is given up.
	last  uint64    // A sequence that the stream had given before.
	sizes sizes
	mark  uint64 // Its subject's.
	known bool   // Its outcome is known; it only keeps its place.
}

// A window holds the publishes between the oldest that is open and the newest,
// in the order of sending, numbered by consecutive tokens. Answers mostly come
// in that order, so that it stays as short as what is open.
type window struct {
	entries []publish // From head on.
	head    int
	first   uint64 // The token of entries[head].
}

// push adds a publish and returns its token.
func (w *window) push(p publish) uint64 {
	if w.head > 0 && len(w.entries) == cap(w.entries) {
		// Rather than growing, use the room that answered ones have left.
		w.entries = w.entries[:copy(w.entries, w.entries[w.head:])]
		w.head = 0
	}
	w.entries = append(w.entries, p)
	return w.first + uint64(len(w.entries)-w.head) - 1
}

// take removes an open publish and returns it; false if it is not open.
func (w *window) take(token uint64) (taken publish, open bool) {
	if token < w.first || token-w.first >= uint64(len(w.entries)-w.head) {
		return publish{}, false
	}
	p := &w.entries[w.head+int(token-w.first)]
	if p.known {
		return publish{}, false
	}
	taken = *p
	p.known = true
	for w.head < len(w.entries) && w.entries[w.head].known {
		w.head++
		w.first++
	}
	if w.head == len(w.entries) {
		w.entries, w.head = w.entries[:0], 0
	}
	return taken, true
}

// takeMarked removes the open publish with a subject that was sent first, and
// returns it; false if there is none.
func (w *window) takeMarked(mark uint64) (taken publish, open bool) {
	for i := range w.entries[w.head:] {
		if p := &w.entries[w.head+i]; p.mark == mark && !p.known {
			return w.take(w.first + uint64(i))
		}
	}
	return publish{}, false
}

// oldest returns the open publish that was sent first.
func (w *window) oldest() (token uint64, p publish, ok bool) {
	if w.empty() {
		return 0, publish{}, false
	}
	return w.first, w.entries[w.head], true
}

// empty reports whether no publish is open.
func (w *window) empty() bool { return w.head == len(w.entries) }

// clear forgets all publishes; their tokens are not used again.
func (w *window) clear() {
	w.first += uint64(len(w.entries) - w.head)
	w.entries, w.head = w.entries[:0], 0
}
