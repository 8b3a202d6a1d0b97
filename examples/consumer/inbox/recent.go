package inbox

import "github.com/google/uuid"

// recent remembers the ids that were added last.
type recent struct {
	ids  map[uuid.UUID]struct{}
	ring []uuid.UUID
	next int // Where in ring the next id goes, in place of the oldest.
}

func newRecent(size int) *recent {
	return &recent{ids: make(map[uuid.UUID]struct{}), ring: make([]uuid.UUID, size)}
}

func (r *recent) has(id uuid.UUID) bool {
	_, ok := r.ids[id]
	return ok
}

func (r *recent) add(id uuid.UUID) {
	delete(r.ids, r.ring[r.next])
	r.ids[id] = struct{}{}
	r.ring[r.next] = id
	r.next = (r.next + 1) % len(r.ring)
}
