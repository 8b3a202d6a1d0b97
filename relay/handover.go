package relay

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// A leader that stops in order has had everything acknowledged that it sent, and everything settled. It says so, and its
// successor need not read back the stream.
//
// Invariant: if the checkpoint is handed over, no row in the table has been published to the stream, and every event settled
// before is stored before the fence at the checkpoint.
//
// Why:
//  1. core.inOrder: nothing is in flight, in doubt or unsettled, and no stray of a row in the table can arrive.
//  2. The fence is put up after that, and recorded by the term that put it up: a later term would have deposed it.
//  3. The fence is higher than all that was acknowledged, and the look after it finds the stream as it was. A broker loses
//     only a suffix, so when the fence was stored nothing before it was lost.
//  4. The successor's own fence finds this one as its former, still there: so nothing before it was lost since. Otherwise,
//     or if the stream is another one, it reads back as after a crash.
//  5. It overwrites the checkpoint before it publishes anything.
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

// handOverOf is the checkpoint of a leader that leaves in order. Relays of older versions take it for the two bounds that
// it consists of, which are true.
func handOverOf(fence stream.Fence) store.Checkpoint {
	return store.Checkpoint{Created: createdAt(fence), Sequence: fence.Sequence, Before: fence.Sequence + 1}
}

// isHandOver reports whether a checkpoint was handed over.
func isHandOver(c store.Checkpoint) bool { return c.Before > c.Sequence }

// createdAt is when the fence's stream was created, as precise as the table can keep it.
func createdAt(fence stream.Fence) time.Time { return fence.Created.Truncate(time.Microsecond) }

// handOver begins to hand over, once that makes sense, and reports whether it is under way.
func (t *term) handOver(ctx context.Context, now time.Time) bool {
	if t.handing == notHandedOver {
		t.handing = handedOver // Or never.
		if t.reader != nil && t.breaker == breakerClosed && !t.opening && t.lease.Valid() && t.core.inOrder(now) {
			t.handing = handingOver
			before, acked := t.detector.sight, t.detector.acked
			t.workers.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, handOverPatience)
				defer cancel()
				t.handed <- t.leaveInOrder(ctx, before, acked)
			})
		}
	}
	return t.handing == handingOver
}

// leaveInOrder puts up a last fence and records it, if the stream is as it was.
func (t *term) leaveInOrder(ctx context.Context, before stream.State, acked uint64) error {
	fence, err := t.reader.Fence(ctx, t.id, t.number)
	switch {
	case err != nil:
		return err
	case fence.Consumed:
		return nil // It is not read back anyway.
	case fence.Sequence <= acked:
		return fmt.Errorf("the stream has given the sequence %d, although it had acknowledged %d", fence.Sequence, acked)
	}
	sight, err := t.reader.Verify(ctx, before, acked)
	switch {
	case err != nil:
		return err
	case !sight.Created.Equal(fence.Created) || sight.Last < fence.Sequence:
		return fmt.Errorf("the stream has changed since its fence")
	}
	_, err = t.store.PutBack(ctx, nil, handOverOf(fence))
	return err
}

// left takes the answer to the handing over.
func (t *term) left(ctx context.Context, err error) {
	t.handing = handedOver
	if err != nil {
		t.log.DebugContext(ctx, "the next leader reads back the stream, since what this one leaves could not be recorded", slog.Any("error", err))
	}
}
