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
	"github.com/go-outbox/go-outbox/stream/history"
)

// The stream is the truth: an event is stored if the stream holds it, and otherwise not. So at the beginning of a term, and
// after an unknown outcome, the relay puts up a fence, after which no ordered batch that was sent before can begin, and reads
// the stream back up to the fence. It depends neither on a clock nor on the stream's duplicate window. Only the next
// checkpoint waits for a time: see checkpoints.

const (
	// settleChunk is how many events found in the stream are settled in one round trip, and putBackChunk how many lost events
	// are put back in one. ChunkBytes bounds the bytes of their payloads in both.
	settleChunk  = 2000
	putBackChunk = 20_000
	chunkBytes   = 4 << 20
	// recoveryPatience bounds putting up a fence, and the time between two messages that are read.
	recoveryPatience = 5 * time.Second
)

// recovery is the result of reading the stream back.
type recovery struct {
	Recovered

	session    Session // What is published after the fence, if nothing failed.
	fence      history.Fence
	checkpoint store.Checkpoint
	kept       []store.Ref // Events that the stream holds and whose rows the database does not let go.
	clean      bool        // The former leader handed over, so there was nothing to read.
	err        error       // A *stream.Error if the stream failed; any other error is the outbox's.
}

// recover starts reading the stream back when that is due.
func (t *term) recover(ctx context.Context) {
	if !t.lease.Valid() || !t.core.readBack() {
		return
	}
	checkpoint, first := t.checkpoint, t.first
	t.start(func() {
		start := time.Now()
		r := t.readBack(ctx, checkpoint, first)
		r.Took = time.Since(start)
		t.read <- r
	})
}

// recovered takes the result of the recovery under way.
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
	t.session, t.checkpoint, t.first = r.session, r.checkpoint, false
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
	t.proceed(ctx)
	return nil
}

// readBack makes the table agree with the stream.
func (t *term) readBack(ctx context.Context, last store.Checkpoint, first bool) (r recovery) {
	r.err = func() error {
		patient, cancel := context.WithTimeout(ctx, recoveryPatience)
		defer cancel()
		var err error
		if r.session, r.fence, err = t.publisher.Begin(patient, t.id, t.number, first); err != nil {
			return err
		}
		created := createdAt(r.fence)
		r.checkpoint = store.Checkpoint{Created: created, Sequence: r.fence.Sequence, Before: r.fence.Sequence}
		if first || r.fence.Consumed {
			_, err := t.inOutbox.PutBack(ctx, nil, r.checkpoint)
			return err
		}
		known := last.Created.Equal(created)
		if isHandOver(last) {
			if r.clean = known && r.fence.Former == last.Sequence; r.clean {
				_, err := t.inOutbox.PutBack(ctx, nil, r.checkpoint)
				return err
			}
			last.Before = last.Sequence
		}
		if !known {
			last.Before = 0 // It is another stream than the last one: nothing is known about it.
		}
		archived, err := t.inOutbox.Archive(ctx, last.Before)
		if err != nil {
			return err
		}
		lost, kept, err := t.compare(ctx, &r, last, archived, known)
		if err != nil {
			return err
		}
		// Invariant: if sure is set, no event that was not compared is lost.
		// Why:
		//  1. A broker loses only a suffix of the stream. So it is enough that one message is still there that was stored
		//     after every event that was not compared.
		//  2. Every message from the checkpoint on was stored after them: an event sent in an epoch is not stored after the
		//     beginning of the epoch after the next (see checkpoints).
		//  3. Such a message is any archived event that is still there, or the last fence.
		sure := kept >= last.Sequence || r.fence.Former == last.Sequence
		if !sure && last.Before > 0 {
			all, err := t.inOutbox.Archive(ctx, 0)
			if err != nil {
				return err
			}
			if len(all) > len(archived) {
				archived = all
				if lost, _, err = t.compare(ctx, &r, last, archived, known); err != nil {
					return err
				}
			}
		}
		// A fence's sequence was always higher than all that had been seen before. If some of the archived events are still in
		// the stream, the missing ones were stored after these, and so they are in the archive.
		gone := !last.Created.IsZero() && (!known || r.fence.Sequence <= last.Sequence) && kept == 0
		r.Deeper = gone && len(lost) == 0 || !sure && !intact(archived, lost)
		return t.restore(ctx, &r, lost)
	}()
	return r
}

// compare settles the rows whose events the stream holds after a sequence, or after the archived events if they begin
// earlier. It returns the archived events that the stream should have and has not, and the highest sequence of those that
// it has.
func (t *term) compare(ctx context.Context, r *recovery, last store.Checkpoint, archived []store.Archived, known bool) (lost []store.Archived, kept uint64, err error) {
	if r.fence.Gaps {
		archived = nil
	}
	missing, above := make(map[uuid.UUID]struct{}, len(archived)), last.Before
	// Events that the stream's limits have removed at its beginning are not lost.
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
	if last.Created.IsZero() && kept > 0 {
		known = true // The record is gone, but this stream has an archived event: the archive's sequences are its own.
	}
	var newest map[int64]int64
	if r.fence.Holes {
		newest = newestOf(archived, func(a store.Archived) bool {
			_, gone := missing[a.ID]
			return !gone && expected(a)
		})
	}
	for _, a := range archived {
		if _, ok := missing[a.ID]; ok && expected(a) && !older(newest, a) {
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

// newestOf returns, for each aggregate, the highest seq of its archived events that the stream has. An event of the
// aggregate with a lower seq was stored earlier. If such an event is missing from a stream that has holes, the broker has not
// lost it, since a broker loses only a suffix: a person removed it, or a limit on messages per subject did that is no longer
// set. Publishing it again would store it after newer events.
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

// intact reports whether no event of the two oldest archived epochs is lost. Then no event published before them is lost.
// It takes two, since the events of two neighbouring epochs may be stored among each other.
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

// restore puts the lost events back into the outbox, and records the checkpoint with the last of them.
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
			r.checkpoint = t.checkpoint // The events whose rows are kept are to be found again.
		default:
			checkpoint = r.checkpoint
		}
		back, err := t.inOutbox.PutBack(ctx, chunk, checkpoint)
		r.Lost += back
		if err != nil || len(lost) == 0 {
			return err
		}
	}
}

// scan reads the stream after the sequence above, up to the fence, settles the events that it finds, and deletes them from
// missing. It returns the highest sequence of those that it deleted.
func (t *term) scan(ctx context.Context, above uint64, r *recovery, missing map[uuid.UUID]struct{}) (kept uint64, err error) {
	reading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(recoveryPatience, func() { cancel(errStalled) })
	defer stalled.Stop()
	chunk, size, before := make([]store.Ref, 0, settleChunk), 0, above
	settle := func(upTo uint64) error {
		stalled.Stop() // Meanwhile it is the outbox that takes its time.
		settled, kept, err := t.inOutbox.Settle(ctx, chunk, before)
		r.Found += settled
		r.kept = append(r.kept, kept...)
		chunk, size, before = chunk[:0], 0, upTo
		return err
	}
	err = r.session.Scan(reading, above, func(found history.Found) error {
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
