package relay

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
	"weak"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

var (
	errRow     = &stream.Error{Fault: stream.FaultRow, Err: errors.New("too large")}
	errWeather = &stream.Error{Fault: stream.FaultWeather, Err: errors.New("no responders")}
)

func newTestCore(t *testing.T, options Options) *core {
	t.Helper()
	options, err := options.validated()
	if err != nil {
		t.Fatal(err)
	}
	return newCore(options)
}

func row(seq int64, aggregateID string) store.Row {
	return store.Row{Seq: seq, AggregateType: "A", AggregateID: aggregateID}
}

// mustRoundTrip demands that a round trip is due, and returns it.
func (c *core) mustRoundTrip(t *testing.T, now time.Time) store.Request {
	t.Helper()
	request, due := c.nextRoundTrip(now)
	if !due {
		t.Fatal("no round trip is due")
	}
	return request
}

// drain takes all rows that may be published now.
func (c *core) drain() (seqs []int64) {
	for {
		r, ok := c.publishable(c.window)
		if !ok {
			return seqs
		}
		seqs = append(seqs, r.Seq)
	}
}

func expect(t *testing.T, what string, got, want []int64) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// settled returns the seqs of a request's settled rows.
func settled(request store.Request) (seqs []int64) {
	for _, s := range request.Settled {
		seqs = append(seqs, s.Seqs...)
	}
	return seqs
}

// loaded is a core whose first fetch returned rows.
func loaded(t *testing.T, options Options, now time.Time, rows ...store.Row) *core {
	t.Helper()
	c := newTestCore(t, options)
	if request := c.mustRoundTrip(t, now); request.Fetch == nil {
		t.Fatal("the first round trip does not fetch")
	}
	c.answered(store.Response{Floor: 1, Rows: rows}, now)
	return c
}

func TestOneInFlightPerAggregate(t *testing.T) {
	now := time.Now()
	c := loaded(t, Options{}, now, row(1, "a"), row(2, "a"), row(3, "b"), row(4, "a"), row(5, "b"))
	expect(t, "first", c.drain(), []int64{1, 3})
	c.resolved(3, nil, now)
	expect(t, "after 3", c.drain(), []int64{5})
	if v := c.resolved(1, errWeather, now); v != postponed {
		t.Errorf("weather: got verdict %v", v)
	}
	expect(t, "1 again, before 2", c.drain(), []int64{1})
	c.resolved(1, nil, now)
	expect(t, "after 1", c.drain(), []int64{2})
	c.resolved(2, nil, now)
	expect(t, "after 2", c.drain(), []int64{4})
}

func TestWindow(t *testing.T) {
	now := time.Now()
	c := loaded(t, Options{Window: 2}, now, row(1, "a"), row(2, "b"), row(3, "c"))
	expect(t, "a full window", c.drain(), []int64{1, 2})
	c.resolved(2, nil, now)
	expect(t, "room for one", c.drain(), []int64{3})
}

// A row that committed late goes before those of its aggregate that still wait.
func TestLateRow(t *testing.T) {
	now := time.Now()
	c := loaded(t, Options{}, now, row(5, "a"), row(7, "a"), row(8, "a"))
	expect(t, "first", c.drain(), []int64{5})
	c.wake()
	request := c.mustRoundTrip(t, now)
	slices.Sort(request.Fetch.Held)
	expect(t, "held", request.Fetch.Held, []int64{5, 7, 8})
	c.answered(store.Response{Rows: []store.Row{row(4, "a"), row(6, "a")}}, now)
	var order []int64
	for seq := int64(5); seq != 0; {
		c.resolved(seq, nil, now)
		seq = 0
		if next := c.drain(); len(next) == 1 {
			seq = next[0]
			order = append(order, seq)
		}
	}
	expect(t, "order", order, []int64{4, 6, 7, 8})
}

func TestRefusedRowBlocksItsAggregateOnly(t *testing.T) {
	now := time.Now()
	c := loaded(t, Options{MaxAttempts: 2, RetryBackoff: time.Second}, now, row(1, "a"), row(2, "a"), row(3, "b"))
	c.drain()
	if v := c.resolved(1, errRow, now); v != refused {
		t.Errorf("got verdict %v, want refused", v)
	}
	request := c.mustRoundTrip(t, now)
	want := []store.Failure{{Ref: store.Ref{Seq: 1}, Attempts: 1, Wait: time.Second, Reason: "too large", Size: 2}}
	if !slices.Equal(request.Failed, want) {
		t.Errorf("got %+v, want %+v", request.Failed, want)
	}
	c.answered(store.Response{Floor: 1}, now)
	c.resolved(3, nil, now)

	c.wake()
	request = c.mustRoundTrip(t, now)
	if got := fmt.Sprint(request.Fetch.BlockedTypes, request.Fetch.BlockedIDs); got != "[A] [a]" {
		t.Errorf("blocked: %s", got)
	}
	c.answered(store.Response{Floor: 1, Rows: []store.Row{row(2, "a"), row(4, "b")}}, now) // 2 by a snapshot from before.
	expect(t, "while a is blocked", c.drain(), []int64{4})
	c.resolved(4, nil, now)

	// It is let go at its time, not before.
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Floor: 1, Asleep: true}, now)
	later := now.Add(time.Second)
	if request, due := c.nextRoundTrip(later.Add(-1)); due {
		t.Errorf("1 ns early: %+v", request)
	}
	if at := c.deadline(); !at.Equal(later) {
		t.Errorf("deadline %v, want %v", at, later)
	}
	request = c.mustRoundTrip(t, later)
	if len(request.Fetch.BlockedIDs) != 0 || !request.Fetch.Back || request.Fetch.BackTo != 1 {
		t.Errorf("at its time: %+v", request)
	}
	again := row(1, "a")
	again.Attempts = 1
	c.answered(store.Response{Floor: 1, Rows: []store.Row{again, row(2, "a")}}, later)
	expect(t, "again", c.drain(), []int64{1})

	// Given up: the rest of the aggregate waits until that is recorded.
	if v := c.resolved(1, errRow, later); v != givenUp {
		t.Errorf("got verdict %v, want givenUp", v)
	}
	expect(t, "before it is recorded", c.drain(), nil)
	request = c.mustRoundTrip(t, later)
	if len(request.Dead) != 1 || request.Dead[0].Seq != 1 || request.Dead[0].Attempts != 2 {
		t.Errorf("dead: %+v", request.Dead)
	}
	c.answered(store.Response{Floor: 1}, later)
	request = c.mustRoundTrip(t, later)
	if request.Fetch == nil || !request.Fetch.Back || request.Fetch.BackTo != 1 || len(request.Fetch.BlockedIDs) != 0 {
		t.Errorf("after it was recorded: %+v", request)
	}
}

// A user who may publish nothing makes no dead letters of all events: only beside others that are stored a denied one is
// given up.
func TestDeniedIsNotGivenUpAlone(t *testing.T) {
	now := time.Now()
	denied := &stream.Error{Fault: stream.FaultRow, Err: &stream.PermissionError{Subject: "outbox.a"}}
	for _, maxAttempts := range []int{1, 2, 5} {
		last, more := row(1, "a"), row(3, "c")
		last.Attempts, more.Attempts = maxAttempts-1, maxAttempts-1
		c := loaded(t, Options{MaxAttempts: maxAttempts}, now, last, row(2, "b"), more)
		c.drain()
		if v := c.resolved(1, denied, now); v != refused {
			t.Errorf("of %d attempts, nothing stored: got verdict %v, want refused", maxAttempts, v)
		}
		c.resolved(2, nil, now)
		if v := c.resolved(3, denied, now); v != givenUp {
			t.Errorf("of %d attempts, beside others: got verdict %v, want givenUp", maxAttempts, v)
		}
	}
}

// A row that commits late may have a lower seq than the one for which its aggregate is blocked. It is left out as well, so
// when the aggregate goes on, and in the next term, it has to be looked for.
func TestBlockedAggregateGoesOnFromTheFloor(t *testing.T) {
	now := time.Now()
	c := newTestCore(t, Options{MaxAttempts: 2, RetryBackoff: time.Second})
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Floor: 95, Rows: []store.Row{row(101, "a"), row(102, "b")}}, now)
	c.drain()
	c.resolved(102, nil, now)
	c.resolved(101, errRow, now)
	c.checkpoints.unrecorded, c.checkpoints.unsettled, c.checkpoints.start = true, [2]int{}, [2]uint64{7, 7}
	request := c.mustRoundTrip(t, now)
	if request.ScanFrom == nil || *request.ScanFrom != 95 || request.Checkpoint == 0 {
		t.Errorf("a checkpoint is recorded with %+v, want one that has the next term look from 95 on", request)
	}
	c.answered(store.Response{Floor: 150}, now)
	if request = c.mustRoundTrip(t, now.Add(time.Second)); !request.Fetch.Back || request.Fetch.BackTo != 95 {
		t.Errorf("it goes on with %+v, want a fetch from 95 on", request.Fetch)
	}

	// The same where a term begins with it.
	c = newTestCore(t, Options{RetryBackoffMax: time.Second})
	c.begin(store.TermStart{Floor: 95, Blocked: []store.Blocked{{AggregateType: "A", AggregateID: "a", For: time.Hour}}}, false, now)
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Floor: 150}, now)
	if request = c.mustRoundTrip(t, now.Add(time.Second)); !request.Fetch.Back || request.Fetch.BackTo != 95 {
		t.Errorf("in the next term it goes on with %+v, want a fetch from 95 on", request.Fetch)
	}
}

// A batch of which only the failure is known, not the count: 1..3 of one aggregate, 3 refused, 1 and 2 open.
func TestRefusedBehindOpen(t *testing.T) {
	now := time.Now()
	rows := make([]store.Row, 40)
	for i := range rows {
		rows[i] = row(int64(i+1), "a")
	}
	c := loaded(t, Options{}, now, rows...)
	c.engage(1000)
	expect(t, "in an ordered batch", c.drain()[:3], []int64{1, 2, 3})
	for seq := range int64(40) {
		switch seq++; seq {
		case 3:
			c.resolved(3, errRow, now)
		default:
			c.resolved(seq, errWeather, now)
		}
	}
	c.engage(0)
	expect(t, "again", c.drain(), []int64{1})
	c.resolved(1, nil, now)
	expect(t, "again", c.drain(), []int64{2})
}

// Whatever a lane or a row once led to, pages that have been stored are garbage, or a long backlog would fill the memory.
func TestStoredPagesAreLetGo(t *testing.T) {
	now := time.Now()
	c := newTestCore(t, Options{})
	c.begin(store.TermStart{}, false, now)
	const size, inFlight = 1000, 500
	var (
		pages  []weak.Pointer[store.Row]
		seq    int64
		flying []int64
	)
	for n := range 20 {
		page := make([]store.Row, size)
		for i := range page {
			seq++
			page[i] = row(seq, "hot")
			if n == 0 && i < 400 {
				page[i] = row(seq, strconv.Itoa(i%50)) // Seen once only.
			}
		}
		pages = append(pages, weak.Make(&page[0]))
		c.mustRoundTrip(t, now)
		c.answered(store.Response{Rows: page, Full: true}, now)
		c.engage(4 * size)
		for it, ok := c.publishable(4 * size); ok; it, ok = c.publishable(4 * size) {
			flying = append(flying, it.Seq)
		}
		for ; len(flying) > inFlight; flying = flying[1:] {
			c.resolved(flying[0], nil, now)
		}
	}
	runtime.GC()
	for n, page := range pages[:len(pages)-2] {
		if page.Value() != nil {
			t.Errorf("page %d of %d is still in memory", n, len(pages))
		}
	}
	runtime.KeepAlive(c)
}

// The relay sleeps only once a fetch made with the sleep lock held has found nothing.
func TestSleep(t *testing.T) {
	now := time.Now()
	c := newTestCore(t, Options{PollInterval: time.Minute})
	c.begin(store.TermStart{}, false, now)
	c.mustRoundTrip(t, now)
	c.answered(store.Response{}, now)
	begun, nap := now, shortNap
	for range 30 { // A producer's transaction is under way.
		at := c.deadline()
		if at.Sub(now) < nap || at.Sub(now) > max(now.Sub(begun)/napShare, shortNap) {
			t.Errorf("nap of %v after one of %v, %v after the beginning", at.Sub(now), nap, now.Sub(begun))
		}
		nap = at.Sub(now)
		if _, due := c.nextRoundTrip(at.Add(-1)); due {
			t.Error("1 ns early")
		}
		now = at
		if request := c.mustRoundTrip(t, now); request.Sleep != store.FallAsleep || request.Fetch == nil {
			t.Fatalf("got %+v, want to fall asleep with a fetch", request)
		}
		c.answered(store.Response{}, now)
	}
	if nap != longNap {
		t.Errorf("the longest nap is %v, want %v", nap, longNap)
	}
	now = c.deadline()
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Asleep: true}, now)
	if at := c.deadline(); !at.Equal(now.Add(time.Minute)) {
		t.Errorf("asleep: deadline in %v, want the poll", at.Sub(now))
	}
	if request := c.mustRoundTrip(t, now.Add(time.Minute)); request.Sleep != store.KeepSleep || request.Fetch == nil {
		t.Errorf("poll: %+v", request)
	}
	c.answered(store.Response{}, now)
	c.wake()
	if request := c.mustRoundTrip(t, now); request.Sleep != store.WakeUp || request.Fetch == nil {
		t.Errorf("woken: %+v", request)
	}
	c.wake() // While the fetch is under way: it may not see what this is about.
	c.answered(store.Response{}, now)
	if request := c.mustRoundTrip(t, now); request.Fetch == nil || request.Sleep != store.KeepSleep {
		t.Errorf("woken during a fetch: %+v", request)
	}
}

func TestPageBounds(t *testing.T) {
	now := time.Now()
	large := func(seq int64) store.Row {
		r := row(seq, fmt.Sprint(seq))
		r.Data = make([]byte, 600)
		return r
	}
	c := newTestCore(t, Options{BatchSize: 10, BatchBytes: 1000})
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Rows: []store.Row{large(1), large(2)}, Full: true}, now)
	if request, due := c.nextRoundTrip(now); due {
		t.Errorf("fetches beyond its bytes: %+v", request)
	}
	c.drain()
	c.resolved(1, nil, now)
	request := c.mustRoundTrip(t, now)
	expect(t, "settled", settled(request), []int64{1})
	expect(t, "held", request.Fetch.Held, []int64{2})
}

// table and broker are what a simulated relay works on.
type simulation struct {
	t      *testing.T
	random *rand.Rand
	now    time.Time

	rows    map[int64]store.Row // Committed and not settled.
	pending []store.Row         // Drawn, not committed yet.
	seq     int64
	poison  map[int64]bool

	stored      map[int64]int // Position by seq: what a broker with duplicate detection holds.
	order       map[string]int64
	flight      map[int64]bool
	sentOrdered int
	ordered     []int64 // What is in flight, in order, while an ordered batch is under way.
	dead        map[int64]bool
	request     *store.Request
	floor       int64
	refills     int
	plain       bool // The broker takes no ordered batches.

	readsBack  bool // The relay looks what is stored after an open outcome; the broker does not know a message again.
	recoveries int
}

// Whatever the outcomes and their order, all that was committed is stored or dead, in order, and settled; and at
// most one row of an aggregate is ever in flight. With half of the seeds the broker recognises no message: then reading
// back the stream is what keeps everything from being stored twice.
func TestSimulation(t *testing.T) {
	sentOrdered, recoveries, refills := 0, 0, 0
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := &simulation{
				readsBack: seed%2 == 1, plain: seed%3 == 0,
				t: t, random: rand.New(rand.NewPCG(seed, 1)), now: time.Now(),
				rows: map[int64]store.Row{}, poison: map[int64]bool{}, stored: map[int64]int{},
				order: map[string]int64{}, flight: map[int64]bool{}, dead: map[int64]bool{},
			}
			s.run()
			sentOrdered += s.sentOrdered
			recoveries += s.recoveries
			refills += s.refills
		})
	}
	if refills < 1000 {
		t.Errorf("only %d times rows of a hot aggregate were fetched: the simulation shows nothing about it", refills)
	}
	if recoveries < 1000 {
		t.Errorf("only %d times the stream was read back: the simulation shows nothing about it", recoveries)
	}
	if sentOrdered < 1000 {
		t.Errorf("only %d rows went in ordered batches: the simulation shows nothing about it", sentOrdered)
	}
}

func (s *simulation) run() {
	c := newTestCore(s.t, Options{BatchSize: 1 + s.random.IntN(80), Window: 1 + s.random.IntN(8), MaxAttempts: 2, RetryBackoff: 10 * time.Millisecond})
	c.begin(store.TermStart{}, s.readsBack, s.now)
	for step := range 2000 {
		if step < 1000 {
			s.produce(c)
		} else if len(s.pending) > 0 {
			s.commit(c, 0)
		}
		s.now = s.now.Add(time.Duration(s.random.IntN(3)) * time.Millisecond)
		s.readBack(c)
		switch s.random.IntN(4) {
		case 0:
			s.send(c)
		case 1:
			s.answer(c)
		case 2:
			if request, due := c.nextRoundTrip(s.now); due {
				s.request = &request
			}
		case 3:
			s.roundTrip(c)
		}
	}
	for range 20000 {
		if len(s.rows) == 0 && len(s.flight) == 0 && s.request == nil && !c.doubt {
			break
		}
		s.now = s.now.Add(time.Millisecond)
		s.readBack(c)
		s.send(c)
		s.answer(c)
		if request, due := c.nextRoundTrip(s.now); due {
			s.request = &request
		}
		s.roundTrip(c)
	}
	if len(s.rows) > 0 || c.heldRows > 0 || c.inFlight > 0 {
		s.t.Errorf("left over: %d rows, %d open, %d in flight", len(s.rows), c.heldRows, c.inFlight)
	}
	for seq := int64(1); seq <= s.seq; seq++ {
		if _, stored := s.stored[seq]; stored == s.dead[seq] {
			s.t.Errorf("seq %d: stored %v, dead %v", seq, stored, s.dead[seq])
		}
	}
}

// produce draws a seq, or commits one that was drawn: an aggregate's own transactions never overlap.
func (s *simulation) produce(c *core) {
	if s.random.IntN(200) == 0 { // A burst, for which an ordered batch is worth while.
		for len(s.pending) > 0 {
			s.commit(c, 0)
		}
		aggregates := 1 + 3*s.random.IntN(2) // Or a hot aggregate.
		for range 100 {
			s.draw(fmt.Sprint(s.random.IntN(aggregates)))
			s.commit(c, 0)
		}
	}
	switch s.random.IntN(4) {
	case 0:
		id := fmt.Sprint(s.random.IntN(4))
		if slices.ContainsFunc(s.pending, func(r store.Row) bool { return r.AggregateID == id }) {
			return
		}
		s.draw(id)
	case 1:
		if len(s.pending) > 0 {
			s.commit(c, s.random.IntN(len(s.pending)))
		}
	}
}

func (s *simulation) draw(aggregateID string) {
	s.seq++
	s.pending = append(s.pending, row(s.seq, aggregateID))
	s.poison[s.seq] = s.random.IntN(20) == 0
}

func (s *simulation) commit(c *core, i int) {
	s.rows[s.pending[i].Seq] = s.pending[i]
	s.pending = slices.Delete(s.pending, i, i+1)
	c.wake()
}

func (s *simulation) send(c *core) {
	if c.inFlight == 0 || s.random.IntN(4) == 0 {
		if window := s.random.IntN(2) * 1000; s.plain {
			c.engage(0)
		} else {
			c.engage(window)
		}
	}
	r, ok := c.publishable(c.window)
	switch {
	case !ok:
		c.finish(false)
		return
	case c.ordered:
		s.sentOrdered++
		s.ordered = append(s.ordered, r.Seq)
	default:
		for seq := range s.flight {
			if s.rows[seq].AggregateID == r.AggregateID {
				s.t.Fatalf("%d and %d of aggregate %s are in flight", seq, r.Seq, r.AggregateID)
			}
		}
	}
	s.flight[r.Seq] = true
}

// store is what the broker does with an event.
func (s *simulation) store(seq int64) {
	if _, again := s.stored[seq]; again {
		if s.readsBack {
			s.t.Fatalf("%d is stored twice", seq)
		}
		return
	}
	id := s.rows[seq].AggregateID
	if s.order[id] > seq {
		s.t.Fatalf("aggregate %s: %d is stored after %d", id, seq, s.order[id])
	}
	s.order[id] = seq
	s.stored[seq] = len(s.stored)
}

// answer gives events in flight an outcome: some are stored although the answer is lost.
func (s *simulation) answer(c *core) {
	if c.ordered {
		s.answerOrdered(c)
		return
	}
	for seq := range s.flight {
		delete(s.flight, seq)
		fate := s.random.IntN(10)
		if s.poison[seq] {
			c.resolved(seq, errRow, s.now)
			return
		}
		if fate != 0 {
			s.store(seq)
		}
		if fate <= 1 {
			c.resolved(seq, errWeather, s.now)
		} else {
			c.resolved(seq, nil, s.now)
		}
		return
	}
}

// answerOrdered acknowledges a first part of the ordered batch, and may end it there.
func (s *simulation) answerOrdered(c *core) {
	if len(s.ordered) == 0 {
		return
	}
	count := s.random.IntN(len(s.ordered) + 1)
	if i := slices.IndexFunc(s.ordered, func(seq int64) bool { return s.poison[seq] }); i >= 0 {
		count = min(count, i)
	}
	for _, seq := range s.ordered[:count] {
		s.store(seq)
	}
	known := count // What is stored but not known to be is the last part.
	ends := s.random.IntN(4) == 0 || count < len(s.ordered) && s.poison[s.ordered[count]]
	if ends {
		known -= s.random.IntN(count + 1)
	}
	for _, seq := range s.ordered[:known] {
		delete(s.flight, seq)
		c.resolved(seq, nil, s.now)
	}
	s.ordered = s.ordered[known:]
	if !ends {
		return
	}
	for i, seq := range s.ordered {
		delete(s.flight, seq)
		fault := errWeather
		if s.poison[seq] && known+i == count && known == count {
			fault = errRow
		}
		c.resolved(seq, fault, s.now)
	}
	s.ordered = nil
}

// readBack reads back the stream when the core wants that, and sometimes fails to.
func (s *simulation) readBack(c *core) {
	if !c.recover() {
		return
	}
	if len(s.flight) > 0 || s.request != nil {
		s.t.Fatalf("read back with %d events in flight, and a round trip under way: %v", len(s.flight), s.request != nil)
	}
	ok := s.random.IntN(4) > 0
	for seq := range s.stored {
		if _, there := s.rows[seq]; there && (ok || s.random.IntN(2) == 0) {
			delete(s.rows, seq)
		}
	}
	s.recoveries++
	c.recovered(uint64(len(s.stored)+s.recoveries), ok, nil, false, s.now)
}

// roundTrip carries out the round trip under way.
func (s *simulation) roundTrip(c *core) {
	if s.request == nil {
		return
	}
	request := s.request
	s.request = nil
	for _, seq := range settled(*request) {
		if _, stored := s.stored[seq]; !stored {
			s.t.Fatalf("%d is settled and not stored", seq)
		}
		delete(s.rows, seq)
	}
	for _, f := range request.Failed {
		r := s.rows[f.Seq]
		r.Attempts = f.Attempts
		s.rows[f.Seq] = r
	}
	for _, f := range request.Dead {
		delete(s.rows, f.Seq)
		s.dead[f.Seq] = true
	}
	response := store.Response{Asleep: request.Sleep == store.FallAsleep && len(s.pending) == 0}
	if f := request.Fetch; f != nil {
		from := s.floor
		if f.Back {
			from = min(from, f.BackTo)
		}
		if f.Stay {
			s.refills++
		} else {
			s.floor = from
		}
		floor := s.seq + 1 // As high as it may be.
		for seq := from; seq <= s.seq; seq++ {
			r, visible := s.rows[seq]
			held := slices.Contains(f.Held, seq)
			wanted := visible && !held && !slices.Contains(f.Passed, seq) && !slices.Contains(f.BlockedIDs, r.AggregateID)
			if wanted && len(response.Rows) < f.Rows {
				response.Rows = append(response.Rows, r)
			}
			if wanted || held {
				floor = min(floor, seq)
			}
		}
		for _, r := range s.pending {
			floor = min(floor, r.Seq)
		}
		s.floor = max(s.floor, floor)
		response.Full = len(response.Rows) == f.Rows
	}
	response.Floor = s.floor
	c.answered(response, s.now)
}

// A row that can never be published was not read: it is given up at once, and blocks nobody whose name it does not tell.
func TestUnfitRows(t *testing.T) {
	now := time.Now()
	unfit := row(1, "a")
	unfit.Unfit, unfit.Data, unfit.Unread = "too large", nil, 1<<20
	nameless := store.Row{Seq: 3, AggregateType: "A", Unfit: "the id is too long", Nameless: true}
	other := nameless
	other.Seq = 4
	c := loaded(t, Options{}, now, unfit, row(2, "a"), nameless, other, row(5, ""))
	expect(t, "published", c.drain(), []int64{5})
	if len(c.unfit) != 3 {
		t.Errorf("%d refusals are to be told, want 3", len(c.unfit))
	}
	request := c.mustRoundTrip(t, now)
	if len(request.Dead) != 3 || request.Dead[0].Size < 1<<20 || request.Dead[0].Attempts != 1 {
		t.Errorf("dead: %+v", request.Dead)
	}
	c.answered(store.Response{Floor: 1}, now)
	request = c.mustRoundTrip(t, now)
	if !request.Fetch.Back || request.Fetch.BackTo != 1 {
		t.Errorf("after they were recorded: %+v, want to go back to row 1", request.Fetch)
	}
}

// Rows of blocked aggregates are passed over once: by the aggregate's name, or by their seqs where there are too many.
func TestBlockedRowsArePassedOver(t *testing.T) {
	now := time.Now()
	c := newTestCore(t, Options{RetryBackoff: time.Second})
	c.begin(store.TermStart{}, false, now)
	c.mustRoundTrip(t, now)
	var rows []store.Row
	for i := range int64(namesMost + 500) {
		rows = append(rows, row(i+1, fmt.Sprint(i)))
	}
	c.answered(store.Response{Rows: rows}, now)
	for _, seq := range c.drain() {
		c.resolved(seq, errRow, now)
	}
	c.mustRoundTrip(t, now)
	c.answered(store.Response{}, now)
	c.wake()
	request := c.mustRoundTrip(t, now)
	if len(request.Fetch.BlockedIDs) != namesMost || len(request.Fetch.Passed) != 0 {
		t.Fatalf("%d names and %d seqs are left out, want %d and none", len(request.Fetch.BlockedIDs), len(request.Fetch.Passed), namesMost)
	}
	named := make(map[string]bool)
	for _, id := range request.Fetch.BlockedIDs {
		named[id] = true
	}
	var again []store.Row
	for i := range int64(namesMost + 500) {
		if id := fmt.Sprint(i); !named[id] {
			again = append(again, row(10_000+i, id))
		}
	}
	c.answered(store.Response{Rows: again}, now)
	expect(t, "published while blocked", c.drain(), nil)
	c.wake()
	if request = c.mustRoundTrip(t, now); len(request.Fetch.Passed) != len(again) {
		t.Errorf("%d seqs are left out, want the %d that were passed over", len(request.Fetch.Passed), len(again))
	}
	c.answered(store.Response{}, now)
	// They go on some at a time, beside what is new.
	later := now.Add(time.Second)
	request = c.mustRoundTrip(t, later)
	if got := namesMost + 500 - len(c.blocked.of); got != releasedAtOnce || !request.Fetch.Back {
		t.Errorf("%d aggregates go on at once, want %d, and a fetch that goes back", got, releasedAtOnce)
	}
}

// A stored row that the database does not let go is kept aside: nothing else waits, it is not published again, and the
// checkpoint does not pass it.
func TestKeptRowsAreSetAside(t *testing.T) {
	now := time.Now()
	c := loaded(t, Options{}, now, row(1, "a"), row(2, "b"))
	for _, seq := range c.drain() {
		c.resolved(seq, nil, now)
	}
	c.mustRoundTrip(t, now)
	unsettled := c.checkpoints.unsettled[c.checkpoints.epoch&1]
	c.answered(store.Response{Kept: []store.Kept{{Ref: store.Ref{Seq: 1}, Settle: true, Err: errors.New("no")}}}, now)
	if got := c.checkpoints.unsettled[c.checkpoints.epoch&1]; unsettled != 2 || got != 1 {
		t.Errorf("unsettled were %d and are %d rows, want 2 and 1", unsettled, got)
	}
	c.wake()
	expect(t, "held", c.mustRoundTrip(t, now).Fetch.Held, []int64{1})
	c.answered(store.Response{Asleep: true}, now)
	if at := c.deadline(); at.After(now.Add(asideRetry)) {
		t.Errorf("the deadline is in %v, want when it is tried again", at.Sub(now))
	}
	expect(t, "tried again", settled(c.mustRoundTrip(t, now.Add(asideRetry))), []int64{1})
}

// A term that finds such a row when it reads back the stream holds it, too.
func TestRowsKeptByRecoveryAreHeld(t *testing.T) {
	now := time.Now()
	c := newTestCore(t, Options{})
	c.begin(store.TermStart{}, true, now)
	if !c.recover() {
		t.Fatal("no recovery at the beginning of a term")
	}
	c.recovered(100, true, []store.Ref{{Seq: 24}}, false, now)
	fetch := c.mustRoundTrip(t, now).Fetch
	expect(t, "held", fetch.Held, []int64{24})
	if fetch.Highest < 24 || c.checkpoints.unsettled[c.checkpoints.epoch&1] != 1 {
		t.Errorf("the highest seq held is %d, and %d rows are unsettled; want 24 and 1", fetch.Highest, c.checkpoints.unsettled[c.checkpoints.epoch&1])
	}
}

// Of two rows with one id the stream has one. The other is settled, and not archived, once that is known.
func TestTwoRowsWithOneID(t *testing.T) {
	now := time.Now()
	c := loaded(t, Options{}, now, row(1, "a"), row(2, "b"), row(3, "b"))
	c.drain()
	c.double(1, 17, now)
	c.double(2, 18, now)
	expect(t, "the aggregate goes on", c.drain(), []int64{3})
	c.wake()
	request := c.mustRoundTrip(t, now)
	expect(t, "settled before it is known", settled(request), nil)
	expect(t, "held", slices.Sorted(slices.Values(request.Fetch.Held)), []int64{1, 2, 3})
	c.answered(store.Response{}, now)
	for _, d := range c.doubles {
		c.resolvedDouble(d, d.ref.Seq == 2, now)
	}
	c.doubles = nil
	c.wake()
	request = c.mustRoundTrip(t, now)
	if len(request.Settled) != 2 || request.Settled[0].Unarchived || !request.Settled[1].Unarchived {
		t.Fatalf("settled: %+v, want one archived and one not", request.Settled)
	}
	expect(t, "settled", settled(request), []int64{1, 2})
}

// An aggregate with a long backlog is left out of fetches while the relay holds enough of its rows, if they go out one at a
// time. The fetches that go back for more begin where the one before ended, and leave the floor alone.
func TestHotAggregateIsLeftOut(t *testing.T) {
	now := time.Now()
	page := func(from, n int64) (rows []store.Row) {
		for seq := from; seq < from+n; seq++ {
			rows = append(rows, row(seq, "hot"))
		}
		return rows
	}
	const batch = 100
	c := newTestCore(t, Options{BatchSize: batch})
	c.begin(store.TermStart{Floor: 1}, false, now)
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Floor: 1, Rows: page(1, batch), Full: true}, now)
	c.engage(0)
	request := c.mustRoundTrip(t, now)
	if got := request.Fetch; !slices.Equal(got.BlockedIDs, []string{"hot"}) || len(got.Held) != 0 {
		t.Fatalf("got %+v, want a fetch without the hot aggregate, and without its rows among those held", got)
	}
	c.answered(store.Response{Floor: 10_000, Rows: []store.Row{row(9000, "other")}}, now)
	for seq := int64(1); seq <= 76; seq++ {
		if got := c.drain(); !slices.Contains(got, seq) {
			t.Fatalf("got %v, want row %d", got, seq)
		}
		c.resolved(seq, nil, now)
	}
	request = c.mustRoundTrip(t, now)
	if got := request.Fetch; !got.Back || !got.Stay || got.BackTo != 1 || got.Rows != batch/2 || len(got.BlockedIDs) > 0 || len(got.Held) != 25 {
		t.Fatalf("got %+v, want a fetch that goes back to 1 for rows of the hot aggregate", got)
	}
	c.answered(store.Response{Floor: 10_000, Rows: page(101, batch/2), Full: true}, now)
	if got := c.mustRoundTrip(t, now).Fetch; got.Back || !slices.Equal(got.BlockedIDs, []string{"hot"}) {
		t.Fatalf("got %+v, want a fetch for the others", got)
	}
	c.answered(store.Response{Floor: 10_000}, now)
	if from := c.hot[0].from; from != 151 {
		t.Errorf("it goes on from %d, want 151", from)
	}
	// What a later term would have to fetch begins with the first row that is not stored.
	if from := c.scanFrom(); from == nil || *from != 77 {
		t.Errorf("the next term looks from %v on, want 77", from)
	}
	// Rows that a command has put back may be its own.
	c.wake()
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Floor: 40}, now)
	if from := c.hot[0].from; from != 40 {
		t.Errorf("rows were put back at 40, and it goes on from %d", from)
	}
	// With ordered batches, all of it goes out at once.
	c.wake()
	c.engage(1000)
	if got := c.mustRoundTrip(t, now).Fetch; !got.Back || got.Stay || got.BackTo != 40 || len(got.BlockedIDs) > 0 || len(got.Held) == 0 {
		t.Errorf("got %+v, want a fetch that goes back to 40", got)
	}
}

// Rows that are to be fetched anew, since their aggregate goes on, are where the next term begins if this one ends before.
func TestNextTermBeginsWhereThisOneWouldGoBack(t *testing.T) {
	now := time.Now()
	c := newTestCore(t, Options{BatchSize: 1, RetryBackoff: time.Second})
	c.begin(store.TermStart{Floor: 1}, false, now)
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Floor: 1, Rows: []store.Row{row(1, "a")}, Full: true}, now)
	c.drain()
	c.resolved(1, errRow, now)
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Floor: 9, Rows: []store.Row{row(9, "b")}, Full: true}, now)
	c.mustRoundTrip(t, now)
	c.answered(store.Response{Floor: 9, Rows: []store.Row{row(10, "c")}, Full: true}, now)
	later := now.Add(time.Second)
	c.unblock(later) // Aggregate a goes on, and there is no room to fetch its rows.
	for _, seq := range c.drain()[:1] {
		c.resolved(seq, nil, later)
	}
	c.heldRows += 10
	c.checkpoints.unrecorded, c.checkpoints.unsettled, c.checkpoints.start = true, [2]int{}, [2]uint64{7, 7}
	request := c.mustRoundTrip(t, later)
	if request.Fetch != nil || request.Checkpoint == 0 {
		t.Fatalf("got %+v, want a round trip that records a checkpoint and fetches nothing", request)
	}
	if request.ScanFrom == nil || *request.ScanFrom != 1 {
		t.Errorf("the next term begins at %v, want 1", request.ScanFrom)
	}
}
