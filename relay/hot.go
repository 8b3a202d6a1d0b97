package relay

import (
	"math"
	"slices"

	"github.com/go-outbox/go-outbox/store"
)

// A hot aggregate has a long backlog that goes out one event at a time, each after the one before is stored, because the
// stream takes no ordered batches. If the relay held nothing but its rows, all other aggregates would wait for that backlog.
// So once a lane holds more than half a batch, fetches leave the aggregate out by name, as they do with a blocked one. When
// less than a quarter of a batch is left, one fetch goes back for more.
//
// The store's floor passes the rows of a hot aggregate: otherwise each fetch would read over all of them. The fetch that goes
// back leaves the floor where it is (store.Fetch.Stay), and begins where the one before it ended. So the whole backlog is read
// once, however long it is.
//
// Invariant: no pending row of a hot aggregate below from is missing among the held rows, and none will appear.
//
// Why:
//  1. When the aggregate becomes hot, from is the floor.
//  2. A page that goes back begins at from. If it is full, it has every row up to its last one that was visible.
//  3. Below a floor that was known before that page was asked for, no row becomes visible later. So from moves to the end of
//     the page, but not above that floor.
//  4. If the store's floor is lowered because rows were put back, so is from.
//
// When an aggregate is no longer hot, or the relay lets go of its rows, the next fetch goes back to the lowest of them, floor
// and all.
//
// Test: TestHotAggregateIsLeftOut, TestSimulation, TestExplore; TestHotAggregate with servers.

// hotMost is how many aggregates are hot at a time. Each may add a page to what the relay has in memory.
const hotMost = 8

// hot is an aggregate that fetches leave out while its lane is long.
type hot struct {
	aggregate aggregate
	from      int64 // See the invariant.
}

// lowFill and highFill are between how many rows of a hot aggregate the relay holds: when it has less than the first it
// fetches more of them; an aggregate becomes hot with more than the second.
func (c *core) lowFill() int  { return max(c.batch/4, 1) }
func (c *core) highFill() int { return max(c.batch/2, 1) }

// hotIndex returns the place of an aggregate in core.hot; -1 if it is not hot.
func (c *core) hotIndex(a aggregate) int {
	for i := range c.hot {
		if c.hot[i].aggregate == a {
			return i
		}
	}
	return -1
}

// lowestOf returns the lowest seq from which rows of a hot aggregate would have to be fetched if the relay held none.
func (c *core) lowestOf(h hot) int64 {
	if l := c.lanes[h.aggregate]; l != nil {
		return min(h.from, l.first.row.Seq)
	}
	return h.from
}

// bound returns the lowest seq of a refused row's aggregate that is to be fetched once the aggregate goes on. From now on
// the aggregate is not hot.
func (c *core) bound(a aggregate, seq int64) int64 {
	lowest := min(seq, c.floor)
	if i := c.hotIndex(a); i >= 0 {
		lowest = min(lowest, c.lowestOf(c.hot[i]))
		c.hot = slices.Delete(c.hot, i, i+1)
	}
	return lowest
}

// cool makes all aggregates ordinary ones again.
func (c *core) cool() {
	for _, h := range c.hot {
		c.goBack(c.lowestOf(h))
	}
	c.hot = nil
}

// heat finds out which aggregates are hot, before a fetch.
func (c *core) heat() {
	if c.ordered || c.batches {
		c.cool()
		return
	}
	if c.heldRows <= c.highFill() {
		return
	}
	from := c.floor
	if c.back { // Rows of an aggregate that has just been let go on may be missing.
		from = min(from, c.backTo)
	}
	for a, l := range c.lanes {
		if len(c.hot) == hotMost {
			return
		}
		if l.rows > c.highFill() && c.hotIndex(a) < 0 && c.blocked.of[a] == nil {
			c.hot = append(c.hot, hot{a, from})
		}
	}
}

// runsLow reports whether the relay holds few rows of a hot aggregate.
func (c *core) runsLow(h hot) bool {
	l := c.lanes[h.aggregate]
	return l == nil || l.rows < c.lowFill()
}

// refilling returns the place in core.hot of an aggregate to fetch rows of now; -1 if none needs any. Aggregates that have
// just been let go on come first: the page would have their later rows only.
func (c *core) refilling() int {
	if c.back {
		return -1
	}
	return slices.IndexFunc(c.hot, c.runsLow)
}

// hotHeld returns how many rows of hot aggregates the relay holds, and their bytes: they do not count against the room for
// those of others.
func (c *core) hotHeld() (rows, bytes int) {
	for _, h := range c.hot {
		if l := c.lanes[h.aggregate]; l != nil {
			rows += l.rows
			bytes += l.bytes
		}
	}
	return rows, bytes
}

// refill is a fetch that goes back for a hot aggregate.
type refill struct {
	aggregate aggregate
	proven    int64 // The floor before it.
}

// refilled takes the answer to a fetch that went back for a hot aggregate.
func (c *core) refilled(r refill, response store.Response) {
	c.more = true // It may have looked for nothing else.
	i := c.hotIndex(r.aggregate)
	if i < 0 {
		return // It has been blocked meanwhile.
	}
	h := &c.hot[i]
	if !response.Full { // That was the rest of it.
		c.goBack(c.lowestOf(*h))
		c.hot = slices.Delete(c.hot, i, i+1)
		return
	}
	if n := len(response.Rows); n > 0 {
		end := min(response.Rows[n-1].Seq, math.MaxInt64-1) + 1
		h.from = max(h.from, min(end, r.proven))
	}
}
