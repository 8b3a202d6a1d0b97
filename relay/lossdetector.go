package relay

import (
	"context"
	"errors"
	"time"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
)

// lossDetector verifies the stream from time to time: the broker may have lost events that it acknowledged. Besides, the
// stream's last sequence is one after which later events will be stored: see checkpoints.
type lossDetector struct {
	state     history.State // What the stream looked like last.
	acked     uint64        // The highest sequence acknowledged.
	verifying bool          // The stream is being verified.
	void      bool          // The answer to that will be out of date: the stream has been read back meanwhile.
	due       time.Time     // When to verify the stream again.
	failed    bool          // The latest attempt to verify it had no answer.
	busy      bool          // Something has been published since that attempt began.
	epoch     uint64        // The present epoch when verifying began, if checkpoints was drained; otherwise 0.
}

const (
	// verifyBusy is how often the stream is verified while the relay publishes, and verifyIdle while it does not.
	verifyBusy = epochLength
	verifyIdle = 5 * time.Second
)

// verification is the result of an attempt to verify the stream.
type verification struct {
	state history.State
	err   error
}

// acknowledged takes note of what the stream has acknowledged; highest is 0 if it told no sequence.
func (c *core) acknowledged(highest uint64, now time.Time) {
	d := &c.detector
	if !d.busy {
		d.busy = true
		d.due = now.Add(verifyBusy)
	}
	if highest > d.acked {
		d.acked = highest
		if c.checkpoints.drained() {
			c.checkpoints.seen(highest, now, c.stopping)
		}
	}
}

// mayVerify reports whether the stream may be verified, as soon as it is due.
func (c *core) mayVerify() bool {
	return c.readsBack && c.circuit.breaker == breakerClosed && !c.doubt && !c.detector.verifying && !c.stopping
}

// verifyFirst reports whether nothing may be published before the stream has been verified, and makes that due. Asks is what
// the publisher says about it. If the attempt to verify the stream fails, publishing goes on and tells why.
func (c *core) verifyFirst(asks func() bool, now time.Time) bool {
	if !c.readsBack || c.circuit.breaker != breakerClosed || c.doubt || c.stopping || c.detector.failed || c.inFlight > 0 || c.ready.len() == 0 || !asks() {
		return false
	}
	c.detector.due = now
	return true
}

// verify reports whether the stream is to be verified now. The caller reports the result through verified.
func (c *core) verify(now time.Time) bool {
	d := &c.detector
	if !c.mayVerify() || now.Before(d.due) {
		return false
	}
	d.verifying, d.busy, d.epoch = true, false, 0
	if c.checkpoints.drained() {
		d.epoch = c.checkpoints.epoch
	}
	return true
}

// verified takes the result of the attempt under way. If the broker has lost something, or somebody has changed the stream so
// that it cannot be used, it returns what the caller is to pause for.
func (c *core) verified(v verification, now time.Time) (trouble *stream.Error) {
	d := &c.detector
	d.verifying = false
	if d.void {
		d.void = false
		return nil
	}
	d.due = now.Add(verifyIdle)
	if d.busy {
		d.due = now.Add(verifyBusy)
	}
	d.failed = v.err != nil
	lost, unfit := (*stream.LostError)(nil), (*stream.UnfitError)(nil)
	switch {
	case errors.As(v.err, &lost), errors.As(v.err, &unfit):
		c.markInDoubt()
		trouble = stream.Classify(v.err)
	case v.err != nil: // Whatever is wrong, publishing will tell.
	default:
		d.state = v.state
		if d.epoch == c.checkpoints.epoch && c.checkpoints.drained() {
			c.checkpoints.seen(v.state.Last, now, false)
		}
	}
	return trouble
}

// forget takes note that the stream has been read back: what it looked like before does not count any more.
func (d *lossDetector) forget() { *d = lossDetector{verifying: d.verifying, void: d.verifying} }

// verify has the stream verified when that is due.
func (t *term) verify(ctx context.Context, now time.Time) {
	if !t.core.verify(now) {
		return
	}
	session, before, acked := t.session, t.core.detector.state, t.core.detector.acked
	t.start(func() {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		state, err := session.Verify(ctx, before, acked)
		t.verifications <- verification{state, err}
	})
}

// verified takes the result of the attempt under way.
func (t *term) verified(ctx context.Context, v verification) {
	now := time.Now()
	if trouble := t.core.verified(v, now); trouble != nil {
		t.pause(ctx, trouble, now)
	}
}
