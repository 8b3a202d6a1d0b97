package relay

import (
	"sync"
	"time"
)

// State is what a relay is doing.
type State string

// The states of a relay.
const (
	// Stopped: Run has not been called, or has returned.
	Stopped State = "stopped"
	// Campaigning: it wants to lead and does not: another leads, or the elector cannot be reached.
	Campaigning State = "campaigning"
	// Leading: it publishes, unless Status.Publishing says otherwise.
	Leading State = "leading"
)

// Status is a relay's state at one moment.
type Status struct {
	State State
	// Since is when State began.
	Since time.Time
	// Standby reports that a campaigning relay knows another to lead: all is well.
	Standby bool
	// Term numbers the terms of office of all relays of an outbox. 0 while not leading.
	Term int64
	// Publishing reports that a leading relay has the broker's ear. If not, Trouble says why.
	Publishing bool
	Trouble    string
	// Published counts the events acknowledged since the relay was made.
	Published int64
}

// Ready reports whether the relay does what can be expected of it: it publishes, or another one leads.
func (s Status) Ready() bool { return s.Publishing || s.Standby }

// Status returns what the relay is doing. It may be called at any time from anywhere.
func (r *Relay) Status() Status {
	s := r.status.get()
	if s.State == Campaigning {
		if candidate, ok := r.elector.(interface{ Standby() bool }); ok {
			s.Standby = candidate.Standby()
		}
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
