package relay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-outbox/go-outbox/stream"
)

// A loss that a look at the stream finds, while nothing is published, is reason enough to read the stream back.
func TestLossWhileIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.insert(1)
		_, stop := s.run(t, Options{})
		defer stop()
		archives := func() (n int) {
			s.locked(func() { n = s.calls["Archive"] })
			return n
		}
		time.Sleep(time.Minute)
		before := archives()
		s.locked(func() { s.lookErr = &stream.LostError{} })
		time.Sleep(time.Minute)
		if after := archives(); after != before+1 {
			t.Errorf("the archive was read %d times after the loss, want once", after-before)
		}
	})
}
