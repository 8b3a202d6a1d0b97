package store

import (
	"math"
	"time"
)

// floorLife is how long a floor is believed. Its proof assumes that a transaction has its number before it draws a
// seq, which the insert trigger sees to. Where triggers do not fire, as in a session that replicates, there is an
// instant in which it has not; such a row is found at the next scan from the head, hence the limit.
const floorLife = 10 * time.Second

// floor is a lower bound of the seqs worth looking at. Deleted rows stay in the index until vacuum removes
// them, which a long transaction anywhere in the database prevents, so scans from the head become slower with
// each row published. The floor is only ever a hint about where to start.
//
// Proof. Let D be the number of the transaction of one exchange, and F a seq such that every seq below it had
// been drawn, and every row below it that was visible had been settled or was in the relay's hands, before D
// was assigned, unless D itself settles it. A transaction that drew a seq below F therefore has a number below D. When a later snapshot's
// xmin is above D, all of them have ended, so a fetch after that snapshot which starts at the old floor sees
// everything below F that there will ever be. After that fetch, F becomes the floor; were a row below F in the
// fetched page, then it is in the relay's hands, unsettled, and the floor stays at or below it.
//
// A transaction with an old number that has nothing to do with the outbox holds every snapshot's xmin back for as long
// as it lasts. Then the locks tell: whoever drew a seq holds a ROW EXCLUSIVE lock on the table from before that until
// its end, and what it wrote is visible before the lock is gone. So if no holder's number is below D, again all of
// them have ended. Looking at the locks has a price for everybody, so that is done only where xmin is stuck.
type floor struct {
	at        int64     // Fetches start here.
	since     time.Time // When at last was 0.
	candidate int64     // F above; 0 for none.
	xid       uint64    // D above.
	proposed  time.Time // When candidate became one.
	looked    time.Time // When the locks were looked at.
}

const (
	stuckAfter = 10 * time.Millisecond // Without such transactions the next exchange makes a candidate the floor.
	lookAgain  = 50 * time.Millisecond
)

// stuck reports whether it is time to look at the locks.
func (f *floor) stuck(now time.Time) bool {
	if f.candidate == 0 || now.Sub(f.proposed) < stuckAfter || now.Sub(f.looked) < lookAgain {
		return false
	}
	f.looked = now
	return true
}

// start returns where a fetch begins.
func (f *floor) start(now time.Time) int64 {
	if f.since.IsZero() || now.Sub(f.since) > floorLife {
		*f = floor{since: now}
	}
	return f.at
}

// advance takes note of an exchange that fetched: xmin is of a snapshot before the fetch (the highest number if the
// locks were clear), xid the exchange's
// own transaction (0 if it had none), seen the highest seq in the relay's hands before the exchange, and lowest
// the lowest one that is unsettled after it (0 for none).
func (f *floor) advance(xmin, xid uint64, seen, lowest int64) {
	if lowest == 0 {
		lowest = math.MaxInt64
	}
	if f.candidate > 0 && xmin > f.xid {
		f.at = max(f.at, min(f.candidate, lowest))
		f.candidate = 0
	}
	if f.candidate == 0 && xid > 0 && seen > 0 {
		f.candidate, f.xid, f.proposed = min(seen+1, lowest), xid, time.Now()
	}
}
