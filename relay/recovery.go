package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// The stream is the truth: what it holds is published, what it does not hold is not. So a term begins, and goes on
// after an open outcome, by putting up a fence, after which nothing comes any more that was sent before, and reading
// back what is stored up to there. Neither a clock nor the stream's duplicate window has a part in that; only the next
// checkpoint waits for a time, see checkpoints.

const (
	// settleChunk is how many events found in the stream are settled in one round trip, putBackChunk how many lost ones
	// are put back, and chunkBytes what their payloads sum up to in either.
	settleChunk  = 2000
	putBackChunk = 20_000
	chunkBytes   = 4 << 20
	// recoveryPatience bounds putting up a fence, and the time between two messages that are read.
	recoveryPatience = 5 * time.Second
)

// recovery is what became of reading back the stream.
type recovery struct {
	Recovered

	fence      stream.Fence
	checkpoint store.Checkpoint
	kept       []store.Ref // Events that the stream holds and the database does not let go.
	clean      bool        // The former leader handed over, so there was nothing to read.
	err        error       // An *stream.Error if the stream failed, and otherwise the outbox.
}

// recover has the stream read back when that is due.
func (t *term) recover(ctx context.Context) {
	if t.breaker == breakerOpen || t.opening || t.stopping || !t.lease.Valid() || !t.core.recover() {
		return
	}
	checkpoint, first := t.checkpoint, t.first
	t.workers.Go(func() {
		start := time.Now()
		r := t.readBack(ctx, checkpoint, first)
		r.Took = time.Since(start)
		t.read <- r
	})
}

// recovered takes the answer to the recovery under way.
func (t *term) recovered(ctx context.Context, r recovery) error {
	t.core.recovered(r.fence.Sequence, r.err == nil, r.kept, r.clean, time.Now())
	if errors.Is(r.err, store.ErrKept) {
		t.pause(ctx, keptFault(r.err), time.Now())
		return nil
	}
	if r.err != nil {
		var fault *stream.Error
		if !errors.As(r.err, &fault) {
			return &setbackError{r.err}
		}
		t.pause(ctx, fault, time.Now())
		return nil
	}
	if r.fence.Warning != "" {
		t.warn(ctx, r.fence.Warning)
	}
	t.checkpoint, t.first = r.checkpoint, false
	t.blind.since = time.Time{} // What goes wrong from here on is news.
	t.detector = lossDetector{verifying: t.detector.verifying, void: t.detector.verifying}
	r.Skipped, t.skipped = t.skipped, false
	if r.Found+r.Lost > 0 {
		level := slog.LevelInfo
		if r.Lost > 0 && !r.Skipped {
			level = slog.LevelError
		}
		t.log.LogAttrs(ctx, level, "read back the stream", slog.Int("read", r.Read), slog.Int("stored_already", r.Found),
			slog.Int("lost_by_the_broker_and_published_again", r.Lost), slog.Duration("took", r.Took))
	}
	if r.Deeper {
		t.log.ErrorContext(ctx, "the broker has lost more than the archive has: what was published before that, if anything, is lost for good")
	}
	t.hooks.Recovered(r.Recovered)
	if t.breaker == breakerHalfOpen && !t.core.doubt {
		t.proceed(ctx)
	}
	return nil
}

// readBack makes the table agree with the stream.
func (t *term) readBack(ctx context.Context, last store.Checkpoint, first bool) (r recovery) {
	r.err = func() error {
		patient, cancel := context.WithTimeout(ctx, recoveryPatience)
		defer cancel()
		fence := t.reader.Fence
		if first {
			fence = t.reader.Unfenced
		}
		var err error
		if r.fence, err = fence(patient, t.id, t.number); err != nil {
			return err
		}
		created := createdAt(r.fence)
		r.checkpoint = store.Checkpoint{Created: created, Sequence: r.fence.Sequence, Before: r.fence.Sequence}
		if first || r.fence.Consumed {
			_, err := t.store.PutBack(ctx, nil, r.checkpoint)
			return err
		}
		known := last.Created.Equal(created)
		if isHandOver(last) {
			if r.clean = known && r.fence.Former == last.Sequence; r.clean {
				_, err := t.store.PutBack(ctx, nil, r.checkpoint)
				return err
			}
			last.Before = last.Sequence
		}
		if !known {
			last.Before = 0 // Of another stream than the last one nothing is known.
		}
		archived, err := t.store.Archive(ctx, last.Before)
		if err != nil {
			return err
		}
		lost, kept, err := t.compare(ctx, &r, last.Before, archived, known)
		if err != nil {
			return err
		}
		// A broker loses only a suffix of the stream. So if a message is still there that was stored after everything that
		// was not compared, nothing of that is lost. Each message from the checkpoint on was: what was sent in an epoch is
		// not stored after the beginning of the next but one (see checkpoints). Any archived event will do, and so will the
		// last fence.
		sure := kept >= last.Sequence || r.fence.Former == last.Sequence
		if !sure && last.Before > 0 {
			all, err := t.store.Archive(ctx, 0)
			if err != nil {
				return err
			}
			if len(all) > len(archived) {
				archived = all
				if lost, _, err = t.compare(ctx, &r, last.Before, archived, known); err != nil {
					return err
				}
			}
		}
		// A fence always stood higher than what had been seen before. Where archived events are left, whatever is missing
		// was after them, and so in the archive.
		gone := !last.Created.IsZero() && (!known || r.fence.Sequence <= last.Sequence) && kept == 0
		r.Deeper = gone && len(lost) == 0 || !sure && !intact(archived, lost)
		return t.restore(ctx, &r, lost)
	}()
	return r
}

// compare settles what the stream holds above a sequence, or after the archived events, and is still in the table. It
// returns which of those events the stream has not, though it should, and the highest sequence of those that it has.
func (t *term) compare(ctx context.Context, r *recovery, above uint64, archived []store.Archived, known bool) (lost []store.Archived, kept uint64, err error) {
	if r.fence.Gaps {
		archived = nil
	}
	missing := make(map[uuid.UUID]struct{}, len(archived))
	// What the stream itself has removed at its beginning is not lost.
	expected := func(a store.Archived) bool { return !known || a.After+1 >= r.fence.First }
	for _, a := range archived {
		above = min(above, a.After)
		if expected(a) {
			missing[a.ID] = struct{}{}
		}
	}
	r.Read, r.kept = 0, nil
	if kept, err = t.scan(ctx, above, r, missing); err != nil {
		return nil, 0, err
	}
	var newest map[int64]int64
	if r.fence.Holes {
		newest = newestOf(archived, func(a store.Archived) bool {
			_, gone := missing[a.ID]
			return !gone && expected(a)
		})
	}
	for _, a := range archived {
		if _, ok := missing[a.ID]; ok && !older(newest, a) {
			lost = append(lost, a)
		}
	}
	return lost, kept, nil
}

// older reports whether the stream has a newer event of the same aggregate.
func older(newest map[int64]int64, a store.Archived) bool {
	seq, ok := newest[a.Aggregate]
	return ok && a.Seq < seq
}

// newestOf returns the highest seq of each aggregate that the stream has of what is archived. An event of the aggregate
// with a lower seq was stored before that one. A broker loses only a suffix: so if it is missing from a stream that has
// holes, a person removed it, or a limit on the messages of a subject did that is not there any more. To publish it again
// would put it after newer events.
func newestOf(archived []store.Archived, stored func(store.Archived) bool) map[int64]int64 {
	newest := make(map[int64]int64)
	for _, a := range archived {
		if !stored(a) {
			continue
		}
		if seq, ok := newest[a.Aggregate]; !ok || seq < a.Seq { // Any number may be a seq.
			newest[a.Aggregate] = a.Seq
		}
	}
	return newest
}

// intact reports whether nothing is lost of the two oldest epochs of what is archived, which are stored between each
// other: then nothing is lost of what was published before them.
func intact(archived, lost []store.Archived) bool {
	first, second := uint64(math.MaxUint64), uint64(math.MaxUint64)
	for _, a := range archived {
		switch {
		case a.After < first:
			first, second = a.After, first
		case a.After > first && a.After < second:
			second = a.After
		}
	}
	return !slices.ContainsFunc(lost, func(a store.Archived) bool { return a.After <= second })
}

// restore puts back what was lost, and records the checkpoint with the last of it.
func (t *term) restore(ctx context.Context, r *recovery, lost []store.Archived) error {
	for {
		n, size := 0, 0
		for n < len(lost) && n < putBackChunk && size < chunkBytes {
			size += lost[n].Size
			n++
		}
		chunk := lost[:n]
		lost = lost[n:]
		checkpoint := store.Checkpoint{}
		switch {
		case len(lost) > 0:
		case len(r.kept) > 0:
			r.checkpoint = t.checkpoint // What is kept is to be found again.
		default:
			checkpoint = r.checkpoint
		}
		back, err := t.store.PutBack(ctx, chunk, checkpoint)
		r.Lost += back
		if err != nil || len(lost) == 0 {
			return err
		}
	}
}

// scan reads the stream from above up to the fence, settles what it finds, and strikes it off missing. It returns the
// highest sequence of what it struck off.
func (t *term) scan(ctx context.Context, above uint64, r *recovery, missing map[uuid.UUID]struct{}) (kept uint64, err error) {
	reading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(recoveryPatience, func() { cancel(errStalled) })
	defer stalled.Stop()
	chunk, size, before := make([]store.Ref, 0, settleChunk), 0, above
	settle := func(upTo uint64) error {
		stalled.Stop() // Meanwhile it is the outbox that takes its time.
		settled, kept, err := t.store.Settle(ctx, chunk, before)
		r.Found += settled
		r.kept = append(r.kept, kept...)
		chunk, size, before = chunk[:0], 0, upTo
		return err
	}
	err = t.reader.Scan(reading, above, r.fence, func(found stream.Found) error {
		stalled.Reset(recoveryPatience)
		if !found.Event {
			return nil // Somebody else's.
		}
		ref := store.Ref{Seq: found.Seq, ID: found.ID}
		if _, ok := missing[found.ID]; ok {
			delete(missing, found.ID)
			kept = max(kept, found.Stored)
		}
		r.Read++
		size += found.Size
		if chunk = append(chunk, ref); len(chunk) < cap(chunk) && size < chunkBytes {
			return nil
		}
		defer stalled.Reset(recoveryPatience)
		return settle(found.Stored)
	})
	if err == nil && len(chunk) > 0 {
		err = settle(r.fence.Sequence)
	}
	return kept, err
}

var errStalled = fmt.Errorf("no progress for %v", recoveryPatience)
