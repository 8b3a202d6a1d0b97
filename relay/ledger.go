package relay

import "time"

// ledger keeps the lower bounds that make reading the stream back short: after which of its sequences are the rows
// that were sent? Sending is divided into epochs. Each begins with a sequence that the stream was seen to have given,
// so that whatever is sent in it is stored after that; and when all rows of the epochs before it have been settled,
// that sequence is the new checkpoint.
//
// An epoch begins only if all of the one before the last had been settled when the stream was looked at. So what was
// sent in epoch e is stored after the beginning of e, and not after that of e+2: from the beginning of an archived
// event's epoch on it takes a look at two epochs to find it, or to know that it is gone.
type ledger struct {
	epoch      uint64    // The present one, from 1 on.
	start      [2]uint64 // The sequences with which the present and the last one began, by parity.
	unsettled  [2]int    // Rows sent in them that have not been settled.
	began      time.Time // When the present one did,
	rows       int       // and how many rows were sent in it.
	from       time.Time // Until when strays may arrive,
	clear      bool      // unless none of a row in the table can: see restart.
	unrecorded bool      // The present epoch's beginning is not the checkpoint yet.
}

const (
	// epochLength is how often the checkpoint moves: each time costs the table of the relay's state an update. After a crash
	// two epochs are read back, at most.
	epochLength = time.Second
	// shortEpoch is the length of one in which so many rows were sent as epochRows: what is read back then takes as long as
	// that of a second with fewer.
	shortEpoch = 250 * time.Millisecond
	epochRows  = 2500
)

// after returns a sequence after which all that was sent in this epoch is stored.
func (l *ledger) after(epoch uint64) uint64 { return l.start[epoch&1] }

// sent notes that a row is being sent. It may have been before, and refused.
func (l *ledger) sent(it *item) {
	l.unsent(it)
	it.epoch = l.epoch
	l.rows++
	l.unsettled[it.epoch&1]++
}

// unsent notes that a row is certain not to be in the stream, or that the relay lets go of it for another reason than that
// it is settled.
func (l *ledger) unsent(it *item) {
	if it.epoch > 0 {
		l.unsettled[it.epoch&1]--
		it.epoch = 0
	}
}

// settled notes that rows of an epoch are being settled: if that fails, the term ends.
func (l *ledger) settled(epoch uint64, rows int) { l.unsettled[epoch&1] -= rows }

// drained reports whether a new epoch may begin at a sequence that is seen from now on.
func (l *ledger) drained() bool { return !l.unrecorded && l.unsettled[(l.epoch-1)&1] == 0 }

// seen takes note of a sequence that the stream has given, at a time at which it was drained and after the last epoch
// began. Early lets a new one begin before its time.
func (l *ledger) seen(sequence uint64, now time.Time, early bool) {
	length := epochLength
	if l.rows >= epochRows {
		length = shortEpoch
	}
	if sequence <= l.after(l.epoch) || !l.free(now) || !early && now.Sub(l.began) < length {
		return
	}
	l.epoch++
	l.start[l.epoch&1] = sequence
	l.began, l.rows, l.unrecorded = now, 0, true
}

// checkpoint returns the sequence to be recorded as the checkpoint with the rows that are being settled; 0 for none.
func (l *ledger) checkpoint() uint64 {
	if !l.unrecorded || l.unsettled[(l.epoch-1)&1] > 0 {
		return 0
	}
	l.unrecorded = false
	return l.after(l.epoch)
}

// free reports whether no stray of a row in the table can arrive any more.
func (l *ledger) free(now time.Time) bool { return l.clear || !now.Before(l.from) }

// restart begins anew at a fence: nothing that is in the table is in the stream up to there.
//
// A stray is a message that somebody sent before, outside of an ordered batch, and that arrives after the fence. Its row is
// then acknowledged as a duplicate of it, and stored where it was and not after what was seen when it was sent again. So as
// long as there may be strays of rows in the table, everything counts as stored after the fence, and no other epoch begins.
//
// Invariant: an epoch begins only if no row in the table has a stray that is yet to arrive, or has arrived after the fence.
//
// Why: one of three holds.
//  1. The former term has left in order (see term.handOver): what it had sent was acknowledged and settled.
//  2. All rows that were in the table when the stream had been read back have been settled since (see core.old). A row that
//     came later was never sent by anybody before: who leads no longer fetches no longer.
//  3. The time has passed for which a message may be on its way. It is the only thing in recovery that goes by a clock.
//
// Test: TestExplore; TestExploreSabotaged leaves the second out.
func (l *ledger) restart(fence uint64, now time.Time, inOrder bool) {
	*l = ledger{epoch: 1, start: [2]uint64{fence, fence}, from: now.Add(MinDuplicateWindow(0)), clear: inOrder}
}
