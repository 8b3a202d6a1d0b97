package relay

// oldRows are the rows that were in the table when the stream had been read back. Somebody may have sent them before, so
// that a stray of theirs may arrive: see checkpoints.restart. They are counted, not listed: each is marked while it is held.
type oldRows struct {
	gathering bool // They are still being fetched: the first fetch that leaves none out has the last of them.
	left      int  // Those held that are not stored.
	lost      bool // The relay let go of some that were not stored, so it does not know when the last of them is settled.
}

// hold marks a row that the relay holds from now on.
func (o *oldRows) hold(it *item) {
	if o.gathering {
		it.old = true
		o.left++
	}
}

// stored takes note that a row is stored.
func (o *oldRows) stored(it *item) {
	if it.old {
		o.left--
	}
}

// dropped takes note that the relay lets go of a row that is not stored.
func (o *oldRows) dropped(it *item) {
	if it.old {
		o.left--
		o.lost = true
	}
}

// allStored reports whether all of them were acknowledged.
func (o *oldRows) allStored() bool { return !o.gathering && !o.lost && o.left == 0 }
