package relay

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// run runs a relay on the stage until the returned function is called.
func (s *stage) run(t *testing.T, options Options) (*Relay, func()) {
	t.Helper()
	relay, err := Assemble(s.parts(), options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	return relay, func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func (s *stage) elections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.elected
}

// Who has not reached Postgres, the broker and the stream does not campaign, is not ready, and says why.
func TestOnlyAFitRelayCampaigns(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(s *stage, err error){
		"without the stream":   func(s *stage, err error) { s.openErr = err },
		"without the database": func(s *stage, err error) { s.standErr = err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				s.idle = 0
				spoil(s, errors.New("it is away"))
				relay, stop := s.run(t, Options{})
				defer stop()
				time.Sleep(time.Minute)
				if status := relay.Status(); s.elections() > 0 || status.Ready() || status.State != Campaigning || !strings.Contains(status.Trouble, "it is away") || !status.Alive() {
					t.Errorf("after %d elections the status is %+v", s.elections(), status)
				}
				if s.standErr == nil && slices.Contains(s.claims, true) {
					t.Error("it said that it could publish")
				}
				s.locked(func() { spoil(s, nil) })
				time.Sleep(2 * time.Second)
				if status := relay.Status(); s.elections() != 1 || !status.Ready() || status.Trouble != "" {
					t.Errorf("once that is there again: after %d elections the status is %+v", s.elections(), status)
				}
			})
		})
	}
}

// A standby that is not fit any more leaves the election, and comes back.
func TestUnfitStandbyWithdraws(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.idle = time.Hour
		relay, stop := s.run(t, Options{})
		defer stop()
		time.Sleep(time.Minute)
		if status := relay.Status(); !status.Fit || !s.claims[len(s.claims)-1] {
			t.Errorf("the status is %+v, and it said that it could publish: %v", status, s.claims[len(s.claims)-1])
		}
		s.locked(func() { s.openErr, s.idle = errors.New("it is away"), 0 })
		time.Sleep(time.Minute)
		if status := relay.Status(); status.Fit || s.claims[len(s.claims)-1] || s.elections() > 0 {
			t.Errorf("without the broker the status is %+v, and after %d elections it says that it could publish: %v", status, s.elections(), s.claims[len(s.claims)-1])
		}
		s.locked(func() { s.openErr = nil })
		time.Sleep(2 * time.Second)
		if s.elections() != 1 {
			t.Errorf("once it is fit again, %d elections, want one", s.elections())
		}
	})
}

// A leader that cannot publish makes way for whoever says that it could, leaves the election to others for some seconds,
// and says less and less often that it could itself.
func TestBlindLeaderMakesWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.idle = 0
		relay, stop := s.run(t, Options{})
		defer stop()
		time.Sleep(time.Second)
		if s.elections() != 1 || !relay.Status().Ready() {
			t.Fatalf("after %d elections the status is %+v", s.elections(), relay.Status())
		}
		blind := func() {
			s.locked(func() { s.trouble, s.openErr = errCut, errors.New("it is away"); s.told() })
		}
		blind()
		time.Sleep(time.Minute)
		if s.elections() != 1 || len(s.returned) > 0 {
			t.Errorf("without a standby it made way")
		}
		s.locked(func() { s.openErr = nil })
		time.Sleep(2 * time.Second) // By then it publishes again.
		s.locked(func() { s.standbys = 1 })
		blind()
		at := time.Now()
		select {
		case <-s.returned:
		case <-time.After(time.Minute):
			t.Fatal("it does not make way for a standby")
		}
		if took := time.Since(at); took < unfitAfter || took > unfitAfter+askAgain {
			t.Errorf("it made way after %v, want %v", took, unfitAfter)
		}
		s.locked(func() { s.openErr, s.claims = nil, nil })
		time.Sleep(standBack - time.Second)
		if s.elections() != 1 {
			t.Error("it was elected again at once")
		}
		if status := relay.Status(); status.Ready() || status.Trouble == "" {
			t.Errorf("while it leaves the election to others the status is %+v", status)
		}
		time.Sleep(2 * time.Second)
		if s.elections() != 2 {
			t.Errorf("some seconds later there were %d elections, want 2", s.elections())
		}
		if slices.Contains(s.claims, true) {
			t.Error("it said that it could publish, right after it could not")
		}
	})
}

// A loop that stands still is noticed, and one that has nothing to do turns all the same.
func TestStandstillIsNoticed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.idle = 0
		s.insert(1)
		hold := make(chan struct{})
		relay, stop := s.run(t, Options{PollInterval: time.Hour, Hooks: Hooks{Refused: func(Refused) { <-hold }}})
		time.Sleep(10 * time.Minute)
		if status := relay.Status(); !status.Alive() || !status.Ready() {
			t.Errorf("after some idleness the status is %+v", status)
		}
		s.locked(func() { s.hasRefused(2) })
		time.Sleep(stalledAfter - time.Second)
		if status := relay.Status(); !status.Alive() {
			t.Errorf("too early the status is %+v", status)
		}
		time.Sleep(2 * time.Second)
		if status := relay.Status(); status.Alive() || status.Ready() || !strings.Contains(status.Trouble, "has not turned for 1") {
			t.Errorf("while the loop stands still the status is %+v", status)
		}
		close(hold)
		time.Sleep(time.Second)
		if status := relay.Status(); !status.Alive() || !status.Ready() {
			t.Errorf("once it turns again the status is %+v", status)
		}
		stop()
	})
}
