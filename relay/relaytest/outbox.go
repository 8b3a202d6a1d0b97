package relaytest

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
)

// Outbox is an outbox in memory, with an archive of all that was settled. It implements relay.Store. A term that begins ends
// the one before, whichever relay's it is.
type Outbox struct {
	mu        sync.Mutex // Protects what follows.
	id        uuid.UUID
	seq       int64 // The highest that was given.
	rows      []row // By seq.
	archive   []archived
	dead      []store.Ref
	terms     map[string]*record // By stream.
	term      *term              // Nil if none is under way.
	listeners map[int]func()
	listened  int
	fault     error
	standbys  int
	ordered   *store.Pause // What a person has ordered; nil for none.
	paused    *store.Pause // What a relay has found of it.
	candidacy store.Candidacy
	reported  string
}

type row struct {
	store.Row

	retryAt time.Time
}

type archived struct {
	store.Row

	stream string
	after  uint64
}

// record is what is recorded of a stream.
type record struct {
	number     int64
	checkpoint store.Checkpoint
	published  bool
}

var _ relay.Store = (*Outbox)(nil)

// NewOutbox returns an empty outbox.
func NewOutbox() *Outbox {
	return &Outbox{id: uuid.New(), terms: make(map[string]*record), listeners: make(map[int]func())}
}

// Insert inserts events, and wakes the relays. It returns their seqs. Headers are not kept.
func (o *Outbox) Insert(events ...store.Event) (seqs []int64) {
	o.mu.Lock()
	for _, e := range events {
		if e.ID == uuid.Nil {
			e.ID = uuid.New()
		}
		o.seq++
		seqs = append(seqs, o.seq)
		o.rows = append(o.rows, row{Row: store.Row{
			Seq: o.seq, ID: e.ID, Topic: e.Topic, AggregateType: e.AggregateType, AggregateID: e.AggregateID, EventType: e.EventType,
			Data: e.Data, CreatedAt: time.Now(),
		}})
	}
	o.mu.Unlock()
	o.wake()
	return seqs
}

// Pending returns the seqs of the events in the outbox, and Dead those of the dead letters.
func (o *Outbox) Pending() (seqs []int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.rows {
		seqs = append(seqs, r.Seq)
	}
	return seqs
}

// Dead returns the dead letters.
func (o *Outbox) Dead() []store.Ref {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.dead)
}

// Fail makes every call return an error from now on, as if Postgres were away; nil ends that. A term that is under way is
// over.
func (o *Outbox) Fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fault, o.term = err, nil
}

// SetStandbys sets how many other relays could publish.
func (o *Outbox) SetStandbys(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.standbys = n
}

// Pause orders a pause, as `outbox-relay pause` does, and Resume ends it.
func (o *Outbox) Pause(reason string) {
	o.order(&store.Pause{Reason: reason, Since: time.Now(), Read: time.Now()})
}

// Resume ends the pause.
func (o *Outbox) Resume() { o.order(nil) }

func (o *Outbox) order(pause *store.Pause) {
	o.mu.Lock()
	o.ordered = pause
	o.mu.Unlock()
	o.wake()
}

// Paused implements relay.Store.
func (o *Outbox) Paused() *store.Pause {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.paused
}

// wake wakes whoever listens.
func (o *Outbox) wake() {
	o.mu.Lock()
	wakes := slices.Collect(maps.Values(o.listeners))
	o.mu.Unlock()
	for _, wake := range wakes {
		wake()
	}
}

// Candidacy returns what Stand was told last, and Reported what Report was.
func (o *Outbox) Candidacy() store.Candidacy {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.candidacy
}

// Reported returns why the leader cannot publish, as it said last; empty for nothing.
func (o *Outbox) Reported() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.reported
}

// Table returns the default name.
func (o *Outbox) Table() store.Table { return store.Table{} }

// Retains reports that there is an archive.
func (o *Outbox) Retains() bool { return true }

// Migrate does nothing, and Check neither.
func (o *Outbox) Migrate(ctx context.Context) error { return o.call(ctx, func() error { return nil }) }

// Check finds nothing wrong.
func (o *Outbox) Check(ctx context.Context) error { return o.call(ctx, func() error { return nil }) }

// Close ends the term.
func (o *Outbox) Close(context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.term = nil
	return nil
}

// call does what takes a session.
func (o *Outbox) call(ctx context.Context, do func() error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if o.fault != nil {
		return o.fault
	}
	return do()
}

// Begin implements relay.Store.
func (o *Outbox) Begin(ctx context.Context, stream, _ string, atLeast int64) (relay.Term, error) {
	var t *term
	err := o.call(ctx, func() error {
		r := o.terms[stream]
		if r == nil {
			r = &record{}
			o.terms[stream] = r
		}
		r.number = max(r.number+1, atLeast)
		t = &term{outbox: o, record: r, stream: stream, start: store.TermStart{
			OutboxID: o.id, Number: r.number, Checkpoint: r.checkpoint, First: !r.published, Floor: o.floor(),
		}}
		for _, row := range o.rows {
			if wait := time.Until(row.retryAt); wait > 0 {
				t.start.Blocked = append(t.start.Blocked, store.Blocked{AggregateType: row.AggregateType, AggregateID: row.AggregateID, For: wait})
			}
		}
		o.term = t
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// floor is below all rows. The caller holds mu.
func (o *Outbox) floor() int64 {
	if len(o.rows) > 0 {
		return o.rows[0].Seq
	}
	return o.seq + 1
}

// Stand implements relay.Store.
func (o *Outbox) Stand(ctx context.Context, _ string, c store.Candidacy) (obstacle string, err error) {
	return "", o.call(ctx, func() error { o.candidacy, o.paused = c, o.ordered; return nil })
}

// Listen implements relay.Store. Every Insert wakes it.
func (o *Outbox) Listen(ctx context.Context, wake func()) error {
	o.mu.Lock()
	o.listened++
	n := o.listened
	o.listeners[n] = wake
	o.mu.Unlock()
	wake()
	<-ctx.Done()
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.listeners, n)
	return nil
}

// Watch finds nothing.
func (o *Outbox) Watch(ctx context.Context, _ func(store.Finding)) { <-ctx.Done() }

// term is a term of an Outbox.
type term struct {
	outbox *Outbox
	record *record
	stream string
	start  store.TermStart
}

// errTermOver is returned by what is asked of a term after it.
var errTermOver = errors.New("the term is over")

// call does what belongs to the term.
func (t *term) call(ctx context.Context, do func() error) error {
	return t.outbox.call(ctx, func() error {
		if t.outbox.term != t {
			return errTermOver
		}
		return do()
	})
}

func (t *term) Start() store.TermStart { return t.start }

func (t *term) Standbys(ctx context.Context) (n int, err error) {
	err = t.call(ctx, func() error { n = t.outbox.standbys; return nil })
	return n, err
}

func (t *term) Report(ctx context.Context, reason string, _ time.Duration) error {
	return t.call(ctx, func() error { t.outbox.reported = reason; return nil })
}

func (t *term) End(ctx context.Context) error {
	return t.call(ctx, func() error { t.outbox.term = nil; return nil })
}

func (t *term) Sweep(ctx context.Context, _ func()) { <-ctx.Done() }

func (t *term) RoundTrip(ctx context.Context, request store.Request) (response store.Response, err error) {
	err = t.call(ctx, func() error {
		for _, s := range request.Settled {
			for _, seq := range s.Seqs {
				t.remove(seq, s.After, !s.Unarchived)
			}
		}
		for _, f := range request.Failed {
			if at := t.outbox.find(f.Ref); at >= 0 {
				r := &t.outbox.rows[at]
				r.Attempts, r.retryAt = f.Attempts, time.Now().Add(f.Wait)
			}
		}
		for _, f := range request.Dead {
			if at := t.outbox.find(f.Ref); at >= 0 {
				t.outbox.rows = slices.Delete(t.outbox.rows, at, at+1)
				t.outbox.dead = append(t.outbox.dead, f.Ref)
			}
		}
		if request.Checkpoint > 0 {
			c := &t.record.checkpoint
			c.Sequence, c.Before = request.Checkpoint, c.Sequence
		}
		if request.Fetch != nil {
			response.Rows, response.Full = t.outbox.page(request.Fetch)
		}
		t.outbox.paused = t.outbox.ordered
		response.Asleep = request.Sleep == store.FallAsleep
		response.Floor = t.outbox.floor()
		return nil
	})
	return response, err
}

// find returns the index of a row; -1 for none. The caller holds mu.
func (o *Outbox) find(ref store.Ref) int {
	return slices.IndexFunc(o.rows, func(r row) bool { return r.Seq == ref.Seq && r.ID == ref.ID })
}

// remove removes a row that the stream has stored, and reports whether it was there. The caller holds mu.
func (t *term) remove(seq int64, after uint64, archive bool) bool {
	o := t.outbox
	at, found := slices.BinarySearchFunc(o.rows, seq, func(r row, seq int64) int { return cmp.Compare(r.Seq, seq) })
	if !found {
		return false
	}
	if archive {
		o.archive = append(o.archive, archived{o.rows[at].Row, t.stream, after})
	}
	o.rows = slices.Delete(o.rows, at, at+1)
	return true
}

// page returns the rows that a fetch asks for, and whether there may be more. The caller holds mu.
func (o *Outbox) page(f *store.Fetch) (rows []store.Row, full bool) {
	size := 0
	for _, r := range o.rows {
		blocked := false
		for i := range f.BlockedTypes {
			blocked = blocked || r.AggregateType == f.BlockedTypes[i] && r.AggregateID == f.BlockedIDs[i]
		}
		if blocked || slices.Contains(f.Held, r.Seq) || slices.Contains(f.Passed, r.Seq) {
			continue
		}
		if len(rows) == f.Rows || len(rows) > 0 && size+r.Size() > f.Bytes {
			return rows, true
		}
		size += r.Size()
		rows = append(rows, r.Row)
	}
	return rows, len(rows) == f.Rows
}

func (t *term) Settle(ctx context.Context, found []store.Ref, after uint64) (settled int, kept []store.Ref, err error) {
	err = t.call(ctx, func() error {
		for _, ref := range found {
			if t.outbox.find(ref) >= 0 && t.remove(ref.Seq, after, true) {
				settled++
			}
		}
		return nil
	})
	return settled, nil, err
}

func (t *term) Archive(ctx context.Context, from uint64) (events []store.Archived, err error) {
	err = t.call(ctx, func() error {
		for _, a := range t.outbox.archive {
			if a.stream != t.stream || a.after < from {
				continue
			}
			aggregate := fnv.New64()
			_, _ = aggregate.Write([]byte(a.AggregateType + "\x00" + a.AggregateID))
			events = append(events, store.Archived{
				Ref: store.Ref{Seq: a.Seq, ID: a.ID}, After: a.after, Size: len(a.Data), Aggregate: int64(aggregate.Sum64()),
			})
		}
		return nil
	})
	return events, err
}

func (t *term) PutBack(ctx context.Context, lost []store.Archived, checkpoint store.Checkpoint) (back int, err error) {
	err = t.call(ctx, func() error {
		o := t.outbox
		for _, l := range lost {
			at := slices.IndexFunc(o.archive, func(a archived) bool { return a.Seq == l.Seq && a.ID == l.ID && a.stream == t.stream })
			if at < 0 {
				continue
			}
			r := row{Row: o.archive[at].Row}
			r.Attempts = 0
			o.archive = slices.Delete(o.archive, at, at+1)
			o.rows = append(o.rows, r)
			back++
		}
		slices.SortFunc(o.rows, func(a, b row) int { return cmp.Compare(a.Seq, b.Seq) })
		if checkpoint != (store.Checkpoint{}) {
			if !checkpoint.Created.Equal(t.record.checkpoint.Created) {
				for i := range o.archive { // Their sequences are another stream's.
					if o.archive[i].stream == t.stream {
						o.archive[i].after = 0
					}
				}
			}
			t.record.checkpoint, t.record.published = checkpoint, true
		}
		return nil
	})
	return back, err
}
