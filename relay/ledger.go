package relay

import "time"

// ledger keeps the lower bounds that make reading the stream back short: behind which of its sequences are the rows
// that were sent? Sending is divided into epochs. Each begins with a sequence that the stream was seen to have given,
// so that whatever is sent in it is stored behind that; and when all rows of the epochs before it have been settled,
// that sequence is the new checkpoint.
//
// An epoch begins only if all of the one before the last had been settled when the stream was looked at. So what was
// sent in epoch e is stored behind the beginning of e, and not behind that of e+2: from the beginning of an archived
// event's epoch on it takes a look at two epochs to find it, or to know that it is gone.
type ledger struct {
	epoch      uint64    // The present one, from 1 on.
	start      [2]uint64 // The sequences with which the present and the last one began, by parity.
	unsettled  [2]int    // Rows sent in them that have not been settled.
	began      time.Time // When the present one did,
	from       time.Time // and when the next one may at the earliest, whatever else speaks for it.
	unrecorded bool      // Its beginning is not the checkpoint yet.
}

// epochLength is how often the checkpoint moves, at most: each time costs the table of the relay's state an update.
const epochLength = time.Second

// after returns a sequence that what was sent in this epoch is stored behind.
func (l *ledger) after(epoch uint64) uint64 { return l.start[epoch&1] }

// sent notes that a row is being sent. It may have been before, and refused.
func (l *ledger) sent(it *item) {
	l.unsent(it)
	it.epoch = l.epoch
	l.unsettled[it.epoch&1]++
}

// unsent notes that a row is certain not to be in the stream, or leaves the relay's hands for another reason than
// being settled.
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
	if sequence <= l.after(l.epoch) || now.Before(l.from) || !early && now.Sub(l.began) < epochLength {
		return
	}
	l.epoch++
	l.start[l.epoch&1] = sequence
	l.began, l.unrecorded = now, true
}

// checkpoint returns the sequence to be recorded as the checkpoint with the rows that are being settled; 0 for none.
func (l *ledger) checkpoint() uint64 {
	if !l.unrecorded || l.unsettled[(l.epoch-1)&1] > 0 {
		return 0
	}
	l.unrecorded = false
	return l.after(l.epoch)
}

// restart begins anew at a fence: nothing that is in the table is in the stream up to there.
//
// For some time a message may still arrive that somebody sent before, outside of an ordered batch. Its row is then
// acknowledged as a duplicate of it, and stored where it was and not behind what was seen when it was sent again. So until
// that time has passed everything counts as stored behind the fence, and no other. It is the only thing in recovery that
// goes by a clock.
func (l *ledger) restart(fence uint64, now time.Time) {
	*l = ledger{epoch: 1, start: [2]uint64{fence, fence}, from: now.Add(MinDuplicateWindow(0))}
}
