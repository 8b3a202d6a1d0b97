package relay

import (
	"context"
	"errors"
	"time"

	"github.com/go-outbox/go-outbox/stream"
)

// lossDetector verifies the stream from time to time: the broker may have lost events that it acknowledged. Besides, the
// stream's last sequence is one after which later events will be stored: see checkpoints.
type lossDetector struct {
	state     stream.State // What the stream looked like last.
	acked     uint64       // The highest sequence acknowledged.
	verifying bool         // The stream is being verified.
	void      bool         // The answer to that will be out of date: the stream has been read back meanwhile.
	due       time.Time    // When to verify the stream again.
	failed    bool         // The latest attempt to verify it had no answer.
	busy      bool         // Something has been published since that attempt began.
	epoch     uint64       // The present epoch when verifying began, if checkpoints was drained; otherwise 0.
}

const (
	// verifyBusy is how often the stream is verified while the relay publishes, and verifyIdle while it does not.
	verifyBusy = epochLength
	verifyIdle = 5 * time.Second
)

// verification is the result of an attempt to verify the stream.
type verification struct {
	state stream.State
	err   error
}

// acknowledged takes note of what the stream has acknowledged; highest is 0 if it told no sequence.
func (t *term) acknowledged(highest uint64, now time.Time) {
	if !t.detector.busy {
		t.detector.busy = true
		t.detector.due = now.Add(verifyBusy)
	}
	if highest > t.detector.acked {
		t.detector.acked = highest
		if t.core.checkpoints.drained() {
			t.core.checkpoints.seen(highest, now, t.stopping)
		}
	}
}

// verifyFirst reports whether nothing may be published before the stream has been verified, and makes that due. If the
// attempt to verify it fails, publishing goes on and tells why.
func (t *term) verifyFirst(now time.Time) bool {
	if t.reader == nil || t.breaker != breakerClosed || t.core.doubt || t.stopping || t.detector.failed || t.core.inFlight > 0 || t.core.ready.len() == 0 || !t.reader.VerifyFirst() {
		return false
	}
	t.detector.due = now
	return true
}

// verify has the stream verified when that is due.
func (t *term) verify(ctx context.Context, now time.Time) {
	if t.reader == nil || t.breaker != breakerClosed || t.core.doubt || t.detector.verifying || t.stopping || now.Before(t.detector.due) {
		return
	}
	t.detector.verifying, t.detector.busy, t.detector.epoch = true, false, 0
	if t.core.checkpoints.drained() {
		t.detector.epoch = t.core.checkpoints.epoch
	}
	before, acked := t.detector.state, t.detector.acked
	t.workers.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		state, err := t.reader.Verify(ctx, before, acked)
		t.verifications <- verification{state, err}
	})
}

// verified takes the result of the attempt under way.
func (t *term) verified(ctx context.Context, v verification) {
	now := time.Now()
	if t.detector.void {
		t.detector.verifying, t.detector.void = false, false
		return
	}
	t.detector.verifying = false
	t.detector.due = now.Add(verifyIdle)
	if t.detector.busy {
		t.detector.due = now.Add(verifyBusy)
	}
	var lost *stream.LostError
	t.detector.failed = v.err != nil
	switch {
	case errors.As(v.err, &lost):
		t.core.markInDoubt()
		t.pause(ctx, stream.Classify(lost), now)
	case v.err != nil: // Whatever is wrong, publishing will tell.
	default:
		t.detector.state = v.state
		if t.detector.epoch == t.core.checkpoints.epoch && t.core.checkpoints.drained() {
			t.core.checkpoints.seen(v.state.Last, now, false)
		}
	}
}
