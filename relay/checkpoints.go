package relay

import "time"

// checkpoints keeps the sequences of the stream after which the rows that were sent are stored, so that little of the stream
// has to be read back. It divides sending into epochs. Each epoch begins with a sequence that the stream was seen to have
// given, start(e). Once all rows of the earlier epochs are settled, start(e) is the new checkpoint.
//
// Invariant: an event sent in epoch e is stored after start(e), and not after start(e+2).
//
// Why:
//  1. The stream had given start(e) before anything was sent in e.
//  2. Epoch e+2 begins with a sequence that the stream was seen to have given after all rows sent in e had been settled.
//     They were stored by then.
//
// So two epochs of the stream, from the beginning of an archived event's epoch on, show whether the event is still there.
//
// Test: TestExplore.
type checkpoints struct {
	epoch      uint64    // The present epoch, from 1 on.
	start      [2]uint64 // The sequences with which the present epoch and the one before it began, by parity.
	unsettled  [2]int    // Rows sent in these two epochs that are not settled.
	began      time.Time // When the present epoch began.
	rows       int       // How many rows were sent in the present epoch.
	from       time.Time // Until then strays may arrive, unless clear is set.
	clear      bool      // No row in the table has a stray that may still arrive: see restart.
	unrecorded bool      // The present epoch's start is not the checkpoint yet.
	clock      clock
}

// clock says whether the times have passed that checkpoints waits for. The exploration has a clock of its own.
type clock interface {
	// passed reports whether an epoch that began then has lasted long enough.
	passed(began time.Time, length time.Duration, now time.Time) bool
	// landed reports whether no stray can arrive any more, given the time until when one may.
	landed(until, now time.Time) bool
}

// realClock goes by the time.
type realClock struct{}

func (realClock) passed(began time.Time, length time.Duration, now time.Time) bool {
	return now.Sub(began) >= length
}

func (realClock) landed(until, now time.Time) bool { return !now.Before(until) }

const (
	// epochLength is how often the checkpoint moves. Each move costs an update of the table with the relay's state. After a
	// crash at most two epochs are read back.
	epochLength = time.Second
	// shortEpoch is the length of an epoch in which at least epochRows rows were sent. Reading it back takes as long as
	// reading back a second in which fewer were sent.
	shortEpoch = 250 * time.Millisecond
	epochRows  = 2500
)

// after returns a sequence after which everything sent in this epoch is stored.
func (c *checkpoints) after(epoch uint64) uint64 { return c.start[epoch&1] }

// sent notes that a row is being sent. It may have been before, and refused.
func (c *checkpoints) sent(it *item) {
	c.unsent(it)
	it.epoch = c.epoch
	c.rows++
	c.unsettled[it.epoch&1]++
}

// unsent notes that a row is certain not to be in the stream, or that the relay lets go of it for another reason than that
// it is settled.
func (c *checkpoints) unsent(it *item) {
	if it.epoch > 0 {
		c.unsettled[it.epoch&1]--
		it.epoch = 0
	}
}

// settled notes that rows of an epoch are being settled: if that fails, the term ends.
func (c *checkpoints) settled(epoch uint64, rows int) { c.unsettled[epoch&1] -= rows }

// drained reports whether a new epoch may begin with a sequence that the stream is seen to have given from now on.
func (c *checkpoints) drained() bool { return !c.unrecorded && c.unsettled[(c.epoch-1)&1] == 0 }

// seen takes note of a sequence that the stream was seen to have given, after the present epoch had begun and when drained
// was true. Early lets a new epoch begin before its time.
func (c *checkpoints) seen(sequence uint64, now time.Time, early bool) {
	length := epochLength
	if c.rows >= epochRows {
		length = shortEpoch
	}
	if sequence <= c.after(c.epoch) || !c.free(now) || !early && !c.clock.passed(c.began, length, now) {
		return
	}
	c.epoch++
	c.start[c.epoch&1] = sequence
	c.began, c.rows, c.unrecorded = now, 0, true
}

// checkpoint returns the sequence to be recorded as the checkpoint with the rows that are being settled; 0 for none.
func (c *checkpoints) checkpoint() uint64 {
	if !c.unrecorded || c.unsettled[(c.epoch-1)&1] > 0 {
		return 0
	}
	c.unrecorded = false
	return c.after(c.epoch)
}

// free reports whether no row in the table has a stray that may still arrive.
func (c *checkpoints) free(now time.Time) bool { return c.clear || c.clock.landed(c.from, now) }

// restart begins anew at a fence: no row in the table is stored in the stream up to the fence.
//
// A stray is a message that was sent earlier, outside of an ordered batch, and arrives after the fence. When the relay sends
// the stray's row again, the broker acknowledges it as a duplicate. The event is then stored where the stray was, and not
// after the sequence that the stream had given when the row was sent again. So while rows in the table may have strays, all
// rows count as stored after the fence, and no further epoch begins.
//
// Invariant: an epoch begins only if no row in the table has a stray that is yet to arrive, or has arrived after the fence.
//
// Why: one of three holds.
//  1. The former leader handed over (see term.handOver): everything it had sent was acknowledged and settled.
//  2. All rows that were in the table when the stream had been read back have been settled since (see core.old). A row that
//     came later was never sent before: a relay that no longer leads fetches no rows.
//  3. The time for which a message may be on its way has passed. Nothing else in recovery depends on a clock.
//
// Test: TestExplore; TestExploreSabotaged leaves the second out.
func (c *checkpoints) restart(fence uint64, now time.Time, clean bool) {
	*c = checkpoints{epoch: 1, start: [2]uint64{fence, fence}, from: now.Add(MinDuplicateWindow(0)), clear: clean, clock: c.clock}
}
