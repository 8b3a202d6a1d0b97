package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// candidate is one of the two relays: production's term, with its core and its recovery, and what is between it and the
// world. It is copied at every step, so that all that may come next can be tried.
type candidate struct {
	term    *term // Nil while it campaigns.
	session bool  // It holds the lock.
	lease   bool  // Its clock says so.
	frozen  bool  // It does nothing, for now.
	atLeast int64 // See Relay.
	floor   int64 // Where its next fetch begins,
	back    int64 // unless rows were put back below that; 0 if not.

	// What it has asked for and not been answered.
	request  *store.Request
	opening  bool
	looks    []glance // Oldest first.
	recovery *readingBack

	// Its publisher.
	connected    bool
	reconnecting bool // The connection broke, which it has not been told.
	fence        uint64
	fenced       bool
	inFlight     []int64 // Plain messages on their way.
	silent       []int64 // Those whose answer will not come.
	ordered      *orderedBatch
	severed      bool // The ordered batch ended, which it has not been told.
	outcomes     []publisher.Outcome
	trouble      *stream.Error // That of the connection; nil for none.
	mark         int           // The stamp of the last message that it saw, when it looked.
}

// glance is a look at the stream under way.
type glance struct {
	before     history.State
	remembered int // The stamp of its last message.
	acked      uint64

	taken bool // It is over, and the answer on its way.
	state history.State
	mark  int
	err   error
}

// readingBack is a recovery under way, or the handing over of a leader that stops. It cannot be copied in the middle of production's code, so it is run again up to
// where it was, with the answers that it got, to find out what it asks for next.
type readingBack struct {
	checkpoint store.Checkpoint
	first      bool
	leaving    bool // It hands over.
	acked      uint64
	answers    []answer // Never changed in place.
	at         int
	next       answer // What it asks for.
}

// answer is a request of a recovery and the answer to it.
type answer struct {
	kind       string
	above      uint64
	refs       []store.Ref
	lost       []store.Archived
	checkpoint store.Checkpoint

	fence    history.Fence
	state    history.State
	found    []history.Found
	archived []store.Archived
	n        int
	err      error
}

func (o *candidate) clone() *candidate {
	n := *o
	n.inFlight, n.silent, n.outcomes, n.looks = slices.Clone(o.inFlight), slices.Clone(o.silent), slices.Clone(o.outcomes), slices.Clone(o.looks)
	n.ordered = o.ordered.clone()
	if o.recovery != nil {
		r := *o.recovery
		r.answers = slices.Clip(r.answers)
		n.recovery = &r
	}
	if t := o.term; t != nil {
		n.term = &term{
			Relay: t.Relay, lease: t.lease, core: t.core.clone(), stop: t.stop, healthy: t.healthy, start: t.start,
			inOutbox: t.inOutbox, session: t.session, number: t.number, checkpoint: t.checkpoint, first: t.first, id: t.id,
			woken: t.woken, responses: t.responses, opened: t.opened, read: t.read, verifications: t.verifications,
			handed: t.handed, standbys: t.standbys, originals: t.originals, reported: t.reported, orderedTold: t.orderedTold,
		}
	}
	return &n
}

// clone copies the core with all that it may change.
func (c *core) clone() *core {
	n := *c
	type pair struct{ old, new *lane }
	var lanes []pair
	lookup := func(l *lane) *lane {
		if l == nil {
			return nil
		}
		for _, p := range lanes {
			if p.old == l {
				return p.new
			}
		}
		m := *l
		lanes = append(lanes, pair{l, &m})
		return &m
	}
	n.held = make(map[int64]*item, len(c.held))
	for seq, it := range c.held {
		m := *it
		m.lane = lookup(it.lane)
		n.held[seq] = &m
	}
	n.lanes = make(map[aggregate]*lane, len(c.lanes))
	for a, l := range c.lanes {
		n.lanes[a] = lookup(l)
	}
	n.ready = fifo[*lane]{}
	for _, l := range c.ready.items[c.ready.head:] {
		n.ready.push(lookup(l))
	}
	again := func(it *item) *item {
		if it == nil {
			return nil
		}
		return n.held[it.row.Seq]
	}
	for _, it := range n.held {
		it.next = again(it.next)
	}
	for _, p := range lanes {
		p.new.first, p.new.last, p.new.waiting = again(p.new.first), again(p.new.last), again(p.new.waiting)
	}
	n.spare, n.created = nil, nil
	for range c.spare {
		n.spare = append(n.spare, new(lane)) // Which of them is used does not matter.
	}
	n.blocked, n.aside = c.blocked.clone(), nil
	n.failed, n.dead = slices.Clone(c.failed), slices.Clone(c.dead)
	n.doubles, n.hot = slices.Clone(c.doubles), slices.Clone(c.hot)
	for parity := range n.stored {
		n.stored[parity], n.twice[parity] = slices.Clone(c.stored[parity]), slices.Clone(c.twice[parity])
	}
	return &n
}

func (b *blocks) clone() blocks {
	n := blocks{of: make(map[aggregate]*block, len(b.of)), passed: b.passed}
	for a, bl := range b.of {
		m := *bl
		m.passed = slices.Clone(bl.passed)
		n.of[a] = &m
	}
	for _, bl := range b.due {
		n.due = append(n.due, n.of[bl.aggregate])
	}
	return n
}

// port is what a term takes for its outbox and its publisher: it notes what the term asks for. The explorer decides
// when, and whether, that is answered.
type port struct {
	relay     *Relay
	world     *world
	candidate *candidate

	forever  time.Time
	outboxID uuid.UUID
	start    store.TermStart // Of the term that begins.
	fence    history.Fence   // Of the recovery that asks.
}

func newPort(s *scenario) *port {
	p := &port{forever: time.Now().Add(24 * time.Hour), outboxID: uuid.UUID{1}}
	options, err := Options{BatchSize: s.batch, MaxAttempts: s.attempts, Window: 16, Name: "relay", Logger: slog.New(slog.DiscardHandler)}.validated()
	if err != nil {
		panic(err)
	}
	p.relay = &Relay{store: portStore{p}, publisher: portPublisher{p}, readsBack: !s.sabotage.neverReadBack, options: options, log: options.Logger, hooks: Hooks{}.orNop()}
	return p
}

// portPublisher is the port as a publisher: the outbox's Begin is another.
type portPublisher struct{ *port }

// portStore is the port as an outbox, with what a term does not use.
type portStore struct{ *port }

func (portStore) Close(context.Context) error   { return nil }
func (portStore) Migrate(context.Context) error { return nil }
func (portStore) Check(context.Context) error   { return nil }
func (portStore) Table() store.Table            { return store.Table{} }
func (portStore) Retains() bool                 { return true }
func (portStore) Paused() *store.Pause          { return nil }

func (p *port) ReadsBack() bool                                 { return true }
func (p *port) Guards() bool                                    { return false }
func (p *port) Guard(func() bool)                               {}
func (p *port) RequireWindow(func(time.Duration) time.Duration) {}
func (p *port) MaxData() int                                    { return 0 }

// newTerm is production's, except that what a term starts is done at once, and that the world says when a time has passed.
func (p *port) newTerm() *term {
	lease := election.NewLease(func() (time.Time, bool) { return p.forever, p.candidate.lease || p.world.sabotage.anyLease })
	t := p.relay.newTerm(lease, nil, func() {})
	t.start = func(work func()) { work() }
	t.core.orderedFrom = max(p.world.orderedFrom, 1)
	t.core.checkpoints.clock = p
	return t
}

// passed makes epochs as short as can be, unless less than a second passes.
func (p *port) passed(time.Time, time.Duration, time.Time) bool { return !p.world.slow }

// landed makes checkpoints wait as long as there are strays.
func (p *port) landed(time.Time, time.Time) bool {
	return p.world.sabotage.strayBlind || !p.world.drifting()
}

// turn is that of term.loop. What the term asks for is only noted, but for what takes no time here.
func (p *port) turn(now time.Time) (done bool) {
	for t := p.candidate.term; ; {
		done := t.turn(context.Background(), now)
		if p.forget(); done || len(t.originals) == 0 {
			return done
		}
		t.examined(context.Background(), <-t.originals, now)
	}
}

// Find is publisher.Publisher.Find.
func (p *port) Find(_ context.Context, sequence uint64) (history.Found, error) {
	if sequence == 0 || sequence > uint64(len(p.world.messages)) {
		return history.Found{}, nil
	}
	m := p.world.messages[sequence-1]
	return history.Found{Event: m.seq > 0, Seq: m.seq, ID: idOf(m.seq), Stored: sequence}, nil
}

// forget drops the answers to what was started, which were none. Nobody is there to make way for, and a report changes
// nothing.
func (p *port) forget() {
	for t := p.candidate.term; ; {
		select {
		case <-t.responses:
		case <-t.opened:
		case <-t.read:
		case <-t.verifications:
		case <-t.handed: //nolint:errcheck // As the others.
		case s := <-t.standbys:
			if err := t.soughtStandby(s, time.Now()); err != nil {
				panic(err)
			}
		case told := <-t.reported:
			t.toldOutbox(context.Background(), told)
		default:
			return
		}
	}
}

func (p *port) Begin(_ context.Context, _, _ string, atLeast int64) (Term, error) {
	w := p.world
	w.terms = max(w.terms+1, atLeast)
	p.candidate.floor = w.scanFrom
	p.start = store.TermStart{OutboxID: p.outboxID, Number: w.terms, Checkpoint: w.checkpoint, First: !w.recorded, Floor: w.scanFrom}
	for i, r := range w.rows {
		if r.state == waiting && r.attempts > 0 {
			p.start.Blocked = append(p.start.Blocked, store.Blocked{AggregateType: "A", AggregateID: w.aggregates[i : i+1], For: time.Second})
		}
	}
	return p, nil
}

func (p *port) Start() store.TermStart { return p.start }

func (p *port) Stand(context.Context, string, store.Candidacy) (string, error) { return "", nil }
func (p *port) Report(context.Context, string, time.Duration) error            { return nil }
func (p *port) Standbys(context.Context) (int, error)                          { return 0, nil } // What comes of a term's end is covered by others.

func (p *port) End(context.Context) error                  { return nil } // Only a sleeping producer would notice.
func (p *port) Listen(context.Context, func()) error       { return nil }
func (p *port) Sweep(context.Context, func())              {}
func (p *port) Watch(context.Context, func(store.Finding)) {}
func (p *port) Stream() string                             { return "S" }
func (p *port) Outcomes() <-chan struct{}                  { return nil }
func (p *port) Close()                                     {}

func (p *port) RoundTrip(_ context.Context, request store.Request) (store.Response, error) {
	p.candidate.request = &request
	return store.Response{}, errUnanswered
}

func (p *port) Open(context.Context) ([]stream.Warning, error) {
	p.candidate.opening = true
	return nil, errUnanswered
}

func (p *port) Verify(_ context.Context, before history.State, acked uint64) (history.State, error) {
	if p.candidate.term.core.handing == handingOver {
		a := p.ask(answer{kind: "look", above: acked})
		return a.state, a.err
	}
	p.candidate.looks = append(p.candidate.looks, glance{before: before, remembered: p.candidate.mark, acked: acked})
	return history.State{}, errUnanswered
}

// ask is a recovery's request.
func (p *port) ask(request answer) answer {
	o := p.candidate
	if o.recovery == nil {
		o.recovery = &readingBack{checkpoint: o.term.checkpoint, first: o.term.first, leaving: o.term.core.handing == handingOver, acked: o.term.core.detector.acked}
	}
	r := o.recovery
	if r.at < len(r.answers) {
		r.at++
		return r.answers[r.at-1]
	}
	r.next = request
	request.err = errUnanswered
	return request
}

// Begin is Publisher.Begin.
func (p portPublisher) Begin(_ context.Context, _ string, _ int64, first bool) (Session, history.Fence, error) {
	if !p.relay.readsBack {
		return p.port, history.Fence{}, nil
	}
	kind := "fence"
	if first {
		kind = "first fence"
	}
	a := p.ask(answer{kind: kind})
	p.fence = a.fence
	return p.port, a.fence, a.err
}

func (p *port) Scan(_ context.Context, above uint64, visit func(history.Found) error) error {
	a := p.ask(answer{kind: "scan", above: above, fence: p.fence})
	for _, found := range a.found {
		if err := visit(found); err != nil {
			return err
		}
	}
	return a.err
}

func (p *port) Archive(_ context.Context, above uint64) ([]store.Archived, error) {
	a := p.ask(answer{kind: "archive", above: above})
	return a.archived, a.err
}

func (p *port) Settle(_ context.Context, found []store.Ref, after uint64) (int, []store.Ref, error) {
	a := p.ask(answer{kind: "settle", refs: slices.Clone(found), above: after})
	return a.n, nil, a.err
}

func (p *port) PutBack(_ context.Context, lost []store.Archived, checkpoint store.Checkpoint) (int, error) {
	a := p.ask(answer{kind: "put back", lost: lost, checkpoint: checkpoint})
	return a.n, a.err
}

// answered gives a recovery its next answer. It returns what became of it once it has all of them.
func (p *port) answered(a answer) (recovery, bool) {
	o := p.candidate
	r := o.recovery
	r.answers, r.at, r.next = append(r.answers, a), 0, answer{}
	if r.leaving {
		err := o.term.recordHandOver(context.Background(), o.term.core.detector.state, r.acked)
		if errors.Is(err, errUnanswered) {
			return recovery{}, false
		}
		o.recovery = nil
		o.term.left(context.Background(), err)
		return recovery{err: err}, true
	}
	result := o.term.readBack(context.Background(), r.checkpoint, r.first)
	if errors.Is(result.err, errUnanswered) {
		return recovery{}, false
	}
	o.recovery = nil
	return result, true
}

func (p *port) Publish(event *stream.Event) error {
	o := p.candidate
	if o.reconnecting || !o.connected {
		return errNotSent
	}
	o.inFlight = append(o.inFlight, event.Seq)
	p.world.aside("it sends row %d", event.Seq)
	return nil
}

func (p *port) VerifyFirst() bool { return false }

func (p *port) Alone() bool { return false } // That is covered by what a stream acknowledges.

func (p *port) BatchWindow() int {
	if p.world.orderedFrom == 0 || !p.candidate.connected {
		return 0
	}
	return 8
}

func (p *port) PublishOrdered(event *stream.Event) error {
	o := p.candidate
	switch {
	case o.severed:
		o.outcomes = append(o.outcomes, publisher.Outcome{Seq: event.Seq, Err: errBehind})
		return nil
	case o.reconnecting || !o.connected:
		return errNotSent
	}
	if o.ordered != nil && len(o.ordered.unacked) == 0 && o.ordered.ending {
		o.ordered = nil
	}
	if o.ordered == nil {
		o.ordered = &orderedBatch{fence: o.fence, fenced: o.fenced}
	}
	o.ordered.queue, o.ordered.unacked = append(o.ordered.queue, event.Seq), append(o.ordered.unacked, event.Seq)
	p.world.aside("it sends row %d in an ordered batch", event.Seq)
	return nil
}

func (p *port) Flush() {} // What is on its way is in the queue.

func (p *port) Finish() {
	if o := p.candidate; o.ordered != nil && !o.ordered.ending {
		o.ordered.ending = true
		o.ordered.queue = append(o.ordered.queue, 0)
	}
}

func (p *port) Collect(to []publisher.Outcome) (outcomes []publisher.Outcome, trouble *stream.Error) {
	o := p.candidate
	outcomes, trouble = append(to, o.outcomes...), o.trouble
	o.outcomes, o.trouble, o.severed, o.reconnecting = nil, nil, false, false
	return outcomes, trouble
}

// collectable reports whether there is something to collect.
func (o *candidate) collectable() bool { return len(o.outcomes) > 0 || o.trouble != nil }

// The encoding of a state: two states that are encoded alike go on alike. Times are left out: the clock stands still,
// and what waits for a time may be let go on at any moment.

type encoder struct {
	b       []byte
	parts   []int // Where parts without an order end.
	scratch []byte
}

func (e *encoder) flag(flags ...bool) {
	for _, f := range flags {
		if f {
			e.b = append(e.b, 1)
		} else {
			e.b = append(e.b, 0)
		}
	}
}

func (e *encoder) number(numbers ...uint64) {
	for _, n := range numbers {
		e.b = binary.AppendUvarint(e.b, n)
	}
}

func (e *encoder) seqs(seqs []int64) {
	e.number(uint64(len(seqs)))
	for _, seq := range seqs {
		e.number(uint64(seq))
	}
}

func (e *encoder) set(seqs []int64) {
	if len(seqs) > 1 {
		seqs = slices.Sorted(slices.Values(seqs))
	}
	e.seqs(seqs)
}

func (e *encoder) orderedBatch(p *orderedBatch) {
	e.flag(p != nil)
	if p != nil {
		e.number(p.fence, p.last)
		e.flag(p.fenced, p.begun, p.held, p.ending)
		e.seqs(p.queue)
		e.seqs(p.unacked)
	}
}

func (e *encoder) checkpoint(c store.Checkpoint) {
	e.number(c.Sequence, c.Before, uint64(max(c.Created.Sub(birth)/time.Hour, -1)+1))
}

func (e *encoder) world(w *world) {
	for _, r := range w.rows {
		e.number(uint64(r.state), uint64(r.attempts))
		e.flag(r.stray)
		if r.state == archived {
			e.number(r.after)
		}
	}
	e.checkpoint(w.checkpoint)
	e.flag(w.recorded, w.forgot)
	e.number(uint64(w.terms), uint64(w.anew), uint64(w.scanFrom), uint64(len(w.messages)))
	for _, m := range w.messages {
		e.number(uint64(m.seq), uint64(m.term))
		e.flag(m.known)
	}
	// What is on its way of former terms, and the two relays, have no order.
	e.unordered(len(w.strays), func(e *encoder, i int) {
		e.number(uint64(w.strays[i].seq))
		e.orderedBatch(w.strays[i].ordered)
	})
	e.unordered(len(w.candidates), func(e *encoder, i int) { e.candidate(w, w.candidates[i]) })
}

func (e *encoder) unordered(n int, encode func(e *encoder, i int)) {
	e.number(uint64(n))
	start := len(e.b)
	e.parts = e.parts[:0]
	for i := range n {
		encode(e, i)
		e.parts = append(e.parts, len(e.b))
	}
	if n < 2 {
		return
	}
	e.scratch = append(e.scratch[:0], e.b[start:]...)
	parts, from := make([][]byte, n), start
	for i, to := range e.parts {
		parts[i], from = e.scratch[from-start:to-start], to
	}
	slices.SortFunc(parts, bytes.Compare)
	e.b = e.b[:start]
	for _, part := range parts {
		e.b = append(e.b, part...)
	}
}

func (e *encoder) candidate(w *world, o *candidate) {
	e.number(uint64(o.atLeast))
	e.flag(o.term != nil)
	t := o.term
	if t == nil {
		return
	}
	e.flag(o.session, o.lease, o.frozen, o.opening, o.connected, o.reconnecting, o.fenced, o.severed)
	e.number(o.fence, uint64(o.floor), uint64(o.back))
	e.set(o.inFlight)
	e.set(o.silent)
	e.orderedBatch(o.ordered)
	e.flag(o.trouble != nil)
	e.number(uint64(len(o.outcomes)))
	for _, x := range o.outcomes {
		e.number(uint64(x.Seq), x.Stored)
		e.flag(x.Duplicate, x.Err != nil, x.Err != nil && x.Err.Ambiguous(), x.Err == errRefused)
	}
	e.number(uint64(len(o.looks)))
	for _, g := range o.looks {
		e.flag(w.marked(g.before.Last) == g.remembered, g.taken, g.err != nil, g.taken && w.marked(g.state.Last) == g.mark)
		e.created(w, g.before)
		e.created(w, g.state)
		e.number(g.before.Last, g.acked, g.state.Last)
	}
	e.flag(o.recovery != nil)
	if r := o.recovery; r != nil {
		e.checkpoint(r.checkpoint)
		e.flag(r.first, r.leaving)
		e.number(uint64(len(r.answers)))
		for i := range r.answers {
			e.answer(w, &r.answers[i])
		}
	}
	a, circuit := &t.core.detector, &t.core.circuit
	e.created(w, a.state)
	e.flag(!a.state.Created.IsZero() && w.marked(a.state.Last) == o.mark, a.verifying, a.void, a.failed, a.busy, a.due.IsZero(),
		a.epoch == 0, a.epoch == t.core.checkpoints.epoch)
	e.number(a.state.Last, a.acked)
	e.number(uint64(circuit.breaker), uint64(t.number), uint64(t.core.handing))
	e.flag(circuit.opening, circuit.lost != nil, circuit.reopenAt.IsZero(), circuit.troubles > 0, circuit.reason != "", t.first, t.core.stopping)
	e.checkpoint(t.checkpoint)
	e.core(t.core, int64(len(w.rows)))
}

// created encodes whether the stream was seen, and whether it was the one that is there now: a former one never comes back.
func (e *encoder) created(w *world, s history.State) {
	e.flag(s.Created.IsZero(), s.Created.Equal(w.createdAt()))
}

func (e *encoder) answer(w *world, a *answer) {
	e.created(w, a.state)
	e.number(a.fence.Sequence, a.fence.First, a.fence.Former, a.above, uint64(a.n), uint64(len(a.found)), a.state.Last)
	e.number(uint64(max(a.fence.Created.Sub(birth)/time.Hour, -1) + 1))
	for _, f := range a.found {
		e.number(uint64(f.Seq), f.Stored)
	}
	e.number(uint64(len(a.archived)))
	for _, x := range a.archived {
		e.number(uint64(x.Seq), x.After)
	}
}

func (e *encoder) blocks(b *blocks) {
	e.number(uint64(len(b.of)), uint64(len(b.due)), uint64(b.passed))
	for _, a := range slices.SortedFunc(maps.Keys(b.of), func(a, b aggregate) int { return strings.Compare(a.id, b.id) }) {
		bl := b.of[a]
		e.b = append(e.b, a.id...)
		e.flag(bl.recording)
		e.number(uint64(bl.from))
		e.set(bl.passed)
	}
}

func (e *encoder) failures(of []store.Failure) {
	e.number(uint64(len(of)))
	for _, f := range of {
		e.number(uint64(f.Seq), uint64(f.Attempts))
	}
}

func (e *encoder) core(c *core, rows int64) {
	age := func(epoch uint64) uint64 {
		if epoch == 0 {
			return 9
		}
		return c.checkpoints.epoch - epoch
	}
	for seq := int64(1); seq <= rows; seq++ {
		it := c.held[seq]
		if it == nil {
			e.number(0)
			continue
		}
		e.number(1, age(it.epoch), uint64(it.row.Attempts))
		e.flag(it.inFlight, it.old, it.lane.waiting == it, it.lane.first == it, it.lane.queued)
		if it.next != nil {
			e.number(uint64(it.next.row.Seq))
		}
	}
	e.number(uint64(c.ready.len()))
	for _, l := range c.ready.items[c.ready.head:] {
		e.number(uint64(l.aggregate.id[0]))
	}
	e.number(uint64(c.heldRows), uint64(c.inFlight))
	e.flag(c.ordered, c.closing, c.readsBack, c.doubt, c.recovering, c.stale, c.more, c.asleep, c.next.IsZero(), c.back, c.batches)
	if c.back {
		e.number(uint64(c.backTo))
	}
	e.number(uint64(c.floor))
	e.number(uint64(len(c.hot)))
	for _, h := range slices.SortedFunc(slices.Values(c.hot), func(a, b hot) int { return strings.Compare(a.aggregate.id, b.aggregate.id) }) {
		e.number(uint64(h.from))
		e.b = append(e.b, h.aggregate.id...)
	}
	e.blocks(&c.blocked)
	e.failures(c.failed)
	e.number(uint64(len(c.dead)))
	for _, d := range c.dead {
		e.number(uint64(d.failure.Seq), uint64(d.failure.Attempts))
	}
	l := &c.checkpoints
	for back := range uint64(2) {
		parity := (l.epoch - back) & 1
		e.number(l.start[parity], uint64(l.unsettled[parity]))
		e.set(c.stored[parity])
		e.set(c.twice[parity])
	}
	e.number(min(l.epoch, 2))
	e.number(uint64(c.old.left))
	e.flag(l.unrecorded, l.clear, c.old.gathering, c.old.lost, c.trip != nil)
	if c.trip != nil {
		e.flag(c.trip.clears)
		r := &c.trip.request
		e.number(uint64(len(r.Settled)))
		for _, s := range r.Settled {
			e.set(s.Seqs)
			e.number(s.After)
		}
		e.failures(r.Failed)
		e.failures(r.Dead)
		e.number(r.Checkpoint, uint64(r.Sleep))
		e.flag(r.ScanFrom != nil)
		if r.ScanFrom != nil {
			e.number(uint64(*r.ScanFrom))
		}
		e.flag(r.Fetch != nil)
		if r.Fetch != nil {
			e.set(r.Fetch.Held)
			e.flag(r.Fetch.Back, r.Fetch.Stay)
			e.number(uint64(r.Fetch.BackTo), uint64(len(r.Fetch.BlockedIDs)))
		}
		e.flag(c.trip.refill != nil)
		if c.trip.refill != nil {
			e.number(uint64(c.trip.refill.proven), uint64(c.trip.refill.aggregate.id[0]))
		}
	}
}
