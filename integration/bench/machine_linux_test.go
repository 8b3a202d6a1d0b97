package bench_test

import (
	"os"
	"syscall"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// memory is memory that has been in use and is given back bit by bit, as a backlog is drained and others need some.
//
// On a virtual machine whose host takes back what is free, a page that has not been in use lately costs more than an event
// does: 4 to 16 µs on the machine that these benchmarks were written on. A small backlog finds pages that were in use just now,
// a large one does not. Without this, the size of a backlog would seem to matter to the relay.
type memory struct {
	pages []byte
	given int
	need  int // For each event.
}

const (
	// memoryPerEvent is an estimate of what both servers, and the files that they write, need for an event, without the copies of
	// its payload.
	memoryPerEvent  = 3 << 10
	memoryPerCopies = 3
	// memoryAhead is given back before it is needed: so much may be free without being taken at once.
	memoryAhead = 768 << 20
)

// warm takes the memory that a backlog will need, as far as three quarters of what is free suffice.
func warm(w *harness.World, load backlog) *memory {
	w.Helper()
	var system syscall.Sysinfo_t
	if err := syscall.Sysinfo(&system); err != nil {
		w.Fatal(err)
	}
	free := int(system.Freeram) * int(system.Unit)
	m := &memory{need: memoryPerEvent + memoryPerCopies*load.size}
	size := m.need * load.events
	if most := free / 4 * 3; size > most {
		w.Logf("%d MB of memory are used anew, for lack of more: the figures may be the machine's", (size-most)>>20)
		size = most
	}
	page := os.Getpagesize()
	var err error
	if m.pages, err = syscall.Mmap(-1, 0, size/page*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = syscall.Munmap(m.pages) }) // The process's end does it, too.
	for i := 0; i < len(m.pages); i += page {
		m.pages[i] = 1
	}
	m.give(w, 0)
	return m
}

// give gives back what is needed once so many events are done with.
func (m *memory) give(w *harness.World, events int) {
	w.Helper()
	page := os.Getpagesize()
	to := min(m.need*events+memoryAhead, len(m.pages)) / page * page
	if to <= m.given {
		return
	}
	if err := syscall.Madvise(m.pages[m.given:to], syscall.MADV_DONTNEED); err != nil {
		w.Fatal(err)
	}
	m.given = to
}

// processorTime is what this process has used.
func processorTime(w *harness.World) time.Duration {
	w.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		w.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
