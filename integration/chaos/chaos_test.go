package chaos_test

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

var (
	//nolint:gochecknoglobals // Flags.
	duration = flag.Duration("duration", 0, "go on with worlds of new seeds, or begin with mutants, for so long; 0 runs a few known worlds, or all mutants")
	//nolint:gochecknoglobals // A flag.
	seed = flag.Int64("seed", environmentSeed(), "the seed of the first world, also from CHAOS_SEED; 0 draws one where -duration is given")
	//nolint:gochecknoglobals // A flag.
	hostile = flag.Bool("hostile", true, "write hostile rows besides, one or several in each episode")
	//nolint:gochecknoglobals // A flag.
	episodes = flag.Int("episodes", 0, "the episodes of a world; 0 for 40, or a few without -duration and -seed")
)

func environmentSeed() int64 {
	n, _ := strconv.ParseInt(os.Getenv("CHAOS_SEED"), 10, 64) // Absent, mostly.
	return n
}

const (
	// fullLife is how many episodes a world has. With more, its stream would get long, and the audit would take long.
	fullLife = 40
	// lanes is how many worlds there are at once; they mostly wait.
	lanes = 3
	// shortLife is how many a world has without flags: enough to see whether it still works.
	shortLife = 8
)

// Nothing is missing, stored twice or out of order, whatever fails. As soon as nothing fails any more, everything goes on.
//
// Without flags there are two worlds, of one nats-server and of three. With -duration there are new worlds, some at once, until
// the time is over; with -seed alone, only the world of that seed.
func TestChaos(t *testing.T) {
	var report report
	began := time.Now()
	switch {
	case *duration > 0:
		report.until = began.Add(*duration)
		first := cmp.Or(*seed, time.Now().UnixNano()%1_000_000_000)
		t.Logf("the first seed is %d", first)
		var next sync.Mutex
		t.Run("lanes", func(t *testing.T) {
			for lane := range lanes {
				t.Run(strconv.Itoa(lane), func(t *testing.T) {
					t.Parallel()
					for time.Now().Before(report.until) && !t.Failed() {
						next.Lock()
						seed := first
						first++
						next.Unlock()
						t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { report.world(t, seed, cmp.Or(*episodes, fullLife)) })
					}
				})
			}
		})
	case *seed != 0:
		t.Run("replay", func(t *testing.T) { report.world(t, *seed, cmp.Or(*episodes, fullLife)) })
	default:
		t.Run("known", func(t *testing.T) {
			for _, seed := range []int64{single, cluster} {
				t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
					t.Parallel()
					report.world(t, seed, cmp.Or(*episodes, shortLife))
				})
			}
		})
	}
	report.print(t, time.Since(began))
}

// Seeds of a world with one nats-server and of one with three, in which there are seven different trials.
const (
	single  = 941
	cluster = 8
)

// report adds up what was seen in all worlds.
type report struct {
	until time.Time // When to end; zero for not before time.

	mu     sync.Mutex // Protects what follows.
	worlds int
	events int
	healed []time.Duration // How long it took after each episode until all was settled that had been committed by then.
	faults map[string]int
}

func (r *report) world(t *testing.T, seed int64, episodes int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("once more, in the same order though not at the same instants: go test -count=1 -v ./integration/chaos -run TestChaos -seed %d -episodes %d -hostile=%v", seed, episodes, *hostile)
		}
	}()
	w := newWorld(t, seed)
	for n := 0; n < episodes && (r.until.IsZero() || time.Now().Before(r.until)); n++ {
		healed := w.episode(n)
		r.mu.Lock()
		r.healed = append(r.healed, healed)
		r.mu.Unlock()
	}
	events := w.audit()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.worlds++
	r.events += events
	if r.faults == nil {
		r.faults = make(map[string]int)
	}
	for name, n := range w.counts {
		r.faults[name] += n
	}
}

func (r *report) print(t *testing.T, took time.Duration) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.healed) == 0 {
		return
	}
	slices.Sort(r.healed)
	quantile := func(q float64) time.Duration {
		return r.healed[int(q*float64(len(r.healed)-1))].Round(time.Millisecond)
	}
	t.Logf("%d episodes in %d worlds, %d events, in %v; everything settled after the last fault of an episode within: median %v, 99 %% %v, at most %v (limit %v)",
		len(r.healed), r.worlds, r.events, took.Round(time.Second), quantile(.5), quantile(.99), quantile(1), progressWithin)
	for _, name := range slices.Sorted(maps.Keys(r.faults)) {
		t.Logf("%5d × %s", r.faults[name], name)
	}
}
