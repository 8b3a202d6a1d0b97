package relay

import "slices"

// fifo is a queue whose memory is reused.
type fifo[T comparable] struct {
	items []T
	head  int
}

func (f *fifo[T]) push(v T) { f.items = append(f.items, v) }

func (f *fifo[T]) pop() (v T, ok bool) {
	if f.head == len(f.items) {
		return v, false
	}
	var zero T
	v, f.items[f.head] = f.items[f.head], zero
	f.head++
	switch {
	case f.head == len(f.items):
		f.items, f.head = f.items[:0], 0
	case f.head >= 1024 && 2*f.head >= len(f.items):
		f.items = f.items[:copy(f.items, f.items[f.head:])]
		f.head = 0
	}
	return v, true
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

// remove takes out one item, wherever it is.
func (f *fifo[T]) remove(v T) {
	if i := slices.Index(f.items[f.head:], v); i >= 0 {
		f.items = slices.Delete(f.items, f.head+i, f.head+i+1)
	}
}
