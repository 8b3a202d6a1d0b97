package main

import (
	"slices"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/stream"
)

func TestJudge(t *testing.T) {
	a1, a2, a3 := message{"a", "a1"}, message{"a", "a2"}, message{"a", "a3"}
	b1 := message{"b", "b1"}
	for _, test := range []struct {
		name   string
		stored []message
		want   verdict
		good   bool
	}{
		{"all is well", []message{a1, b1, a2, a3}, verdict{committed: 4, stored: 4}, true},
		{"one missing", []message{a1, b1, a3}, verdict{committed: 4, stored: 3, missing: 1}, false},
		{"one twice", []message{a1, b1, a2, a1, a3}, verdict{committed: 4, stored: 5, duplicates: 1}, false},
		{"one too late", []message{a1, b1, a3, a2}, verdict{committed: 4, stored: 4, outOfOrder: 1}, false},
		{"one rolled back", []message{a1, b1, a2, a3, {"a", "a4"}}, verdict{committed: 4, stored: 5, uncommitted: 1}, false},
		{"one of another aggregate", []message{a1, {"a", "b1"}, a2, a3}, verdict{committed: 4, stored: 4, missing: 1, uncommitted: 1}, false},
		{"one missing, one twice", []message{a1, b1, a2, a2}, verdict{committed: 4, stored: 4, duplicates: 1, missing: 1}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newJournal()
			for i, m := range []message{a1, a2, a3} {
				l.commit(m.payload, note{subject: m.subject, version: i + 1})
			}
			l.commit(b1.payload, note{subject: b1.subject, version: 1})
			got := l.judge(test.stored)
			if got != test.want || got.good() != test.good {
				t.Errorf("judge = %+v (good: %t), want %+v (%t)", got, got.good(), test.want, test.good)
			}
		})
	}
}

func TestLatencies(t *testing.T) {
	epoch := time.Now()
	at := func(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }
	l := newJournal()
	for _, event := range []struct {
		payload       string
		sent, arrived int
	}{
		{"before", 90, 92},
		{"while nobody led", 110, 215},
		{"elected, but not caught up", 205, 216},
		{"caught up", 220, 223},
	} {
		l.commit(event.payload, note{sent: at(event.sent)})
		l.arrivals = append(l.arrivals, arrival{stream.Event{Data: []byte(event.payload)}, at(event.arrived)})
	}
	l.commit("by a client that does not know", note{})
	l.arrivals = append(l.arrivals, arrival{stream.Event{Data: []byte("by a client that does not know")}, at(230)})

	led, leaderless := l.latencies([]takeover{{killed: at(100), elected: at(200)}})
	if want := (latencies{2 * time.Millisecond, 3 * time.Millisecond}); !slices.Equal(led, want) {
		t.Errorf("while a relay led: %v, want %v", led, want)
	}
	if want := (latencies{11 * time.Millisecond, 105 * time.Millisecond}); !slices.Equal(leaderless, want) {
		t.Errorf("while none led: %v, want %v", leaderless, want)
	}
	if got, want := leaderless.quantile(1), 105*time.Millisecond; got != want {
		t.Errorf("the longest = %v, want %v", got, want)
	}
	if got := (latencies{}).quantile(.5); got != 0 {
		t.Errorf("the median of none = %v, want 0", got)
	}
}
