package relay_test

import (
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/stream"
)

func TestMinDuplicateWindow(t *testing.T) {
	for ackTimeout, want := range map[time.Duration]time.Duration{
		0:               22 * time.Second,
		5 * time.Second: 22 * time.Second,
		time.Minute:     77 * time.Second,
	} {
		if got := relay.MinDuplicateWindow(ackTimeout); got != want {
			t.Errorf("MinDuplicateWindow(%v) = %v, want %v", ackTimeout, got, want)
		}
	}
	if got := relay.MinDuplicateWindow(0); got > stream.DefaultDuplicateWindow {
		t.Errorf("the relay's own stream has a window of %v, and %v are needed", stream.DefaultDuplicateWindow, got)
	}
}
