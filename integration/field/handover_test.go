package field_test

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// load inserts events at a rate, until the returned function is called.
func load(w *harness.World, rate int) (stop func()) {
	const every = 5 * time.Millisecond
	conn := w.Connect()
	stopped := make(chan struct{})
	var producing sync.WaitGroup
	producing.Go(func() {
		began, inserted := time.Now(), 0
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-tick.C:
			}
			due := int(time.Since(began).Seconds()*float64(rate)) - inserted
			if due <= 0 {
				continue
			}
			if _, err := conn.Exec(w.Context(),
				`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
				select 'accounts', 'Account', 'a' || n % 1000, 'Changed', decode(repeat('00', 200), 'hex') from generate_series($1::int, $2::int) n`, inserted+1, inserted+due); err != nil {
				w.Error(err)
				return
			}
			inserted += due
		}
	})
	return func() {
		close(stopped)
		producing.Wait()
	}
}

// gapIn returns the longest time without a stored event between two moments.
func gapIn(stored []time.Time, from, to time.Time) time.Duration {
	longest, last := time.Duration(0), time.Time{}
	for _, s := range stored {
		if s.Before(from) {
			continue
		}
		if s.After(to) {
			break
		}
		if !last.IsZero() {
			longest = max(longest, s.Sub(last))
		}
		last = s
	}
	return longest
}

// A new leader publishes without a noticeable gap: at once after a leader that stopped; after a crash, as soon as it has read
// back what was published lately, however short the term before was.
//
// Not parallel: it measures times. OUTBOX_RATE is the load, in events a second.
func TestHandOver(t *testing.T) {
	rate := 5000
	if text := os.Getenv("OUTBOX_RATE"); text != "" {
		var err error
		if rate, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	w := harness.NewWorld(t, harness.Options{})
	settings := []string{"OUTBOX_LOGGING_LEVEL=info"}
	leader := w.Relay(settings...)
	leader.Leads()
	stop := load(w, rate)
	type takeover struct {
		how  string
		at   time.Time
		most time.Duration
	}
	const (
		stops   = 300 * time.Millisecond // 100 ms on a machine of one's own, beside the gaps that there are without a takeover.
		crashes = 800 * time.Millisecond // 400 ms, likewise.
	)
	var takeovers []takeover
	for i, how := range []string{"stop", "crash", "crash", "crash", "stop", "stop", "crash"} {
		next := w.Relay(settings...)
		next.WaitFor(regexp.MustCompile(`standing (by)`))
		harness.Eventually(t, 10*time.Second, "the standby is ready", func() bool { return next.Get("/readyz") == 200 })
		harness.Pause(t.Context(), 3*time.Second) // The load meanwhile.
		at := takeover{fmt.Sprintf("%d. %s", i+1, how), time.Now(), stops}
		if how == "crash" {
			at.most = crashes
			leader.Kill()
		} else if code := leader.Stop(); code != 0 {
			t.Errorf("exit code %d after SIGTERM, want 0", code)
		}
		takeovers = append(takeovers, at)
		next.Leads()
		leader = next
	}
	harness.Pause(t.Context(), 4*time.Second)
	stop()
	messages := w.Messages()
	stored := make([]time.Time, len(messages))
	for i, m := range messages {
		stored[i] = m.Time
	}
	slices.SortFunc(stored, func(a, b time.Time) int { return cmp.Compare(a.UnixNano(), b.UnixNano()) })
	t.Logf("%d events", len(stored))
	for _, took := range takeovers {
		gap := gapIn(stored, took.at.Add(-100*time.Millisecond), took.at.Add(1500*time.Millisecond))
		before := gapIn(stored, took.at.Add(-1500*time.Millisecond), took.at.Add(-100*time.Millisecond))
		t.Logf("%s: nothing stored for %v, and %v without a takeover", took.how, gap.Round(time.Millisecond), before.Round(time.Millisecond))
		if gap > took.most+before {
			t.Errorf("%s: nothing stored for %v, want at most %v", took.how, gap, took.most+before)
		}
	}
}
