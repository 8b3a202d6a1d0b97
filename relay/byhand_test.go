package relay

import (
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// A leader that is paused by hand sends nothing. It asks once a second whether it still is, also with as many rows as it may
// hold, and at once when it is woken.
func TestPausedByHand(t *testing.T) {
	now := time.Now()
	c := loaded(t, Options{BatchSize: 1}, now, row(1, "a"), row(2, "b"))
	c.circuit.breaker = breakerClosed
	c.byHand.paused = true
	c.byHand.asked(now)
	if c.publishes() {
		t.Error("it publishes")
	}
	if request, due := c.nextRoundTrip(now.Add(askPauseEvery - 1)); due {
		t.Fatalf("a round trip is due: %+v", request)
	}
	if at := c.deadline(); !at.Equal(now.Add(askPauseEvery)) {
		t.Errorf("the next turn is due after %v, want %v", at.Sub(now), askPauseEvery)
	}
	now = now.Add(askPauseEvery)
	if request := c.mustRoundTrip(t, now); !request.AskPause || request.Fetch != nil {
		t.Errorf("the round trip is %+v, want only the question", request)
	}
	c.answered(store.Response{}, now)
	if _, due := c.nextRoundTrip(now); due {
		t.Error("it asks again at once")
	}
	c.wake()
	if request := c.mustRoundTrip(t, now); !request.AskPause {
		t.Errorf("woken, it asks for %+v", request)
	}
	c.answered(store.Response{}, now)

	// An outage ends as if there was nothing to try first.
	c.circuit.breaker, c.circuit.troubles = breakerHalfOpen, 3
	if !c.proceeds() {
		t.Error("after an outage it waits for an event to be stored")
	}
	c.byHand.paused = false
	if c.proceeds() || !c.publishes() {
		t.Error("after the pause it does not try one event first")
	}
	expect(t, "the rows that go out then", c.drain(), []int64{1, 2})
}
