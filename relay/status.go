package relay

import (
	"fmt"
	"sync"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// State is what a relay is doing.
type State string

// The states of a relay.
const (
	// Stopped: Run has returned, or is about to.
	Stopped State = "stopped"
	// Campaigning: it wants to lead and does not: it has not been run yet, another leads, or something that it needs cannot be
	// reached.
	Campaigning State = "campaigning"
	// Leading: it publishes, unless Status.Publishing says otherwise.
	Leading State = "leading"
)

// Status is a relay's state at one moment.
type Status struct {
	State State
	// Since is when State began.
	Since time.Time
	// Standby reports that a campaigning relay knows that another one leads. Fit reports that it could lead itself: it has
	// reached Postgres, the broker and the stream just now. If both are set, all is well.
	Standby, Fit bool
	// Term is the number of the term: the terms of all relays of an outbox are numbered together. 0 while not leading.
	Term int64
	// Publishing reports that a leading relay can publish: the circuit breaker is closed.
	Publishing bool
	// Trouble says why the relay is not ready. It is empty if it is.
	Trouble string
	// Stalled is for how long the relay's loop has not turned, if that is too long: then the relay hangs and has to be
	// restarted. Otherwise it is 0.
	Stalled time.Duration
	// Published counts the events acknowledged since the relay was made.
	Published int64

	// Pause is the one that a person has ordered: nothing is published until it ends, and the relay is as ready as it would be
	// without. Nil for none.
	Pause *store.Pause
	// Postgres and NATS report that the relay reached them when it last needed them: a leader at each round trip and at each
	// event, any other relay every two seconds.
	Postgres, NATS bool
	// Listening reports that a leader hears of new events at once; otherwise it polls. It is known of an outbox that is a
	// *store.Outbox.
	Listening bool
	// Conditions are those of exactly-once delivery, by name, and whether they held when the relay last connected to NATS: see
	// stream.Checks. Beside the stream's they are "archive", "read_back" and "lease". The map is nil before that, and not to be
	// changed.
	Conditions map[string]bool
}

// Ready reports whether the relay publishes, or could publish while another one leads.
func (s Status) Ready() bool { return s.Stalled == 0 && (s.Publishing || s.Standby && s.Fit) }

// Alive reports whether the relay runs and its loop turns.
func (s Status) Alive() bool { return s.State != Stopped && s.Stalled == 0 }

// Status returns what the relay is doing. It may be called at any time from anywhere.
func (r *Relay) Status() Status {
	s := r.status.get()
	s.Stalled = r.watchdog.stalled(time.Now())
	s.Pause = r.store.Paused()
	s.Postgres, s.NATS, s.Conditions = r.reach.postgres.Load(), r.reach.nats.Load(), r.conditions.get()
	if l, ok := r.store.(interface{ Listening() bool }); ok {
		s.Listening = s.State == Leading && l.Listening()
	}
	if s.State == Campaigning {
		s.Standby = r.elector.Standby()
		if s.Trouble == "" {
			s.Trouble = r.elector.Trouble()
		}
		if s.Trouble == "" && !s.Ready() {
			s.Trouble = "it has not been elected yet"
		}
	}
	if s.Stalled > 0 {
		s.Trouble = fmt.Sprintf("its loop has not turned for %v", s.Stalled.Round(time.Second))
	}
	return s
}

// status is the current Status.
type status struct {
	mu      sync.Mutex // Protects current.
	current Status
}

func (s *status) get() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// set begins a new state; counters go on.
func (s *status) set(to Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.Published = s.current.Published
	s.current = to
}

func (s *status) published(events int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.Published += int64(events)
}

// scouted notes whether a relay that does not lead could, and why not.
func (s *status) scouted(fit bool, trouble string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.State == Campaigning {
		s.current.Fit, s.current.Trouble = fit, trouble
	}
}

func (s *status) publishing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.Publishing, s.current.Trouble = true, ""
}

func (s *status) paused(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.Publishing, s.current.Trouble = false, reason
}
