package store

import (
	"math"
	"time"
)

// floor is a lower bound of the seqs worth looking at. Deleted rows stay in the index until vacuum removes
// them, which a long transaction anywhere in the database prevents, so scans from the head become slower with
// each row published. The floor is only ever a hint about where to start.
//
// Invariant. Below the floor there is no row that is to be published and is not held by the relay, and none will appear,
// but for the rows of blocked aggregates (the floor is lowered when they go on), for rows that a command puts back (it
// says so, see rescanPayload) and for those that sweep finds.
//
// Why. Let D be the number of the transaction of one round trip, and F a seq such that every seq below it had been drawn
// before D was assigned, and every visible row below it had been settled, was held or was passed over, unless D itself
// settles it.
//
//  1. A transaction that drew a seq below F has a number below D: the insert trigger sees to it that a transaction has its
//     number before it draws a seq.
//  2. When a later snapshot's xmin is above D, all of them have ended. So a fetch after that snapshot which starts at the
//     old floor sees everything below F that there will ever be.
//  3. After that fetch F becomes the floor. Were a row below F in the fetched page, then the relay holds it, and the floor
//     stays at or below it.
//
// A transaction with an old number that has nothing to do with the outbox holds every snapshot's xmin back for as long
// as it lasts. Then the locks tell: whoever drew a seq holds a ROW EXCLUSIVE lock on the table from before that until
// its end, and what it wrote is visible before the lock is gone. So if no holder's number is below D, again all of
// them have ended. Looking at the locks has a price for everybody, so that is done only where xmin is stuck.
//
// Where a fetch is slow, since it passes over a great many rows, that takes too long: it needs three of them. Then one is
// enough. If, after the sequence was looked at and before the fetch took its snapshot, nobody else held such a lock, then all
// that had drawn a seq up to there have ended, and the fetch sees all that there will ever be up to that seq (pass).
//
// F is never above what the sequence has given out: a row may have any seq, but the seqs of later rows come from there.
//
// Where triggers do not fire, as in a session that replicates, 1. does not hold; nor does it for a row whose seq is not
// the sequence's. Such rows are found by sweep.
//
// Test. TestReaderSeesEveryRowOnce, TestFloorStaysBelowWhatIsDrawn, TestSweep.
type floor struct {
	at        int64     // Fetches start here.
	proposal  bool      // There is a candidate.
	candidate int64     // F above,
	xid       uint64    // and D.
	proposed  time.Time // When candidate became one.
	looked    time.Time // When the locks were looked at.
}

const (
	stuckAfter = 10 * time.Millisecond // Without such transactions the next round trip makes a candidate the floor.
	lookAgain  = 50 * time.Millisecond
)

func newFloor() floor { return floor{at: math.MinInt64} }

// lower makes fetches begin at a seq at the latest.
func (f *floor) lower(to int64) {
	if to < f.at {
		*f = floor{at: to, looked: f.looked}
	}
}

// doubt forgets the candidate: whether its transaction came to pass is not known.
func (f *floor) doubt() { f.proposal = false }

// stuck reports whether it is time to look at the locks.
func (f *floor) stuck(now time.Time) bool {
	if !f.proposal || now.Sub(f.proposed) < stuckAfter || now.Sub(f.looked) < lookAgain {
		return false
	}
	f.looked = now
	return true
}

// pass raises the floor to a seq up to which a complete page had all rows that there will be, but not above lowest, the
// lowest one that is held after it.
func (f *floor) pass(to, lowest int64) { f.at = max(f.at, min(to, lowest)) }

// advance takes note of a round trip that fetched: xmin is of a snapshot before the fetch (the highest number if the
// locks were clear), xid the round trip's own transaction (0 if it had none, which no transaction has), seen the highest seq
// up to which all had been drawn, and were settled, held or passed over before the round trip, and lowest the lowest one
// that is held after it.
func (f *floor) advance(xmin, xid uint64, seen, lowest int64) {
	if f.proposal && xmin > f.xid {
		f.at = max(f.at, min(f.candidate, lowest))
		f.proposal = false
	}
	if !f.proposal && xid > 0 && seen < math.MaxInt64 && min(seen+1, lowest) > f.at {
		f.proposal, f.candidate, f.xid, f.proposed = true, min(seen+1, lowest), xid, time.Now()
	}
}
