package store

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// A matter that lasts is told at once, then less and less often, and once more when it is over.
func TestMattersAreToldSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m told
		f := Finding{Kind: FindingLock, Holder: Holder{Kind: HolderSession, PID: 7}}
		start := time.Now()
		var news []time.Duration
		for time.Since(start) < 35*time.Minute {
			f.Waited = time.Since(start)
			f.Holder.State = f.Waited.String() // Whatever else changes.
			if got := m.observe(f); !got.Known {
				news = append(news, time.Since(start))
			}
			time.Sleep(time.Second)
		}
		want := []time.Duration{0, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 30 * time.Minute}
		if len(news) != len(want) {
			t.Fatalf("told after %v, want %v", news, want)
		}
		for i := range want {
			if news[i] != want[i] {
				t.Errorf("told after %v, want %v", news, want)
				break
			}
		}
		f.Holder.PID = 8
		if m.observe(f).Known {
			t.Error("another holder is no news")
		}
		if end := m.end(); !end.Over || end.Known || end.Holder.PID != 8 {
			t.Errorf("the end is %+v", end)
		}
		if m.observe(f).Known {
			t.Error("after its end it is no news that it is back")
		}
	})
}

// A time that is hidden is at least as long as we have been looking; but only of one transaction.
func TestHiddenAgesAreEstimated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w watcher
		long := Holder{Kind: HolderSession, PID: 1, oldest: "100"}
		var seen []Holder
		for _, oldest := range []string{"100", "101", "102"} {
			seen = []Holder{long, {Kind: HolderSession, PID: 2, oldest: oldest}, {Kind: HolderSession, PID: 3, Age: time.Hour}}
			w.estimateAges(seen)
			time.Sleep(time.Minute)
		}
		if seen[0].Age != 2*time.Minute || seen[1].Age != 0 || seen[2].Age != time.Hour {
			t.Errorf("got ages of %v, %v and %v, want 2m, 0 and 1h", seen[0].Age, seen[1].Age, seen[2].Age)
		}
	})
}

func TestHarmOfAnOldTransaction(t *testing.T) {
	for _, tt := range []struct {
		holder   Holder
		deadRows int64
		want     bool
	}{
		{Holder{Age: time.Hour}, 1_000_000, true},
		{Holder{Age: time.Hour}, 1000, false},
		{Holder{Age: time.Minute}, 1_000_000, false},
		{Holder{XIDs: 2_000_000}, 1_000_000, true},
	} {
		if got := harmful(&tt.holder, tt.deadRows); got != tt.want {
			t.Errorf("%v with %d dead rows: got %v, want %v", tt.holder, tt.deadRows, got, tt.want)
		}
	}
}

// Earlier versions say only that something came back; later ones may say more.
func TestRescanPayloads(t *testing.T) {
	for payload, want := range map[string]int64{"rescan": math.MinInt64, "rescan:7": 7, "rescan:-7": -7, "rescan:7:more": math.MinInt64} {
		if got, ok := parseRescan(payload); !ok || got != want {
			t.Errorf("%q: got %d, %v, want %d", payload, got, ok, want)
		}
	}
	for _, payload := range []string{"", "other", "rescanned"} {
		if _, ok := parseRescan(payload); ok {
			t.Errorf("%q is taken for one", payload)
		}
	}
}
