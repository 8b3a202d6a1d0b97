package relay

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// reach is what of its surroundings the relay reached when it last needed it.
type reach struct{ postgres, nats atomic.Bool }

// askedPostgres takes note of what came of a question to Postgres.
func (r *reach) askedPostgres(err error) { r.postgres.Store(postgresAnswers(err)) }

// askedNATS takes note of what came of opening the publisher, or of a fault that paused publishing.
func (r *reach) askedNATS(err error) { r.nats.Store(natsAnswers(err)) }

// postgresAnswers reports whether Postgres was reached, although the answer may have been that it cannot be used.
func postgresAnswers(err error) bool {
	for _, answer := range []error{
		store.ErrNoTable, store.ErrForeignTable, store.ErrOldSchema, store.ErrNewSchema, store.ErrPrivilege, store.ErrRowSecurity, store.ErrOtherStream,
	} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return err == nil
}

// natsAnswers reports whether JetStream was reached, although it may not take events.
func natsAnswers(err error) bool {
	if err == nil {
		return true
	}
	fault := stream.Classify(err)
	denied := new(stream.PermissionError)
	return fault.Code != 0 || fault.Fault == stream.FaultSetup && fault.Refused || errors.As(err, &denied)
}

// conditions are those of exactly-once delivery that the relay can tell: what [Config.Strict] asks for.
type conditions struct {
	mu   sync.Mutex      // Protects hold.
	hold map[string]bool // Never changed in place; nil before the stream was first looked at.
}

// Conditions that are not the stream's.
const (
	conditionArchive  = "archive"   // What the broker loses can be published again.
	conditionReadBack = "read_back" // The publisher reads the stream back.
	conditionLease    = "lease"     // The publisher asks for the lease before it writes.
)

// conditionsNow returns which conditions hold, given what a look at the stream has found.
func (r *Relay) conditionsNow(found []stream.Warning) map[string]bool {
	hold := map[string]bool{conditionArchive: r.store.Retains(), conditionReadBack: r.publisher.ReadsBack(), conditionLease: r.publisher.Guards()}
	for _, check := range stream.Checks() {
		hold[string(check)] = true
	}
	for _, w := range found {
		if w.Check != "" {
			hold[string(w.Check)] = false
		}
	}
	return hold
}

// lookedAtStream takes note of what came of opening the publisher.
func (r *Relay) lookedAtStream(found []stream.Warning, err error) {
	r.reach.askedNATS(err)
	if err != nil {
		return
	}
	hold := r.conditionsNow(found)
	r.conditions.mu.Lock()
	defer r.conditions.mu.Unlock()
	r.conditions.hold = hold
}

func (c *conditions) get() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hold
}
