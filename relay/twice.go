package relay

import (
	"context"
	"log/slog"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream/history"
)

// A stream that has an event's id already does not store the event, and says so. Either it has this very event, from an
// attempt whose answer was lost; or two rows have one id, and only the first of them is in the stream. The relay reads the
// stored message to tell the two cases apart.
//
// The second row is settled like the first, since the stream will never take it. It is not archived: the stream does not have
// it, so the broker would seem to have lost it.

// double is a row whose id the stream had already.
type double struct {
	ref      store.Ref
	epoch    uint64 // The epoch in which it was sent.
	sequence uint64 // The sequence of the message that has its id.
}

// original is the message that the stream has under a double's id.
type original struct {
	double

	found history.Found
	err   error
}

// Twice is what [Hooks.Twice] is told: two rows have one id, and the stream has stored the first only.
type Twice struct {
	// Row is the one that the stream does not have.
	Row store.Ref
	// First is the seq of the row that it has, at Sequence.
	First    int64
	Sequence uint64
}

// findTries is how many attempts may fail to read the message that the stream has under a double's id.
const findTries = 3

// examine returns the double that is to be examined now, if there is one. The caller reports the result through examined.
func (c *core) examine() (d double, due bool) {
	if c.examining || c.stopping || c.circuit.breaker != breakerClosed || len(c.doubles) == 0 {
		return double{}, false
	}
	c.examining = true
	return c.doubles[0], true
}

// examined takes the result of examining a double, and reports whether the stream has another row with its id.
func (c *core) examined(o original, now time.Time) (twice bool) {
	c.examining = false
	if len(c.doubles) == 0 || c.doubles[0] != o.double {
		return false // It has been read back meanwhile.
	}
	if o.err != nil && c.findings < findTries {
		c.findings++
		return false
	}
	c.findings = 0
	c.doubles = c.doubles[1:]
	// If the message cannot be read, the double counts as the same event: it nearly always is.
	twice = o.err == nil && o.found.Event && o.found.Seq != o.ref.Seq
	c.resolvedDouble(o.double, twice, now)
	return twice
}

// examine has the message read whose id the next double has.
func (t *term) examine(ctx context.Context) {
	d, due := t.core.examine()
	if !due {
		return
	}
	session := t.session
	t.start(func() {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		found, err := session.Find(ctx, d.sequence)
		t.originals <- original{d, found, err}
	})
}

// examined takes the result of examining a double.
func (t *term) examined(ctx context.Context, o original, now time.Time) {
	if !t.core.examined(o, now) {
		return
	}
	t.log.LogAttrs(ctx, slog.LevelWarn, "two rows have one id: the stream has stored the first and takes the second for a repetition; give each event an id of its own",
		slog.String("id", o.ref.ID.String()), slog.Int64("seq", o.ref.Seq), slog.Int64("stored_seq", o.found.Seq), slog.Uint64("stored_at", o.sequence))
	t.hooks.Twice(Twice{Row: o.ref, First: o.found.Seq, Sequence: o.sequence})
}
