package relay

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// scenario is what an exploration is about. What is in it does not change.
type scenario struct {
	aggregates  string // That of each row, by seq: "aba".
	late        int64  // The row that becomes visible after higher ones; 0 for none.
	refused     int64  // The row that the broker refuses, for a reason that is about the row; 0 for none.
	attempts    int    // After how many refusals it is given up; 0 for as many as by default.
	orderedFrom int    // How many rows go in an ordered batch; 0 for no such batches.
	batch       int    // Rows in a page.
	slow        bool   // Less than a second passes: no epoch ends.
	durable     bool   // The broker never forgets.
	lenient     bool   // Only what a consumer sees counts, not what the relay keeps for itself.
	bounds      bounds

	sabotage sabotage
	limits   limits
}

// limits switches on what the claim does not cover.
type limits struct {
	// After a stray was stored after the fence, the window expires before its row is published again: see
	// MinDuplicateWindow.
	longPause bool
}

// sabotage switches one safeguard off, to see that the explorer finds out.
type sabotage struct {
	neverReadBack bool // A term relies on the duplicate window.
	anySession    bool // The outbox takes orders from a session that is gone.
	anyFence      bool // The stream takes ordered batches whatever has been put up since.
	anyLease      bool // A leader sends whatever its clock says.
	settleByRange bool // All rows up to the highest one that was acknowledged are removed.
	looseOrder    bool // An ordered batch goes on after a message that got lost.
	deaf          bool // Nobody is told that the stream has lost something, and nobody sees it.
	noArchive     bool // Nothing is retained.
	strayBlind    bool // Nobody waits for the rows of which strays may arrive.
	trustsFence   bool // A checkpoint that was handed over is believed whatever became of the fence at it.
	neverBack     bool // The outbox returns nothing below the floor although it is asked to.
	losesLetters  bool // A dead letter is not recorded, and its row stays where it was.
	earlyBound    bool // The checkpoint moves although something that was sent before is not settled.
}

// world is everything: the outbox, the stream, what is on its way to it, and two relays.
//
// What it assumes of reality stands here; all else may happen.
//
//   - A plain message of whoever has let go of it (a stray) may arrive at any later time, but not after the window
//     has expired since: a relay sends until its lease ends, and a message gets lost, or arrives, within the 10 s and
//     the acknowledgement's time that MinDuplicateWindow adds up. So when the window expires no stray is left, nothing
//     waits for an answer, and the lease of whoever no longer leads has ended. The same goes for the rest of an
//     ordered batch that the broker has begun to store. One that it has not begun may arrive whenever it likes: that
//     is what the fence is for.
//   - A broker that forgets has crashed: what was on its way to it is gone, and connections break. A relay sends none
//     on the next connection before it was told of the break.
//   - The broker loses its latest messages only, or all of them, once on a path, and the archive has them all.
//   - The rows of one aggregate commit in the order of their seq.
//   - Postgres loses nothing. The broker refuses one row at most, whenever it arrives. There is one server, so no
//     duplicates "in process".
//
// See limits for what it assumes beyond that, until it is true.
type world struct {
	*scenario

	rows       []tableRow // By seq, from 1.
	checkpoint store.Checkpoint
	recorded   bool  // There is a checkpoint.
	scanFrom   int64 // Where the next term's first fetch begins.
	terms      int64

	messages []message // By sequence, from 1.
	anew     int       // How often the stream was created again.
	stamp    int       // Tells messages apart that had the same sequence.
	forgot   bool      // It has lost what it had acknowledged.
	strays   []stray

	candidates [2]*candidate

	story *[]string // What happened, if somebody wants to know.
	wrong string    // What must not have happened; empty if all is well.
}

type tableRow struct {
	state    rowState
	after    uint64 // Of the archived one.
	stray    bool   // A stray of it was stored, and it has not been settled since.
	attempts int    // How often it was refused, as far as the outbox was told.
}

type rowState byte

const (
	drawn    rowState = iota // Its transaction has not committed.
	waiting                  // It is in the outbox.
	archived                 // It was settled.
	letter                   // It was given up.
)

type message struct {
	seq   int64 // 0 for a fence.
	term  int64
	known bool // The duplicate window covers it.
	stamp int
}

// stray is a message, or what is left of an ordered batch, of whoever does not wait for it any more.
type stray struct {
	seq     int64
	ordered *orderedBatch
}

// orderedBatch is what is sent in an ordered batch: it arrives in that order or not at all.
type orderedBatch struct {
	fence   uint64
	fenced  bool
	queue   []int64 // On its way; 0 is the end.
	stray   bool    // Nobody waits for it.
	begun   bool    // The broker has stored, or recognised, its first message.
	held    bool    // The first of unacked is stored, and the answer comes with the next one's.
	unacked []int64
	ending  bool
	last    uint64 // Where the last one is stored.
}

func (p *orderedBatch) clone() *orderedBatch {
	if p == nil {
		return nil
	}
	n := *p
	n.queue, n.unacked = slices.Clone(p.queue), slices.Clone(p.unacked)
	return &n
}

var (
	errSilence     = stream.Classify(nats.ErrTimeout)
	errCut         = stream.Classify(nats.ErrDisconnected)
	errNotSent     = stream.Classify(nats.ErrReconnectBufExceeded)
	errFencedOff   = stream.Classify(&jetstream.APIError{Code: 400, ErrorCode: stream.CodeWrongLastSequence, Description: "wrong last sequence"})
	errRefused     = &stream.Error{Fault: stream.FaultRow, Err: fmt.Errorf("refused")}
	errBehind      = &stream.Error{Fault: stream.FaultWeather, Err: fmt.Errorf("ordered batch ended")}
	errSessionGone = fmt.Errorf("the session is gone")
	errUnanswered  = fmt.Errorf("no answer yet")
)

// birth is when the stream was created.
var birth = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // Immutable.

func (w *world) createdAt() time.Time { return birth.Add(time.Duration(w.anew) * time.Hour) }

func idOf(seq int64) uuid.UUID { return uuid.UUID{15: byte(seq)} }

func newWorld(s *scenario) *world {
	w := &world{scenario: s, rows: make([]tableRow, len(s.aggregates))}
	for i := range w.rows {
		if int64(i+1) != s.late {
			w.rows[i].state = waiting
		}
	}
	for i := range w.candidates {
		w.candidates[i] = &candidate{}
	}
	return w
}

func (w *world) clone() *world {
	n := *w
	n.rows = slices.Clone(w.rows)
	n.messages = slices.Clone(w.messages)
	n.strays = slices.Clone(w.strays)
	for i := range n.strays {
		n.strays[i].ordered = n.strays[i].ordered.clone()
	}
	for i, o := range w.candidates {
		n.candidates[i] = o.clone()
	}
	return &n
}

func (w *world) tell(format string, args ...any) {
	if w.story != nil {
		*w.story = append(*w.story, fmt.Sprintf(format, args...))
	}
}

// aside adds to the latest line of the story.
func (w *world) aside(format string, args ...any) {
	if w.story != nil && len(*w.story) > 0 {
		(*w.story)[len(*w.story)-1] += "; " + fmt.Sprintf(format, args...)
	}
}

func (w *world) aggregate(seq int64) byte { return w.aggregates[seq-1] }

// The stream.

// refuses reports whether the broker refuses a row.
func (w *world) refuses(seq int64) bool {
	if seq != w.refused {
		return false
	}
	w.aside("the broker refuses row %d", seq)
	return true
}

// store is what the broker does with an event that it does not refuse.
func (w *world) store(seq int64, stray bool) (sequence uint64, duplicate bool) {
	for i, m := range w.messages {
		if m.seq == seq && m.known {
			w.aside("the broker recognises row %d, which it has at %d", seq, i+1)
			return uint64(i + 1), true
		}
	}
	w.stamp++
	w.messages = append(w.messages, message{seq: seq, known: true, stamp: w.stamp})
	w.rows[seq-1].stray = stray && w.rows[seq-1].state == waiting
	w.aside("the broker stores row %d at %d", seq, len(w.messages))
	return uint64(len(w.messages)), false
}

func (w *world) lastFence() (sequence uint64, term int64) {
	for i, m := range slices.Backward(w.messages) {
		if m.seq == 0 {
			return uint64(i + 1), m.term
		}
	}
	return 0, 0
}

// look is publisher.Publisher.Verify.
func (w *world) look(g *glance) {
	g.taken = true
	g.state = history.State{Created: w.createdAt(), Last: uint64(len(w.messages))}
	g.mark = w.marked(g.state.Last)
	seen := !g.before.Created.IsZero()
	switch {
	case w.sabotage.deaf:
	case seen && !g.before.Created.Equal(g.state.Created), seen && g.state.Last < g.before.Last,
		seen && w.marked(g.before.Last) != g.remembered, g.state.Last < g.acked:
		g.err = &stream.LostError{}
	}
}

// marked tells which message has this sequence; 0 for none.
func (w *world) marked(sequence uint64) int {
	if sequence == 0 || sequence > uint64(len(w.messages)) {
		return 0
	}
	return w.messages[sequence-1].stamp
}

// fence is history.History.Fence and, if there is none yet and none is asked for, FirstFence.
func (w *world) fence(o *candidate, first bool) (history.Fence, error) {
	sequence, seen := w.lastFence()
	put, former := uint64(0), uint64(0)
	switch {
	case first && sequence == 0:
	case seen > o.term.number:
		return history.Fence{}, &history.DeposedError{Term: seen, Ours: o.term.number}
	default:
		w.stamp++
		w.messages = append(w.messages, message{term: o.term.number, known: true, stamp: w.stamp})
		put, former = uint64(len(w.messages)), sequence
		w.aside("the fence stands at %d", put)
	}
	o.fence, o.fenced = put, true
	return history.Fence{Sequence: uint64(len(w.messages)), Created: w.createdAt(), First: min(uint64(len(w.messages)), 1), Former: former}, nil
}

// scan is history.History.Scan. If the fence is gone by then, it waits for a message with such a sequence.
func (w *world) scan(above uint64, fence history.Fence) ([]history.Found, error) {
	if above+1 >= fence.Sequence {
		return nil, nil
	}
	if uint64(len(w.messages)) < fence.Sequence {
		return nil, stream.Classify(errStalled)
	}
	var found []history.Found
	for i := above; i+1 < fence.Sequence; i++ {
		if m := w.messages[i]; m.seq > 0 {
			found = append(found, history.Found{Event: true, Seq: m.seq, ID: idOf(m.seq), Stored: i + 1})
		}
	}
	return found, nil
}

// pour delivers the first message of an ordered batch, and returns what the broker answers: outcomes, and whether the batch
// ends.
func (w *world) pour(p *orderedBatch) (outcomes []publisher.Outcome, ended bool) {
	seq := p.queue[0]
	p.queue = p.queue[1:]
	ack := func(stored uint64) {
		if p.held && len(p.unacked) > 0 {
			outcomes = append(outcomes, publisher.Outcome{Seq: p.unacked[0], Stored: stored})
			p.unacked = p.unacked[1:]
		}
		p.held = false
	}
	if seq == 0 {
		w.aside("the broker confirms the end of the batch")
		ack(p.last)
		return outcomes, true
	}
	known := slices.ContainsFunc(w.messages, func(m message) bool { return m.seq == seq && m.known })
	// The server looks for a duplicate before it looks for the fence.
	if last, _ := w.lastFence(); !p.begun && !known && p.fenced && last != p.fence && !w.sabotage.anyFence {
		w.aside("the broker refuses the batch: the last fence is at %d, not at %d", last, p.fence)
		for i, seq := range p.unacked {
			outcome := publisher.Outcome{Seq: seq, Err: errBehind}
			if i == 0 {
				outcome.Err = errFencedOff
			}
			outcomes = append(outcomes, outcome)
		}
		p.queue, p.unacked = nil, nil
		return outcomes, true
	}
	if w.refuses(seq) {
		ack(0)
		for _, later := range p.unacked {
			outcome := publisher.Outcome{Seq: later, Err: errBehind}
			if later == seq {
				outcome.Err = errRefused
			}
			outcomes = append(outcomes, outcome)
		}
		p.queue, p.unacked = nil, nil
		return outcomes, true
	}
	p.begun = true
	ack(0)
	p.last, _ = w.store(seq, p.stray)
	p.held = true
	return outcomes, false
}

// drifting tells whether there may be messages in the stream, now or later, behind what their rows' leader thinks.
func (w *world) drifting() bool {
	for _, o := range w.candidates {
		if !o.session && (o.lease || len(o.inFlight) > 0 || o.ordered != nil && len(o.ordered.queue) > 0) {
			return true
		}
	}
	return len(w.strays) > 0 || slices.ContainsFunc(w.rows, func(r tableRow) bool { return r.stray })
}

// The outbox.

func (w *world) settle(seq int64, after uint64) bool {
	r := &w.rows[seq-1]
	if r.state != waiting {
		return false
	}
	*r = tableRow{state: archived, after: after}
	return true
}

func (w *world) roundTrip(o *candidate, request *store.Request) (response store.Response) {
	for _, s := range request.Settled {
		w.aside("rows %v leave the outbox", s.Seqs)
		if w.sabotage.settleByRange {
			for seq := int64(1); seq <= slices.Max(s.Seqs); seq++ {
				w.rows[seq-1] = tableRow{state: archived, after: s.After}
			}
		}
		for _, seq := range s.Seqs {
			w.settle(seq, s.After)
		}
	}
	for _, f := range request.Failed {
		if r := &w.rows[f.Seq-1]; r.state == waiting {
			w.aside("it is recorded that row %d was refused", f.Seq)
			r.attempts = f.Attempts
		}
	}
	for _, f := range request.Dead {
		if r := &w.rows[f.Seq-1]; r.state == waiting && !w.sabotage.losesLetters {
			w.aside("row %d becomes a dead letter", f.Seq)
			*r = tableRow{state: letter}
		}
	}
	var from int64 // Where the fetch begins.
	lowered := int64(len(w.rows) + 1)
	if f := request.Fetch; f != nil {
		if o.back > 0 {
			lowered = o.back
			o.floor, o.back = min(o.floor, o.back), 0
		}
		from = o.floor
		if f.Back && !w.sabotage.neverBack {
			from = min(from, f.BackTo)
		}
		if !f.Stay {
			o.floor = from
		}
	}
	if request.Checkpoint > 0 && o.term.number == w.terms {
		w.checkpoint.Sequence, w.checkpoint.Before = request.Checkpoint, w.checkpoint.Sequence
		w.scanFrom = o.floor
		if from := request.ScanFrom; from != nil {
			w.scanFrom = min(w.scanFrom, *from)
		}
		w.aside("the checkpoint is %d", request.Checkpoint)
	}
	if w.sabotage.earlyBound && w.recorded {
		w.checkpoint.Sequence, w.checkpoint.Before = uint64(len(w.messages)), w.checkpoint.Sequence
	}
	response.Asleep = request.Sleep == store.FallAsleep && !slices.ContainsFunc(w.rows, func(r tableRow) bool { return r.state == drawn })
	if f := request.Fetch; f != nil {
		// The floor is as high as it may ever be: below whatever may still be committed, and whatever is held now.
		floor := int64(len(w.rows) + 1)
		for i, r := range w.rows {
			seq, held := int64(i+1), slices.Contains(f.Held, int64(i+1))
			wanted := r.state == waiting && seq >= from && !held && !slices.Contains(f.Passed, seq) && !slices.Contains(f.BlockedIDs, w.aggregates[i:i+1])
			if wanted && len(response.Rows) < f.Rows {
				response.Rows = append(response.Rows, w.row(seq))
			}
			if wanted || held || r.state == drawn {
				floor = min(floor, seq)
			}
		}
		o.floor = max(o.floor, floor)
		response.Full = len(response.Rows) >= f.Rows
		if w.story != nil {
			w.aside("it fetches %s", names(response.Rows))
		}
	}
	response.Floor = min(o.floor, lowered)
	return response
}

func (w *world) row(seq int64) store.Row {
	return store.Row{Seq: seq, ID: idOf(seq), AggregateType: "A", AggregateID: w.aggregates[seq-1 : seq], Attempts: w.rows[seq-1].attempts}
}

func names(rows []store.Row) string {
	if len(rows) == 0 {
		return "nothing"
	}
	var b strings.Builder
	for i, r := range rows {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "row %d of %s", r.Seq, r.AggregateID)
	}
	return b.String()
}

func (w *world) archive(above uint64) (events []store.Archived) {
	for i, r := range w.rows {
		if r.state == archived && r.after >= above && !w.sabotage.noArchive {
			events = append(events, store.Archived{Ref: store.Ref{Seq: int64(i + 1), ID: idOf(int64(i + 1))}, After: r.after})
		}
	}
	return events
}

func (w *world) putBack(o *candidate, lost []store.Archived, checkpoint store.Checkpoint) (back int, err error) {
	if checkpoint != (store.Checkpoint{}) && o.term.number != w.terms {
		return 0, fmt.Errorf("another relay has taken over")
	}
	for _, a := range lost {
		if r := &w.rows[a.Seq-1]; r.state == archived {
			r.state = waiting
			back++
			if o.back == 0 || a.Seq < o.back {
				o.back = a.Seq
			}
			w.scanFrom = min(w.scanFrom, a.Seq)
			w.aside("row %d is back in the outbox", a.Seq)
		}
	}
	if checkpoint == (store.Checkpoint{}) {
		return back, nil
	}
	if w.recorded && !w.checkpoint.Created.Equal(checkpoint.Created) {
		for i := range w.rows {
			w.rows[i].after = 0
		}
	}
	w.checkpoint, w.recorded = checkpoint, true
	w.aside("the checkpoint is %d", checkpoint.Sequence)
	return back, nil
}

// What must hold.

// check looks for what must never be, at any moment.
func (w *world) check() string {
	if w.wrong != "" {
		return w.wrong
	}
	var at [8]uint64 // Where a row is, by seq.
	last := map[byte]int64{}
	for i, m := range w.messages {
		if m.seq == 0 {
			continue
		}
		a := w.aggregate(m.seq)
		switch {
		case at[m.seq] > 0:
			return fmt.Sprintf("row %d is stored twice, at %d and %d", m.seq, at[m.seq], i+1)
		case last[a] > m.seq:
			return fmt.Sprintf("aggregate %c: row %d is stored after row %d", a, m.seq, last[a])
		case w.rows[m.seq-1].state == drawn:
			return fmt.Sprintf("row %d is stored and was never committed", m.seq)
		}
		if r := w.refused; r > 0 && r < m.seq && a == w.aggregate(r) && w.rows[r-1].state == waiting {
			return fmt.Sprintf("aggregate %c: row %d is stored, and row %d before it is still to be tried again", a, m.seq, r)
		}
		at[m.seq], last[a] = uint64(i+1), m.seq
	}
	if w.forgot || w.lenient {
		return ""
	}
	for i, r := range w.rows {
		stored := at[i+1]
		switch {
		case r.state == archived && stored == 0:
			return fmt.Sprintf("row %d is settled and not stored", i+1)
		case r.state == archived && stored <= r.after:
			return fmt.Sprintf("row %d is stored at %d, and the archive says after %d", i+1, stored, r.after)
		case r.state == waiting && stored > 0 && stored <= w.checkpoint.Sequence:
			return fmt.Sprintf("row %d is in the outbox and stored at %d, and the checkpoint says after %d", i+1, stored, w.checkpoint.Sequence)
		}
	}
	return ""
}

// checkEnd looks at what must be when nothing is left to do: every row is in the stream, once and, as check has seen,
// in order, and none is in the outbox.
func (w *world) checkEnd() string {
	for i, r := range w.rows {
		seq := int64(i + 1)
		stored := slices.ContainsFunc(w.messages, func(m message) bool { return m.seq == seq })
		switch {
		case r.state == waiting:
			return fmt.Sprintf("in the end row %d is still in the outbox; it is in the stream: %v", seq, stored)
		case r.state == letter && seq == w.refused:
		case !stored:
			return fmt.Sprintf("in the end row %d is not in the stream, and nobody will put it there", seq)
		}
	}
	return ""
}
