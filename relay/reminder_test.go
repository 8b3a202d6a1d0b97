package relay

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// syncBuffer is what a log writes to.
type syncBuffer struct {
	mu   sync.Mutex // Protects text.
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) count(message string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), message)
}

// An alarm that lasts is told again after 1, 2, 5 and then every 10 minutes, and its end once.
func TestAlarmsAreRepeated(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		idle                 time.Duration // For how long another relay leads.
		begin, end           func(s *stage)
		alarm, again, allFor string
	}{
		"the leader cannot publish": {
			begin: func(s *stage) { s.openErr, s.trouble = errors.New("it is away"), errCut; s.told() },
			end:   func(s *stage) { s.openErr = nil },
			alarm: "publishing paused", again: "publishing is still paused", allFor: "publishing again",
		},
		"a person has paused it": {
			begin: func(s *stage) { s.pause = &store.Pause{Reason: "mending", Read: time.Now()} },
			end:   func(s *stage) { s.pause = nil },
			alarm: "paused by hand; events wait", again: "still paused by hand", allFor: "resumed by hand",
		},
		"a relay cannot lead": {
			idle:  1000 * time.Hour,
			begin: func(s *stage) { s.standErr = errors.New("it is away") },
			end:   func(s *stage) { s.standErr = nil },
			alarm: "not fit to lead; trying", again: "still not fit to lead", allFor: "fit to lead again",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, log := newStage(), &syncBuffer{}
				s.idle = test.idle
				_, stop := s.run(t, Options{Logger: slog.New(slog.NewTextHandler(log, nil))})
				defer stop()
				time.Sleep(10 * time.Second)
				s.locked(func() { test.begin(s) })
				passed := time.Duration(0)
				for _, step := range []struct {
					at   time.Duration
					want int
				}{{50 * time.Second, 0}, {70 * time.Second, 1}, {110 * time.Second, 1}, {130 * time.Second, 2}, {290 * time.Second, 2}, {310 * time.Second, 3}, {590 * time.Second, 3}, {610 * time.Second, 4}, {3610 * time.Second, 9}} {
					time.Sleep(step.at - passed)
					passed = step.at
					if got := log.count(test.again); got != step.want || log.count(test.alarm) == 0 || log.count(test.allFor) > 0 {
						t.Fatalf("after %v the alarm was told again %d times, want %d:\n%s", step.at, got, step.want, &log.text)
					}
				}
				s.locked(func() { test.end(s) })
				time.Sleep(time.Minute)
				if got := log.count(test.allFor); got != 1 || log.count(test.allFor+" after=1h0m")+log.count("again\" after=1h0m") != 1 {
					t.Errorf("its end was told %d times, want once and how long it lasted:\n%s", got, &log.text)
				}
			})
		})
	}
}

func TestReminder(t *testing.T) {
	var r reminder
	start := time.Now()
	if r.due(start, start.Add(time.Minute-1)) || !r.due(start, start.Add(time.Minute)) || r.due(start, start.Add(time.Minute)) {
		t.Error("it is not due after a minute, once")
	}
	if !r.due(start, start.Add(time.Hour)) || r.due(start, start.Add(70*time.Minute-1)) || !r.due(start, start.Add(70*time.Minute)) {
		t.Error("after an hour in which nobody asked it is not due once, and ten minutes later again")
	}
	if other := start.Add(70 * time.Minute); r.due(other, other.Add(time.Second)) || !r.due(other, other.Add(time.Minute)) {
		t.Error("another alarm does not begin anew")
	}
}
