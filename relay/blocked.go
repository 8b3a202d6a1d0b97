package relay

import (
	"container/heap"
	"time"
)

const (
	// namesMost is how many blocked aggregates a fetch leaves out by name, and nameBytes how long their names may be together.
	// The rows of other blocked aggregates are fetched once, and from then on left out by their seqs.
	namesMost = 1000
	nameBytes = 256 << 10
	// releasedAtOnce is how many aggregates go on at a time, so that their rows share a page with new rows.
	releasedAtOnce = 100
)

// block keeps an aggregate's rows away, because one of them was refused.
type block struct {
	aggregate aggregate
	until     time.Time
	recording bool    // The block ends when its dead letter is recorded, rather than at a time.
	from      int64   // No row of the aggregate with a lower seq was passed over.
	passed    []int64 // The seqs of its other rows that were fetched meanwhile, and passed over.
	place     int     // In blocks.due; not used while recording.
}

// blocks are the blocked aggregates.
type blocks struct {
	of     map[aggregate]*block
	due    dueBlocks
	passed int // How many rows were passed over.
}

func newBlocks() blocks { return blocks{of: make(map[aggregate]*block)} }

// add blocks an aggregate until a time, from a refused row on.
func (b *blocks) add(a aggregate, until time.Time, from int64) {
	bl := b.get(a, from)
	bl.until, bl.recording = until, false
	heap.Push(&b.due, bl)
}

// record blocks an aggregate until its row's dead letter is recorded.
func (b *blocks) record(a aggregate, from int64) { b.get(a, from).recording = true }

// get returns the block of an aggregate, which waits for no time.
func (b *blocks) get(a aggregate, from int64) *block {
	bl := b.of[a]
	if bl == nil {
		bl = &block{aggregate: a, from: from, recording: true}
		b.of[a] = bl
	}
	if !bl.recording {
		heap.Remove(&b.due, bl.place)
	}
	bl.from = min(bl.from, from)
	return bl
}

// pass notes that a row was fetched whose aggregate is blocked; false if it is not.
func (b *blocks) pass(a aggregate, seq int64) bool {
	bl := b.of[a]
	if bl == nil {
		return false
	}
	bl.passed = append(bl.passed, seq)
	bl.from = min(bl.from, seq)
	b.passed++
	return true
}

// recorded ends the block of an aggregate whose dead letter is recorded, and returns the seq to fetch its rows from.
func (b *blocks) recorded(a aggregate) (from int64, ok bool) {
	bl := b.of[a]
	if bl == nil || !bl.recording {
		return 0, false // It had been let go, or blocked again for another row.
	}
	return b.release(bl), true
}

// next ends the block of an aggregate whose time has come, and returns the seq to fetch its rows from.
func (b *blocks) next(now time.Time) (from int64, ok bool) {
	if len(b.due) == 0 || now.Before(b.due[0].until) {
		return 0, false
	}
	bl, _ := heap.Pop(&b.due).(*block)
	return b.release(bl), true
}

func (b *blocks) release(bl *block) (from int64) {
	delete(b.of, bl.aggregate)
	b.passed -= len(bl.passed)
	return bl.from
}

// deadline returns when the next aggregate may go on; zero if none waits for a time.
func (b *blocks) deadline() time.Time {
	if len(b.due) == 0 {
		return time.Time{}
	}
	return b.due[0].until
}

// names are aggregates to be left out of a page, pairwise.
func (b *blocks) names() (types, ids []string) {
	size := 0
	for a := range b.of {
		size += len(a.kind) + len(a.id)
		if len(ids) == namesMost || size > nameBytes {
			break
		}
		types, ids = append(types, a.kind), append(ids, a.id)
	}
	return types, ids
}

// lowest returns the lowest seq to fetch rows from once blocks end; nil if no aggregate is blocked.
func (b *blocks) lowest() (from *int64) {
	for _, bl := range b.of {
		if from == nil || bl.from < *from {
			from = new(bl.from)
		}
	}
	return from
}

// lower takes note that rows from a seq on were put back into the outbox: they may be of any aggregate.
func (b *blocks) lower(to int64) {
	for _, bl := range b.of {
		bl.from = min(bl.from, to)
	}
}

// seqs are those of the rows that were passed over.
func (b *blocks) seqs() []int64 {
	if b.passed == 0 {
		return nil
	}
	seqs := make([]int64, 0, b.passed)
	for _, bl := range b.of {
		seqs = append(seqs, bl.passed...)
	}
	return seqs
}

// dueBlocks is a heap of blocks by time.
type dueBlocks []*block

func (d dueBlocks) Len() int           { return len(d) }
func (d dueBlocks) Less(i, j int) bool { return d[i].until.Before(d[j].until) }

func (d dueBlocks) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

// Push implements [heap.Interface].
func (d *dueBlocks) Push(x any) {
	bl, _ := x.(*block)
	bl.place = len(*d)
	*d = append(*d, bl)
}

// Pop implements [heap.Interface].
func (d *dueBlocks) Pop() any {
	last := len(*d) - 1
	bl := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	return bl
}
