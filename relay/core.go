package relay

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// core decides what a leader does next: which row to publish, what to settle, when to fetch, when to sleep, when to read
// the stream back, to verify it, to connect again, to make way or to hand over. It does no I/O, starts no goroutine and reads
// no clock: the term tells it what happened and carries out what it decides, so that every interleaving can be tested. A core
// lasts for one term.
//
// A row that the relay holds is in one of two states:
//
//	waiting    for an earlier row of its aggregate, or for room in the window
//	in flight  sent and unanswered; at most one row of each aggregate, except in an ordered batch
//
// The relay lets go of a row for one of two reasons:
//
//   - The row is stored: the broker has acknowledged it. The next round trip settles it, that is, removes it from the outbox,
//     before it fetches. The answer to a round trip that is under way does not bring it back.
//   - Its aggregate is blocked, because one of the aggregate's rows was refused. Then the row is fetched again later.
//
// A term begins in doubt, and an unknown outcome puts it in doubt again: the stream may hold rows that are still in the
// outbox. In doubt the relay neither publishes nor fetches. Once nothing is in flight, it reads the stream back, settles the
// rows that it finds there, and fetches all rows anew.
type core struct {
	batch, batchBytes int
	window            int
	orderedFrom       int // How many held rows make an ordered batch worth while.
	maxAttempts       int
	retry             backoff
	poll              time.Duration

	held      map[int64]*item // Every row that the relay holds, by seq.
	lanes     map[aggregate]*lane
	spare     []*lane     // To be used again.
	ready     fifo[*lane] // Lanes whose first row may be published.
	heldRows  int         // Rows waiting or in flight,
	heldBytes int         // and their payloads.
	inFlight  int         // Rows in flight.
	highest   int64       // The highest seq ever held.

	// ordered tells how the rows in flight were sent: in one ordered batch, of which the broker stores nothing after a row that
	// failed, or each by itself. It changes only while none is in flight. Closing tells that no more are to be sent until then.
	ordered bool
	closing bool

	// succeeded tells that an event was stored in this term. Until then no event is given up because its subject is denied: if
	// the user may publish nothing at all, every event of the outbox would become a dead letter.
	succeeded bool

	floor   int64 // See store.Response.
	blocked blocks
	hot     []hot // Aggregates that fetches leave out since the relay holds enough of them: see hot.go.
	batches bool  // The publisher takes ordered batches.
	back    bool  // The next fetch must go back to backTo, since aggregates are no longer blocked.
	backTo  int64 // A seq.
	maxData int   // The largest payload that the broker takes; 0 if that is not known.
	noted   int   // The maxData that the table of the relay's state has.

	checkpoints checkpoints
	old         oldRows

	readsBack  bool // The publisher reads back. Otherwise doubt is never set: only the stream's duplicate window helps.
	doubt      bool // The stream may hold rows that are in the table.
	recovering bool // The stream is being read back.
	stale      bool // There was new reason for doubt since that began.

	stored   [2][]int64  // To be settled by the next round trip, by the parity of the epoch in which they were sent.
	storedAt time.Time   // When the first of them was acknowledged.
	created  []time.Time // When the rows that were stored since takeStored were created.
	bytes    int         // Of their payloads.
	failed   []store.Failure
	dead     []deadLetter
	unfit    []refusal  // Rows that were not read, since they can never be published: for the log.
	doubles  []double   // Rows whose id the stream had already, to be examined.
	twice    [2][]int64 // Doubles that are not in the stream: to be settled, and not archived.
	aside    []aside    // Rows that the database did not let go, each for a reason of its own.
	asideAt  time.Time  // When to try to remove them again.
	trip     *roundTrip // The round trip under way; nil for none.

	circuit  circuit
	detector lossDetector
	blind    blindness
	report   report
	handing  handing
	stopping bool // The relay is to stop: nothing more is published.
	byHand   byHand

	examining bool // A double is being examined.
	findings  int  // How many attempts to examine it have failed, in a row.

	more   bool      // A fetch may find something.
	asleep bool      // Producers notify: nothing can be missed.
	busy   time.Time // When a fetch last found something, or the relay woke up.
	next   time.Time // When to try to fall asleep again or, asleep, to poll.
}

const (
	// shortNap and longNap bound the pauses between attempts to fall asleep, while the transaction of a producer that would
	// not notify is under way. A pause is the time for which nothing has been found, divided by napShare. So the relay delays
	// an event that is committed in a pause by little compared with its producer.
	shortNap = time.Millisecond / 2
	longNap  = 50 * time.Millisecond
	napShare = 4
	// settleAfter is how long a stored row waits for others, to be settled in one round trip with them, if nothing else calls
	// for a round trip.
	settleAfter = 20 * time.Millisecond
	// asideRetry is after how long the relay tries again to remove rows that the database did not let go. If there are more
	// than asideMost of them, nothing more is published.
	asideRetry = 10 * time.Second
	asideMost  = 100
)

// roundTrip is a round trip to the outbox that is under way.
type roundTrip struct {
	request store.Request
	givenUp []aggregate // The aggregates of the rows that are given up.
	clears  bool        // It settles the last of the old rows.
	refill  *refill     // What it fetches rows of a hot aggregate for; nil if it does not.
	epochs  []uint64    // The epoch of each of request.Settled.
}

// aside is a row that the database did not let go, or whose refusal it did not record: it is still in the outbox.
type aside struct {
	seq     int64
	epoch   uint64      // The epoch in which it was sent, if it is stored.
	refused *deadLetter // Otherwise the refusal that is to be recorded.
}

// refusal is an event that was refused, as the log tells it, and what becomes of it.
type refusal struct {
	row     store.Row
	err     error
	verdict verdict
}

// deadLetter is a row to be moved to the dead letters.
type deadLetter struct {
	aggregate aggregate
	nameless  bool // Nobody knows the aggregate.
	failure   store.Failure
}

// aggregate names an aggregate: events of one aggregate are stored in order, whatever their topics.
type aggregate struct{ kind, id string }

// lane holds an aggregate's rows as a list in seq order, those in flight first.
type lane struct {
	aggregate   aggregate
	first, last *item // Nil for none.
	waiting     *item // The first row that is not in flight; nil for none.
	inFlight    int
	rows, bytes int
	queued      bool // It is in core.ready.
}

// item is a row that the relay holds.
type item struct {
	row      *store.Row
	lane     *lane
	next     *item
	inFlight bool
	old      bool   // It was in the table when the stream had been read back.
	epoch    uint64 // The epoch in which it was sent; 0 if it was not.
}

func newCore(o Options) *core {
	return &core{
		batch:       o.BatchSize,
		batchBytes:  o.BatchBytes,
		window:      o.Window,
		orderedFrom: orderedBatchFrom,
		maxAttempts: o.MaxAttempts,
		retry:       backoff{o.RetryBackoff, o.RetryBackoffMax},
		poll:        o.PollInterval,
		held:        make(map[int64]*item),
		lanes:       make(map[aggregate]*lane),
		blocked:     newBlocks(),
		checkpoints: checkpoints{epoch: 1, clock: realClock{}},
		more:        true,
	}
}

// begin sets out from what the former leader left.
func (c *core) begin(term store.TermStart, readsBack bool, now time.Time) {
	c.floor = term.Floor
	for _, b := range term.Blocked {
		c.blocked.add(aggregate{b.AggregateType, b.AggregateID}, now.Add(min(b.For, c.retry.most)), c.floor)
	}
	c.readsBack, c.doubt = readsBack, readsBack
	c.busy = now
}

// markInDoubt notes that the stream may hold rows that are in the table, or may not hold events that it has acknowledged.
func (c *core) markInDoubt() {
	c.doubt = c.readsBack
	c.stale = c.recovering
}

// recover reports whether the stream is to be read back now. The caller then does so, and reports its end through recovered.
func (c *core) recover() bool {
	if !c.doubt || c.recovering || c.inFlight > 0 || c.trip != nil {
		return false
	}
	c.recovering, c.stale = true, false
	return true
}

// readBack reports whether the stream is to be read back now: recover says so, and the broker can be reached.
func (c *core) readBack() bool {
	return c.circuit.breaker != breakerOpen && !c.circuit.opening && !c.stopping && c.recover()
}

// recovered takes the result of reading the stream back. If the stream could be read (ok), no row in the table is stored in it
// up to the fence. If there was new reason for doubt meanwhile, the answer is out of date, and the stream has to be read back
// once more. Kept are events that the stream holds and whose rows the database does not let go. Clean tells that the former
// leader handed over.
func (c *core) recovered(fence uint64, ok bool, kept []store.Ref, clean bool, now time.Time) {
	c.recovering = false
	if !ok {
		return
	}
	c.doubt, c.more, c.busy = c.stale, true, now
	c.blind.since = time.Time{} // What goes wrong from here on is news.
	c.detector.forget()
	c.cool() // The floor may be above rows that are no longer held.
	clear(c.held)
	clear(c.lanes)
	c.spare = nil
	c.ready = fifo[*lane]{}
	c.heldRows, c.heldBytes = 0, 0
	c.stored, c.twice, c.doubles = [2][]int64{}, [2][]int64{}, nil
	c.checkpoints.restart(fence, now, clean)
	c.old = oldRows{gathering: !clean}
	c.aside = nil
	for _, ref := range kept {
		c.setAside(aside{seq: ref.Seq, epoch: c.checkpoints.epoch}, now)
		c.checkpoints.unsettled[c.checkpoints.epoch&1]++
	}
}

// unblock ends the blocks whose time has come.
func (c *core) unblock(now time.Time) {
	for range releasedAtOnce {
		from, ok := c.blocked.next(now)
		if !ok {
			return
		}
		c.goBack(from)
	}
}

// goBack makes the next fetch begin at a seq at the latest.
func (c *core) goBack(to int64) {
	if !c.back || to < c.backTo {
		c.back, c.backTo = true, to
	}
	c.more = true
}

// setAside keeps a row that the database did not let go, to try again later.
func (c *core) setAside(a aside, now time.Time) {
	c.aside = append(c.aside, a)
	c.asideAt = now.Add(asideRetry)
	c.highest = max(c.highest, a.seq) // It has been held, perhaps by an earlier term.
}

// retryAside has the rows that the database did not let go removed again, when that is due.
func (c *core) retryAside(now time.Time) {
	if len(c.aside) == 0 || now.Before(c.asideAt) {
		return
	}
	for _, a := range c.aside {
		if a.refused != nil {
			c.dead = append(c.dead, *a.refused)
		} else {
			c.stored[a.epoch&1] = append(c.stored[a.epoch&1], a.seq)
		}
	}
	c.aside = nil
}

// wake tells that a fetch may find something.
func (c *core) wake() {
	c.more = true
	c.byHand.ask()
}

// orderedBatchFrom is how many rows make an ordered batch worth while. The broker acknowledges many of its messages at once,
// so a few rows are known to be stored sooner if each is sent by itself.
const orderedBatchFrom = 32

// engage chooses how the next rows are sent. Window is how many rows may be in flight in an ordered batch; 0 if there can
// be none.
func (c *core) engage(window int) {
	c.batches = window > 0
	if c.inFlight > 0 {
		// An ordered batch under way goes on. One may begin only once the rows sent by themselves have been answered.
		c.closing = c.closing || !c.ordered && c.worthOrdering(window)
		return
	}
	if ordered := c.worthOrdering(window); ordered != c.ordered {
		c.ordered = ordered
		for _, l := range c.lanes {
			c.schedule(l)
		}
	}
	c.closing = false
}

// worthOrdering reports whether the next rows are to go in an ordered batch, given how many may be in flight in it.
func (c *core) worthOrdering(window int) bool { return window > 0 && c.heldRows >= c.orderedFrom }

// publishable returns the next row to hand to the publisher, if there is one and fewer than limit are in flight. The caller
// reports its outcome through resolved.
func (c *core) publishable(limit int) (*store.Row, bool) {
	if c.closing || c.doubt || c.inFlight >= limit {
		return nil, false
	}
	l, ok := c.ready.pop()
	if !ok {
		return nil, false
	}
	it := l.waiting
	l.waiting = it.next
	l.queued = false
	it.inFlight = true
	c.checkpoints.sent(it)
	l.inFlight++
	c.inFlight++
	c.schedule(l)
	return it.row, true
}

// finish reports whether the ordered batch under way is to be closed, so that the outcomes of its last rows become known:
// because the relay is to stop or to read the stream back, or because it has nothing more to send and no round trip is under
// way that may fetch more.
func (c *core) finish(stopping bool) bool {
	if !c.ordered || c.closing || c.inFlight == 0 {
		return false
	}
	c.closing = stopping || c.doubt || c.ready.len() == 0 && c.trip == nil
	return c.closing
}

// double takes the outcome of a row whose id the stream had already. It is not settled before resolvedDouble tells whether
// the stream has this row or another one.
func (c *core) double(seq int64, sequence uint64, now time.Time) {
	it := c.held[seq]
	if it == nil {
		c.inFlight--
		return
	}
	d := double{store.Ref{Seq: seq, ID: it.row.ID}, it.epoch, sequence}
	c.resolved(seq, nil, now)
	stored := &c.stored[d.epoch&1]
	*stored = (*stored)[:len(*stored)-1]
	c.doubles = append(c.doubles, d)
}

// resolvedDouble has a double settled. Twice tells that the stream has another row with its id.
func (c *core) resolvedDouble(d double, twice bool, now time.Time) {
	if c.recordable() == 0 {
		c.storedAt = now
	}
	if twice {
		c.twice[d.epoch&1] = append(c.twice[d.epoch&1], d.ref.Seq)
	} else {
		c.stored[d.epoch&1] = append(c.stored[d.epoch&1], d.ref.Seq)
	}
}

// resolved takes the outcome of publishing the row with this seq. The row is stored if fault is nil, and refused if the
// fault is the row's own. Otherwise it is published again, before any other row of its aggregate.
func (c *core) resolved(seq int64, fault *stream.Error, now time.Time) verdict {
	c.inFlight--
	it := c.held[seq]
	if it == nil {
		return forgotten
	}
	l := it.lane
	it.inFlight = false
	l.inFlight--
	switch {
	case fault == nil:
		if c.recordable() == 0 {
			c.storedAt = now
		}
		c.succeeded = true
		c.stored[it.epoch&1] = append(c.stored[it.epoch&1], seq)
		c.old.stored(it)
		c.created = append(c.created, it.row.CreatedAt)
		c.bytes += len(it.row.Data)
		delete(c.held, seq)
		c.drop(it)
		if len(c.hot) > 0 && l.rows < c.lowFill() && c.hotIndex(l.aggregate) >= 0 {
			c.more = true
		}
		l.first = it.next // Rows are stored in the order in which they were sent.
		*it = item{}      // It leads to later pages, and others of its own page are still held.
		c.schedule(l)
		return stored
	case fault.Fault != stream.FaultRow:
		if fault.Ambiguous() {
			c.markInDoubt()
		}
		if l.inFlight == 0 {
			l.waiting = l.first
		}
		c.schedule(l)
		return postponed
	}
	row, a := it.row, l.aggregate
	c.forget(l, seq)
	if denied := new(stream.PermissionError); errors.As(fault, &denied) && !c.succeeded && row.Attempts+1 >= c.maxAttempts {
		failure := store.Failure{Ref: store.Ref{Seq: row.Seq, ID: row.ID}, Attempts: row.Attempts, Wait: c.retry.most, Reason: fault.Error()}
		return c.again(a, failure, now) // See succeeded.
	}
	return c.refuse(row, a, fault.Error(), fault.Permanent, now)
}

// refuse notes that a row was refused for a reason of its own. The row is tried again later. It is given up if that cannot
// help, or has been done as often as allowed. Its aggregate is blocked meanwhile.
func (c *core) refuse(row *store.Row, a aggregate, reason string, forGood bool, now time.Time) verdict {
	failure := store.Failure{Ref: store.Ref{Seq: row.Seq, ID: row.ID}, Attempts: row.Attempts + 1, Reason: reason, Size: int64(row.Size()) + row.Unread}
	if forGood || failure.Attempts >= c.maxAttempts {
		// The aggregate is blocked until the dead letter is recorded. Otherwise, after a crash, the row would be tried once
		// more, after its successors.
		if !row.Nameless { // A nameless row's aggregate has only rows that are as unfit.
			c.blocked.record(a, c.bound(a, row.Seq))
		}
		c.dead = append(c.dead, deadLetter{a, row.Nameless, failure})
		return givenUp
	}
	failure.Wait = c.retry.after(failure.Attempts)
	return c.again(a, failure, now)
}

// again blocks a refused row's aggregate until the row is to be tried again.
func (c *core) again(a aggregate, failure store.Failure, now time.Time) verdict {
	c.blocked.add(a, now.Add(failure.Wait), c.bound(a, failure.Seq))
	c.failed = append(c.failed, failure)
	return refused
}

// verdict is what became of a row.
type verdict int

const (
	stored verdict = iota
	postponed
	refused
	givenUp
	forgotten // Fetched again later, as its aggregate was blocked meanwhile.
)

// takeStored returns when the rows stored since the last call were created, and how many bytes their payloads have. The times
// are good until the next row is stored.
func (c *core) takeStored() (created []time.Time, bytes int) {
	created, bytes = c.created, c.bytes
	c.created, c.bytes = c.created[:0], 0
	return created, bytes
}

// schedule puts a lane where it belongs after its rows have changed: into ready, if its next row may be sent.
func (c *core) schedule(l *lane) {
	switch {
	case l.first == nil:
		delete(c.lanes, l.aggregate)
		*l = lane{} // It would keep its rows in memory.
		c.spare = append(c.spare, l)
	case l.queued || l.waiting == nil:
	case l.inFlight == 0 || c.ordered:
		l.queued = true
		c.ready.push(l)
	}
}

// drop counts a row no longer.
func (c *core) drop(it *item) {
	size := it.row.Size()
	c.heldRows--
	c.heldBytes -= size
	it.lane.rows--
	it.lane.bytes -= size
}

// forget drops the rows of a lane from seq on: they are fetched again when its aggregate is no longer blocked. Those of them
// that are in flight were sent after a failed row, in an ordered batch, so they are not stored.
func (c *core) forget(l *lane, seq int64) {
	var kept *item
	n := 0
	it := l.first
	for ; it.row.Seq != seq; it = it.next {
		if it.inFlight {
			n++
		}
		kept = it
	}
	for it != nil {
		gone := it
		it = it.next
		c.checkpoints.unsent(gone)
		c.old.dropped(gone)
		delete(c.held, gone.row.Seq)
		c.drop(gone)
		*gone = item{}
	}
	if kept == nil {
		l.first = nil
	} else {
		kept.next = nil
	}
	l.last, l.waiting, l.inFlight = kept, nil, n
	if n == 0 {
		l.waiting = l.first // The rows before it may have to be sent again.
	}
	if l.queued {
		l.queued = false
		c.ready.remove(l)
	}
	c.schedule(l)
}

// add has the relay hold the fetched rows.
func (c *core) add(rows []store.Row, now time.Time) {
	items := make([]item, len(rows))
	for i := range rows {
		it := &items[i]
		it.row = &rows[i]
		a := aggregate{it.row.AggregateType, it.row.AggregateID}
		if _, held := c.held[it.row.Seq]; held {
			continue
		}
		c.highest = max(c.highest, it.row.Seq)
		if !it.row.Nameless && c.blocked.pass(a, it.row.Seq) {
			continue // It is one of too many to be named, or was blocked while the fetch was under way.
		}
		if it.row.Unfit != "" {
			c.old.lost = true
			c.unfit = append(c.unfit, refusal{*it.row, errors.New(it.row.Unfit), c.refuse(it.row, a, it.row.Unfit, true, now)})
			continue
		}
		c.held[it.row.Seq] = it
		c.old.hold(it)
		c.heldRows++
		size := it.row.Size()
		c.heldBytes += size
		l := c.lanes[a]
		if l == nil {
			l = c.lane(a)
		}
		l.rows++
		l.bytes += size
		l.insert(it)
		c.schedule(l)
	}
}

// lane makes an aggregate's lane.
func (c *core) lane(a aggregate) *lane {
	var l *lane
	if last := len(c.spare) - 1; last >= 0 {
		l, c.spare = c.spare[last], c.spare[:last]
	} else {
		l = new(lane)
	}
	l.aggregate = a
	c.lanes[a] = l
	return l
}

// insert keeps seq order, after the rows that are in flight. A row that committed late comes before those already
// waiting.
func (l *lane) insert(it *item) {
	it.lane = l
	if l.last == nil || l.last.row.Seq < it.row.Seq || l.waiting == nil {
		if l.last == nil {
			l.first = it
		} else {
			l.last.next = it
		}
		l.last = it
		if l.waiting == nil {
			l.waiting = it
		}
		return
	}
	// Somewhere before the last one.
	at := &l.waiting
	for (*at).row.Seq < it.row.Seq {
		at = &(*at).next
	}
	it.next = *at
	*at = it
	if l.waiting == it {
		l.link(it)
	}
}

// link makes the row before the first waiting one, which may be in flight, lead to it.
func (l *lane) link(it *item) {
	at := &l.first
	for *at != it.next {
		at = &(*at).next
	}
	*at = it
}

// nextRoundTrip returns the round trip to make now, if one is due. The caller reports its answer through answered.
func (c *core) nextRoundTrip(now time.Time) (store.Request, bool) {
	if c.trip != nil || c.recovering {
		return store.Request{}, false
	}
	c.unblock(now)
	c.retryAside(now)
	var (
		idle     = c.heldRows == 0
		room     = c.room()
		due      = !now.Before(c.next)
		recorded = c.recordable() + len(c.failed) + len(c.dead)
		fetch    bool
		sleep    store.SleepChange
	)
	switch {
	case c.more && room:
		fetch = true
		if c.asleep {
			sleep = store.WakeUp
		}
	case !c.more && !c.asleep && room && (due || idle && recorded > 0):
		fetch, sleep = true, store.FallAsleep
	case !c.more && c.asleep && room && due:
		fetch = true // The poll, which makes up for a notification that was lost.
	case idle && recorded > 0, len(c.failed)+len(c.dead) > 0, recorded >= c.batch:
	case recorded > 0 && !now.Before(c.storedAt.Add(settleAfter)):
	case c.byHand.due(now):
	default:
		return store.Request{}, false
	}
	return c.start(fetch, sleep), true
}

// room reports whether the relay can hold another page: it fetches the next page while it publishes one. In doubt there is
// no room: the rows that are held will be fetched again.
func (c *core) room() bool {
	rows, bytes := c.hotHeld()
	return !c.doubt && c.heldRows-rows <= c.batch && c.heldBytes-bytes <= c.batchBytes
}

// recordable returns how many stored rows no round trip has been asked to settle.
func (c *core) recordable() int {
	return len(c.stored[0]) + len(c.stored[1]) + len(c.twice[0]) + len(c.twice[1])
}

// clean reports whether every row that was sent has a known outcome and is settled, and none has a stray that may still
// arrive. Then the next leader need not read the stream back.
func (c *core) clean(now time.Time) bool {
	return c.readsBack && !c.doubt && !c.recovering && c.trip == nil && c.inFlight == 0 && c.checkpoints.free(now) && c.checkpoints.unsettled == [2]int{} &&
		c.recordable()+len(c.failed)+len(c.dead)+len(c.doubles)+len(c.aside) == 0
}

// settle returns the round trip that records what is left at the end of a term.
func (c *core) settle() (store.Request, bool) {
	if c.trip != nil || c.recovering || c.recordable()+len(c.failed)+len(c.dead) == 0 {
		return store.Request{}, false
	}
	return c.start(false, store.KeepSleep), true
}

func (c *core) start(fetch bool, sleep store.SleepChange) store.Request {
	request := store.Request{Failed: c.failed, Sleep: sleep, AskPause: c.byHand.paused}
	c.trip = &roundTrip{}
	for epoch := max(c.checkpoints.epoch, 2) - 1; epoch <= c.checkpoints.epoch; epoch++ {
		if seqs := c.stored[epoch&1]; len(seqs) > 0 {
			request.Settled = append(request.Settled, store.Settled{Seqs: seqs, After: c.checkpoints.after(epoch)})
			c.trip.epochs = append(c.trip.epochs, epoch)
		}
		if seqs := c.twice[epoch&1]; len(seqs) > 0 {
			request.Settled = append(request.Settled, store.Settled{Seqs: seqs, After: c.checkpoints.after(epoch), Unarchived: true})
			c.trip.epochs = append(c.trip.epochs, epoch)
		}
	}
	if fetch {
		c.heat()
	}
	if request.Checkpoint = c.checkpoints.checkpoint(); request.Checkpoint > 0 {
		request.ScanFrom = c.scanFrom()
	}
	c.trip.clears = c.old.allStored() && len(c.doubles)+len(c.aside) == 0
	if c.noted != c.maxData {
		request.MaxPayload = c.maxData
	}
	for _, b := range c.dead {
		request.Dead = append(request.Dead, b.failure)
		if !b.nameless {
			c.trip.givenUp = append(c.trip.givenUp, b.aggregate)
		}
	}
	c.stored, c.twice, c.failed, c.dead = [2][]int64{}, [2][]int64{}, nil, nil
	if fetch {
		refilled := c.refilling()
		if refilled >= 0 {
			c.trip.refill = &refill{c.hot[refilled].aggregate, c.floor}
		}
		request.Fetch = c.fetch(refilled)
		c.more = false // A wake-up from now on may be about rows that this fetch does not see.
	}
	c.trip.request = request
	return request
}

// scanFrom returns the lowest seq of rows that are passed over now and wanted later; nil for none.
func (c *core) scanFrom() *int64 {
	lowest := c.blocked.lowest()
	lower := func(from int64) {
		if lowest == nil || from < *lowest {
			lowest = new(from)
		}
	}
	for _, h := range c.hot {
		lower(c.lowestOf(h))
	}
	if c.back { // This round trip may not fetch.
		lower(c.backTo)
	}
	return lowest
}

// fetch describes the page to fetch once all stored rows are settled. Refilled is the place in core.hot of the aggregate that
// the fetch goes back for; -1 for none.
func (c *core) fetch(refilled int) *store.Fetch {
	f := &store.Fetch{Rows: c.batch, Bytes: c.batchBytes, MaxData: c.maxData, Highest: c.highest, Passed: c.blocked.seqs(), Back: c.back, BackTo: c.backTo}
	if refilled >= 0 {
		f.Rows = c.highFill()
		f.Back, f.Stay, f.BackTo = true, true, c.hot[refilled].from
	} else {
		c.back = false
	}
	if held := c.heldRows + len(c.aside) + len(c.doubles); held > 0 {
		f.Held = make([]int64, 0, held)
		if len(c.hot) == 0 {
			f.Held = slices.AppendSeq(f.Held, maps.Keys(c.held))
		} else {
			for seq, it := range c.held { // Hot aggregates are left out by name, and the floor is to pass their rows.
				if i := c.hotIndex(it.lane.aggregate); i < 0 || i == refilled {
					f.Held = append(f.Held, seq)
				}
			}
		}
		for _, a := range c.aside {
			f.Held = append(f.Held, a.seq)
		}
		for _, d := range c.doubles {
			f.Held = append(f.Held, d.ref.Seq)
		}
	}
	f.BlockedTypes, f.BlockedIDs = c.blocked.names()
	for i, h := range c.hot {
		if i != refilled {
			f.BlockedTypes, f.BlockedIDs = append(f.BlockedTypes, h.aggregate.kind), append(f.BlockedIDs, h.aggregate.id)
		}
	}
	return f
}

// answered takes the answer to the round trip under way. A round trip that failed has none: it ends the term.
func (c *core) answered(response store.Response, now time.Time) {
	done := c.trip
	c.trip = nil
	c.byHand.asked(now)
	c.moveFloor(response.Floor, done.request.Fetch)
	if response.Remaining == nil { // Otherwise it is not known which of the rows are gone.
		for i, s := range done.request.Settled {
			c.checkpoints.settled(done.epochs[i], len(s.Seqs))
		}
		c.keep(done, response.Kept, now)
		c.checkpoints.clear = c.checkpoints.clear || done.clears && len(response.Kept) == 0
	}
	for _, a := range done.givenUp {
		if from, ok := c.blocked.recorded(a); ok {
			c.goBack(from)
		}
	}
	if done.request.MaxPayload > 0 {
		c.noted = done.request.MaxPayload
	}
	switch done.request.Sleep {
	case store.FallAsleep:
		c.asleep = response.Asleep
	case store.WakeUp:
		c.asleep, c.busy = false, now
	case store.KeepSleep:
	}
	if done.request.Fetch == nil {
		return
	}
	c.add(response.Rows, now)
	if done.refill != nil {
		c.refilled(*done.refill, response)
	}
	if c.old.gathering && !response.Full && len(c.hot) == 0 {
		c.old.gathering = false
		c.old.lost = c.old.lost || len(c.blocked.of)+len(c.aside) > 0
	}
	c.more = c.more || response.Full
	switch {
	case c.asleep:
		c.next = now.Add(c.poll)
	case len(response.Rows) > 0:
		c.busy = now
		c.next = now.Add(shortNap)
	default:
		c.next = now.Add(min(max(now.Sub(c.busy)/napShare, shortNap), longNap))
	}
}

// moveFloor takes note of the floor. If it is lower than this fetch asked for, rows were put back below it.
func (c *core) moveFloor(floor int64, f *store.Fetch) {
	known := c.floor
	if f != nil && f.Back && !f.Stay {
		known = min(known, f.BackTo)
	}
	if floor < known {
		c.blocked.lower(floor)
		for i := range c.hot {
			c.hot[i].from = min(c.hot[i].from, floor)
		}
	}
	c.floor = floor
}

// keep deals with the rows that the database did not let go, or whose refusal it did not record.
func (c *core) keep(done *roundTrip, kept []store.Kept, now time.Time) {
	for _, k := range kept {
		switch {
		case k.Settle:
			for i, s := range done.request.Settled {
				if slices.Contains(s.Seqs, k.Seq) {
					c.setAside(aside{seq: k.Seq, epoch: done.epochs[i]}, now)
					c.checkpoints.settled(done.epochs[i], -1)
				}
			}
		case !k.Marked:
			// The row can neither be moved nor marked. Its aggregate goes on; the row must not be fetched again and again.
			for _, f := range slices.Concat(done.request.Failed, done.request.Dead) {
				if f.Seq == k.Seq {
					c.setAside(aside{seq: k.Seq, refused: &deadLetter{nameless: true, failure: f}}, now)
				}
			}
		}
	}
}

// deadline returns when nextRoundTrip may have something to do although nothing else has happened; zero for never.
func (c *core) deadline() time.Time {
	if c.trip != nil || c.recovering {
		return time.Time{}
	}
	at := c.blocked.deadline()
	earlier := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if c.room() {
		earlier(c.next)
	}
	if c.recordable() > 0 {
		earlier(c.storedAt.Add(settleAfter))
	}
	if c.byHand.paused {
		earlier(c.byHand.askAt)
	}
	if len(c.aside) > 0 {
		earlier(c.asideAt)
	}
	return at
}
