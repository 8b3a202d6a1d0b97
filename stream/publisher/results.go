package publisher

import "github.com/go-outbox/go-outbox/stream"

// results are the outcomes and the trouble that Collect has not taken yet. They are
// guarded by Publisher.mu, except for signals.
type results struct {
	signals   chan struct{} // Has a token if there is something to take.
	done      []Outcome
	trouble   *stream.Error // Nil for none.
	abandoned *Outcome      // The outcome of events after a batch's failure, until Collect has told of it; nil for none.
}

// tell adds an outcome.
func (r *results) tell(o Outcome) {
	r.done = append(r.done, o)
	r.signal()
}

// troubled notes trouble that concerns no single event.
func (r *results) troubled(fault *stream.Error) {
	// Of several troubles, the one that a person must mend says most.
	if r.trouble == nil || r.trouble.Fault == stream.FaultWeather && fault.Fault == stream.FaultSetup {
		r.trouble = fault
	}
	r.signal()
}

// signal makes Outcomes tell that there is something to collect.
func (r *results) signal() {
	select {
	case r.signals <- struct{}{}:
	default: // Signalled already.
	}
}

// abandon reports whether a batch has failed and the caller has not collected that
// yet. Then the event must not be sent, and gets the outcome of the abandoned ones:
// its predecessor may have been in that batch, and must be stored before it.
func (r *results) abandon(seq int64) bool {
	if r.abandoned == nil {
		return false
	}
	outcome := *r.abandoned
	outcome.Seq = seq
	r.tell(outcome)
	return true
}

// take appends the outcomes, and returns the trouble.
func (r *results) take(to []Outcome) (outcomes []Outcome, trouble *stream.Error) {
	outcomes = append(to, r.done...)
	clear(r.done)
	r.done = r.done[:0]
	trouble, r.trouble = r.trouble, nil
	r.abandoned = nil
	return outcomes, trouble
}

// forget drops all that was not taken.
func (r *results) forget() { r.done, r.trouble, r.abandoned = nil, nil, nil }
