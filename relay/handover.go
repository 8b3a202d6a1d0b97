package relay

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream/history"
)

// When a leader stops gracefully, everything it sent has been acknowledged and settled. It hands over, that is, it records a
// checkpoint that says so, and its successor need not read the stream back.
//
// Invariant: if the checkpoint is handed over, no row in the table is stored in the stream, and every event settled before
// is stored before the fence at the checkpoint.
//
// Why:
//  1. core.clean: nothing is in flight, in doubt or unsettled, and no stray of a row in the table can arrive.
//  2. The fence is put up after that, and recorded by the term that put it up: a later term would have deposed it.
//  3. The fence's sequence is higher than every sequence acknowledged, and verifying the stream after the fence finds it
//     unchanged. A broker loses only a suffix of the stream, so nothing before the fence was lost when it was stored.
//  4. The successor's own fence finds this fence as the former one, still there: so nothing before it was lost since.
//     Otherwise, or if the stream is another one, the successor reads the stream back as after a crash.
//  5. The successor overwrites the checkpoint before it publishes anything.
//
// Test: TestExplore, TestHandOver.

// handOverPatience bounds handing over: a successor that reads back waits for less than one that waits for this.
const handOverPatience = 500 * time.Millisecond

// handing is how far the handing over is.
type handing int

const (
	notHandedOver handing = iota
	handingOver
	handedOver
)

// handOverOf is the checkpoint of a leader that hands over. Relays of older versions read it as two bounds, and both of
// these are true.
func handOverOf(fence history.Fence) store.Checkpoint {
	return store.Checkpoint{Created: createdAt(fence), Sequence: fence.Sequence, Before: fence.Sequence + 1}
}

// isHandOver reports whether a checkpoint was handed over.
func isHandOver(c store.Checkpoint) bool { return c.Before > c.Sequence }

// createdAt is when the fence's stream was created, as precise as the table can keep it.
func createdAt(fence history.Fence) time.Time { return fence.Created.Truncate(time.Microsecond) }

// handOver reports whether handing over is to begin now, and whether it is under way. Valid tells that the lease is.
func (c *core) handOver(valid bool, now time.Time) (begin, underWay bool) {
	if c.handing == notHandedOver {
		c.handing = handedOver // Or never.
		if c.readsBack && c.circuit.breaker == breakerClosed && !c.circuit.opening && valid && c.clean(now) {
			c.handing, begin = handingOver, true
		}
	}
	return begin, c.handing == handingOver
}

// handOver begins to hand over, once that makes sense, and reports whether it is under way.
func (t *term) handOver(ctx context.Context, now time.Time) bool {
	begin, underWay := t.core.handOver(t.lease.Valid(), now)
	if begin {
		before, acked := t.core.detector.state, t.core.detector.acked
		t.start(func() {
			ctx, cancel := context.WithTimeout(ctx, handOverPatience)
			defer cancel()
			t.handed <- t.recordHandOver(ctx, before, acked)
		})
	}
	return underWay
}

// recordHandOver puts up a last fence and records it, if the stream has not changed.
func (t *term) recordHandOver(ctx context.Context, before history.State, acked uint64) error {
	session, fence, err := t.publisher.Begin(ctx, t.id, t.number, false)
	switch {
	case err != nil:
		return err
	case fence.Consumed:
		return nil // It is not read back anyway.
	case fence.Sequence <= acked:
		return fmt.Errorf("the stream has given the sequence %d, although it had acknowledged %d", fence.Sequence, acked)
	}
	state, err := session.Verify(ctx, before, acked)
	switch {
	case err != nil:
		return err
	case !state.Created.Equal(fence.Created) || state.Last < fence.Sequence:
		return fmt.Errorf("the stream has changed since its fence")
	}
	_, err = t.inOutbox.PutBack(ctx, nil, handOverOf(fence))
	return err
}

// left takes the answer to the handing over.
func (t *term) left(ctx context.Context, err error) {
	t.core.handing = handedOver
	if err != nil {
		t.log.DebugContext(ctx, "the next leader reads back the stream, since what this one leaves could not be recorded", slog.Any("error", err))
	}
}
