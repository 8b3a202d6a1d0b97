package relaytest

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// patience is how long the suites wait for what a part does by itself.
const patience = 20 * time.Second

// await waits for a signal.
func await[T any](t *testing.T, what string, signal <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-signal:
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
	return value
}

// StoreUnderTest is a store with an empty outbox, and the other side of it.
type StoreUnderTest struct {
	// Store has been prepared by Migrate, and its session may lead.
	Store relay.Store
	// Insert inserts events in one transaction.
	Insert func(t *testing.T, events ...store.Event)
	// Pending returns the seqs of the rows in the outbox, in order.
	Pending func(t *testing.T) []int64
}

// begin begins a term for a stream.
func (s *StoreUnderTest) begin(t *testing.T) relay.Term {
	t.Helper()
	term, err := s.Store.Begin(t.Context(), "S", "relaytest", 0)
	if err != nil {
		t.Fatal(err)
	}
	return term
}

// insert inserts events of an aggregate each, and returns their rows.
func (s *StoreUnderTest) insert(t *testing.T, term relay.Term, aggregates ...string) []store.Row {
	t.Helper()
	for _, a := range aggregates {
		s.Insert(t, store.Event{Topic: "t", AggregateType: "A", AggregateID: a, EventType: "E", Data: []byte("data of " + a)})
	}
	rows := roundTrip(t, term, store.Request{Fetch: page()}).Rows
	if len(rows) != len(aggregates) {
		t.Fatalf("fetched %d rows, want %d", len(rows), len(aggregates))
	}
	for i := range rows {
		if rows[i].AggregateID != aggregates[i] || string(rows[i].Data) != "data of "+aggregates[i] || rows[i].ID == uuid.Nil {
			t.Fatalf("row %d is %+v, want the event of aggregate %s", i, rows[i], aggregates[i])
		}
	}
	return rows
}

func page() *store.Fetch { return &store.Fetch{Rows: 100, Bytes: 1 << 20} }

func roundTrip(t *testing.T, term relay.Term, request store.Request) store.Response {
	t.Helper()
	response, err := term.RoundTrip(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func refOf(row store.Row) store.Ref { return store.Ref{Seq: row.Seq, ID: row.ID} }

func seqsOf(rows []store.Row) []int64 {
	seqs := make([]int64, len(rows))
	for i := range rows {
		seqs[i] = rows[i].Seq
	}
	return seqs
}

// settled are rows that the stream has stored after a sequence.
func settled(after uint64, rows ...store.Row) []store.Settled {
	return []store.Settled{{Seqs: seqsOf(rows), After: after}}
}

// pending verifies which rows are in the outbox.
func (s *StoreUnderTest) pending(t *testing.T, what string, want ...store.Row) {
	t.Helper()
	if got := s.Pending(t); !slices.Equal(got, seqsOf(want)) {
		t.Errorf("%s: the rows %v are in the outbox, want %v", what, got, seqsOf(want))
	}
}

// TestStore verifies what the relay relies on of a Store. Each test opens one of its own.
func TestStore(t *testing.T, open func(t *testing.T) StoreUnderTest) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, s StoreUnderTest){
		"fetches what it does not hold, in order": fetches,
		"settles what is named":                   settles,
		"records refusals":                        recordsRefusals,
		"terms are counted":                       countsTerms,
		"a term that is over does nothing":        endsTerms,
		"checkpoints":                             recordsCheckpoints,
		"settles what the stream holds":           settlesFound,
		"puts back what the stream has lost":      putsBack,
		"wakes the relay":                         wakes,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func fetches(t *testing.T, s StoreUnderTest) {
	t.Helper()
	term := s.begin(t)
	rows := s.insert(t, term, "a", "b", "c", "d")
	if !slices.IsSorted(seqsOf(rows)) {
		t.Errorf("the rows come in the order %v", seqsOf(rows))
	}
	highest := rows[3].Seq
	for name, tt := range map[string]struct {
		fetch store.Fetch
		want  []store.Row
		full  bool
	}{
		"some are held":           {store.Fetch{Rows: 10, Bytes: 1 << 20, Held: seqsOf(rows[:2]), Highest: highest}, rows[2:], false},
		"an aggregate is blocked": {store.Fetch{Rows: 10, Bytes: 1 << 20, BlockedTypes: []string{"A"}, BlockedIDs: []string{"b"}, Highest: highest}, []store.Row{rows[0], rows[2], rows[3]}, false},
		"one is passed":           {store.Fetch{Rows: 10, Bytes: 1 << 20, Passed: seqsOf(rows[3:]), Highest: highest}, rows[:3], false},
		"a small page":            {store.Fetch{Rows: 2, Bytes: 1 << 20, Highest: highest}, rows[:2], true},
		"a page of one large row": {store.Fetch{Rows: 10, Bytes: 1, Highest: highest}, rows[:1], true},
	} {
		response := roundTrip(t, term, store.Request{Fetch: &tt.fetch})
		if got := seqsOf(response.Rows); !slices.Equal(got, seqsOf(tt.want)) || response.Full != tt.full {
			t.Errorf("%s: fetched %v, full %v; want %v, %v", name, got, response.Full, seqsOf(tt.want), tt.full)
		}
		if response.Floor > rows[0].Seq {
			t.Errorf("%s: the floor is %d, above row %d, which is still there", name, response.Floor, rows[0].Seq)
		}
	}
}

func settles(t *testing.T, s StoreUnderTest) {
	t.Helper()
	term := s.begin(t)
	rows := s.insert(t, term, "a", "b", "c")
	none := store.Row{Seq: rows[2].Seq + 1000}
	for range 2 { // An outcome may be unknown, so it is recorded again.
		if r := roundTrip(t, term, store.Request{Settled: settled(1, rows[0], rows[2], none)}); len(r.Kept) > 0 || r.Remaining != nil {
			t.Errorf("kept are %v, and remaining %v", r.Kept, r.Remaining)
		}
		s.pending(t, "after settling the first and the last", rows[1])
	}
	if r := roundTrip(t, term, store.Request{Settled: settled(2, rows[1]), Fetch: page()}); len(r.Rows) > 0 {
		t.Errorf("fetched %v together with settling them", seqsOf(r.Rows))
	}
	s.pending(t, "after settling all")
}

func recordsRefusals(t *testing.T, s StoreUnderTest) {
	t.Helper()
	term := s.begin(t)
	rows := s.insert(t, term, "a", "b", "c")
	roundTrip(t, term, store.Request{
		Failed: []store.Failure{{Ref: refOf(rows[0]), Attempts: 1, Wait: time.Hour, Reason: "refused"}, {Ref: store.Ref{Seq: rows[2].Seq, ID: uuid.New()}, Attempts: 7, Reason: "of another"}},
		Dead:   []store.Failure{{Ref: refOf(rows[1]), Attempts: 3, Reason: "refused"}},
	})
	s.pending(t, "after one is a dead letter", rows[0], rows[2])
	got := roundTrip(t, term, store.Request{Fetch: page()}).Rows
	if len(got) != 2 || got[0].Attempts != 1 || got[1].Attempts != 0 {
		t.Errorf("fetched %+v, want two rows, the first refused once", got)
	}
	blocked := s.begin(t).Start().Blocked
	if len(blocked) != 1 || blocked[0].AggregateType != "A" || blocked[0].AggregateID != "a" || blocked[0].For <= 0 || blocked[0].For > time.Hour {
		t.Errorf("the next term begins with %+v as blocked, want aggregate a, for an hour at most", blocked)
	}
}

func countsTerms(t *testing.T, s StoreUnderTest) {
	t.Helper()
	first := s.begin(t).Start()
	if !first.First || first.Checkpoint != (store.Checkpoint{}) || first.OutboxID == uuid.Nil || first.Number < 1 {
		t.Errorf("the first term begins with %+v", first)
	}
	second := s.begin(t).Start()
	if second.Number <= first.Number || second.OutboxID != first.OutboxID {
		t.Errorf("the second term begins with %+v, after %+v", second, first)
	}
	later, err := s.Store.Begin(t.Context(), "S", "relaytest", second.Number+10)
	if err != nil || later.Start().Number < second.Number+10 {
		t.Errorf("a term of at least %d: %+v, %v", second.Number+10, later, err)
	}
}

func endsTerms(t *testing.T, s StoreUnderTest) {
	t.Helper()
	former := s.begin(t)
	rows := s.insert(t, former, "a", "b")
	next := s.begin(t)
	nothing := func(what string, term relay.Term) {
		t.Helper()
		checkpoint := store.Checkpoint{Created: time.Now().Truncate(time.Microsecond), Sequence: 9, Before: 9}
		for name, do := range map[string]func() error{
			"RoundTrip": func() error {
				_, err := term.RoundTrip(t.Context(), store.Request{Settled: settled(1, rows[0]), Fetch: page()})
				return err
			},
			"Settle": func() error {
				_, _, err := term.Settle(t.Context(), []store.Ref{refOf(rows[0])}, 1)
				return err
			},
			"PutBack":  func() error { _, err := term.PutBack(t.Context(), nil, checkpoint); return err },
			"Standbys": func() error { _, err := term.Standbys(t.Context()); return err },
			"Report":   func() error { return term.Report(t.Context(), "no reason", 0) },
			"End":      func() error { return term.End(t.Context()) },
		} {
			if err := do(); err == nil {
				t.Errorf("%s of %s succeeds", name, what)
			}
		}
		s.pending(t, "after what "+what+" did", rows...)
	}
	nothing("a term after which another began", former)
	if n, err := next.Standbys(t.Context()); err != nil || n != 0 {
		t.Errorf("got %d standbys, %v; want none", n, err)
	}
	if err := next.Report(t.Context(), "for a reason", time.Second); err != nil {
		t.Error(err)
	}
	if err := next.End(t.Context()); err != nil {
		t.Error(err)
	}
	nothing("a term that was ended", next)
	if start := s.begin(t).Start(); start.Checkpoint != (store.Checkpoint{}) {
		t.Errorf("a term that was over has recorded the checkpoint %+v", start.Checkpoint)
	}
}

func recordsCheckpoints(t *testing.T, s StoreUnderTest) {
	t.Helper()
	term := s.begin(t)
	want := store.Checkpoint{Created: time.Now().Truncate(time.Microsecond), Sequence: 10, Before: 5}
	if _, err := term.PutBack(t.Context(), nil, want); err != nil {
		t.Fatal(err)
	}
	verify := func(want store.Checkpoint) relay.Term {
		t.Helper()
		next := s.begin(t)
		got := next.Start()
		if got.First || !got.Checkpoint.Created.Equal(want.Created) || got.Checkpoint.Sequence != want.Sequence || got.Checkpoint.Before != want.Before {
			t.Errorf("the next term begins with %+v, want the checkpoint %+v", got, want)
		}
		return next
	}
	term = verify(want)
	roundTrip(t, term, store.Request{Checkpoint: 20})
	term = verify(store.Checkpoint{Created: want.Created, Sequence: 20, Before: 10})
	roundTrip(t, term, store.Request{Checkpoint: 30})
	verify(store.Checkpoint{Created: want.Created, Sequence: 30, Before: 20})
	other, err := s.Store.Begin(t.Context(), "S", "relaytest", 0)
	if err != nil || other.Start().First {
		t.Errorf("after the first term: %v", err)
	}
}

func settlesFound(t *testing.T, s StoreUnderTest) {
	t.Helper()
	term := s.begin(t)
	rows := s.insert(t, term, "a", "b")
	found := []store.Ref{refOf(rows[0]), {Seq: rows[1].Seq, ID: uuid.New()}, {Seq: rows[1].Seq + 1000, ID: uuid.New()}}
	for _, want := range []int{1, 0} {
		n, kept, err := term.Settle(t.Context(), found, 1)
		if err != nil || n != want || len(kept) > 0 {
			t.Errorf("settled %d, kept %v, %v; want %d", n, kept, err, want)
		}
	}
	s.pending(t, "after the first was found in the stream", rows[1])
}

func putsBack(t *testing.T, s StoreUnderTest) {
	t.Helper()
	if !s.Store.Retains() {
		t.Skip("it has no archive")
	}
	term := s.begin(t)
	rows := s.insert(t, term, "a", "b", "c")
	checkpoint := store.Checkpoint{Created: time.Now().Truncate(time.Microsecond), Sequence: 1, Before: 1}
	if _, err := term.PutBack(t.Context(), nil, checkpoint); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, term, store.Request{Settled: append(settled(10, rows[0], rows[1]), settled(20, rows[2])...)})
	s.pending(t, "after settling all")
	archive, err := term.Archive(t.Context(), 0)
	if err != nil || len(archive) != 3 {
		t.Fatalf("the archive has %+v, %v; want three events", archive, err)
	}
	slices.SortFunc(archive, func(a, b store.Archived) int { return int(a.Seq - b.Seq) })
	for i, a := range archive {
		if a.Ref != refOf(rows[i]) || a.After != []uint64{10, 10, 20}[i] || a.Size != len(rows[i].Data) {
			t.Errorf("archived is %+v, want row %d", a, rows[i].Seq)
		}
		if i > 0 && a.Aggregate == archive[i-1].Aggregate {
			t.Error("two aggregates are the same in the archive")
		}
	}
	for _, want := range []int{2, 0} {
		back, err := term.PutBack(t.Context(), archive[1:], store.Checkpoint{})
		if err != nil || want > 0 && back != want {
			t.Errorf("%d events were put back, %v; want %d", back, err, want)
		}
	}
	s.pending(t, "after two were put back", rows[1], rows[2])
	got := roundTrip(t, term, store.Request{Fetch: &store.Fetch{Rows: 100, Bytes: 1 << 20, Highest: rows[2].Seq}}).Rows
	if len(got) != 2 || refOf(got[0]) != refOf(rows[1]) || string(got[1].Data) != string(rows[2].Data) {
		t.Errorf("fetched %+v, want the events that were put back", got)
	}
}

func wakes(t *testing.T, s StoreUnderTest) {
	t.Helper()
	term := s.begin(t)
	ctx, stop := context.WithCancel(t.Context())
	woken, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() { ended <- s.Store.Listen(ctx, func() { woken <- struct{}{} }) }()
	await(t, "wake-up once it listens", woken)
	asleep := func() bool { return roundTrip(t, term, store.Request{Sleep: store.FallAsleep, Fetch: page()}).Asleep }
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !asleep(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("the relay cannot fall asleep")
		}
	}
	for len(woken) > 0 {
		<-woken
	}
	s.Insert(t, store.Event{Topic: "t", AggregateType: "A", AggregateID: "a", EventType: "E"})
	await(t, "wake-up of the relay that sleeps", woken)
	stop()
	if err := await(t, "end of Listen", ended); err != nil {
		t.Errorf("Listen: %v", err)
	}
}

// PublisherUnderTest is a stream that is empty or not there yet, and what it holds.
type PublisherUnderTest struct {
	// New returns another publisher to the stream, which is closed when the test ends.
	New func(t *testing.T) relay.Publisher
	// Stored returns the payloads of the events in the stream, in its order.
	Stored func(t *testing.T) []string
}

// TestPublisher verifies what the relay relies on of a Publisher. Each test opens a stream of its own.
func TestPublisher(t *testing.T, open func(t *testing.T) PublisherUnderTest) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, s PublisherUnderTest){
		"tells every outcome once":            tellsOutcomes,
		"publishes nothing after the session": endsSessions,
		"fences off earlier terms":            fencesOff,
		"reads back":                          readsBack,
		"sends nothing without the lease":     sendsWithLease,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// event returns the event with this seq.
func event(seq int64) *stream.Event {
	text := strconv.FormatInt(seq, 10)
	return &stream.Event{
		Seq: seq, ID: uuid.NewSHA1(uuid.NameSpaceOID, []byte(text)), Topic: "t", AggregateType: "A", AggregateID: "a", EventType: "E",
		Data: []byte(text), CreatedAt: time.Unix(1, 0),
	}
}

// opened returns a publisher that is open.
func (s *PublisherUnderTest) opened(t *testing.T) relay.Publisher {
	t.Helper()
	p := s.New(t)
	if _, err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

const outboxName = "5f6f4e5c-1b5e-4a37-9a1b-0d5f3c1f7a10"

func session(t *testing.T, p relay.Publisher, term int64, first bool) (relay.Session, history.Fence) {
	t.Helper()
	session, fence, err := p.Begin(t.Context(), outboxName, term, first)
	if err != nil {
		t.Fatal(err)
	}
	return session, fence
}

// outcomes publishes events, each by itself or in an ordered batch, and returns what became of them.
func outcomes(t *testing.T, p relay.Publisher, s relay.Session, ordered bool, seqs ...int64) map[int64]publisher.Outcome {
	t.Helper()
	publish := s.Publish
	if ordered {
		publish = s.PublishOrdered
	}
	reused := &stream.Event{}
	for _, seq := range seqs {
		*reused = *event(seq)
		if err := publish(reused); err != nil {
			t.Fatalf("event %d: %v", seq, err)
		}
		*reused = stream.Event{} // The relay reuses it.
	}
	if ordered {
		s.Finish()
	}
	got := make(map[int64]publisher.Outcome)
	for len(got) < len(seqs) {
		await(t, "outcomes", p.Outcomes())
		outcomes, trouble := p.Collect(nil)
		if trouble != nil {
			t.Fatal(trouble)
		}
		for _, o := range outcomes {
			if _, twice := got[o.Seq]; twice {
				t.Errorf("event %d has two outcomes", o.Seq)
			}
			got[o.Seq] = o
		}
	}
	return got
}

// stored verifies what the stream holds.
func (s *PublisherUnderTest) stored(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := s.Stored(t); !slices.Equal(got, want) {
		t.Errorf("%s: the stream holds %q, want %q", what, got, want)
	}
}

func tellsOutcomes(t *testing.T, s PublisherUnderTest) {
	t.Helper()
	p := s.opened(t)
	session, _ := session(t, p, 1, true)
	first := outcomes(t, p, session, false, 1, 2)
	for seq, o := range first {
		if o.Err != nil || o.Duplicate || o.Stored == 0 {
			t.Errorf("event %d: %+v, want that it is stored", seq, o)
		}
	}
	if again := outcomes(t, p, session, false, 1)[1]; again.Err != nil || !again.Duplicate || again.Stored != first[1].Stored {
		t.Errorf("event 1 again: %+v, want a duplicate of the one at %d", again, first[1].Stored)
	}
	s.stored(t, "each by itself", "1", "2")
	if session.BatchWindow() == 0 {
		return // There can be no batch.
	}
	for seq, o := range outcomes(t, p, session, true, 3, 4, 5) {
		if o.Err != nil {
			t.Errorf("event %d of a batch: %v", seq, o.Err)
		}
	}
	s.stored(t, "with an ordered batch", "1", "2", "3", "4", "5")
}

func endsSessions(t *testing.T, s PublisherUnderTest) {
	t.Helper()
	p := s.opened(t)
	former, _ := session(t, p, 1, true)
	latter, _ := session(t, p, 1, true)
	refused := func(what string, session relay.Session) {
		t.Helper()
		err := session.Publish(event(1))
		var fault *stream.Error
		if !errors.As(err, &fault) || fault.Ambiguous() || fault.Fault == stream.FaultRow {
			t.Errorf("%s: %v, want a *stream.Error that is not the row's, and that nothing was sent", what, err)
		}
	}
	refused("a session after which another began", former)
	if o := outcomes(t, p, latter, false, 2)[2]; o.Err != nil {
		t.Errorf("the latest session: %v", o.Err)
	}
	p.Close()
	if _, err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("a session before the connection was closed", latter)
	s.stored(t, "in the end", "2")
}

func fencesOff(t *testing.T, s PublisherUnderTest) {
	t.Helper()
	p := s.opened(t)
	if !p.ReadsBack() {
		t.Skip("it puts up no fence")
	}
	if _, f := session(t, p, 1, true); f.Sequence != 0 || !f.Absent {
		t.Errorf("before anything was published the fence is %+v, want none", f)
	}
	_, first := session(t, p, 1, false)
	_, second := session(t, p, 2, false)
	if first.Sequence == 0 || first.Former != 0 || second.Former != first.Sequence || second.Sequence <= first.Sequence || !second.Created.Equal(first.Created) {
		t.Errorf("the fences are %+v and %+v", first, second)
	}
	former := s.opened(t)
	for _, first := range []bool{false, true} {
		var deposed *history.DeposedError
		if _, _, err := former.Begin(t.Context(), outboxName, 1, first); !errors.As(err, &deposed) || deposed.Term != 2 || deposed.Ours != 1 {
			t.Errorf("an earlier term begins with %v, want that it is deposed by term 2", err)
		}
	}
	if _, _, err := former.Begin(t.Context(), "6f6f4e5c-1b5e-4a37-9a1b-0d5f3c1f7a10", 1, false); err != nil {
		t.Errorf("another outbox's term: %v", err)
	}
}

func readsBack(t *testing.T, s PublisherUnderTest) {
	t.Helper()
	p := s.opened(t)
	if !p.ReadsBack() {
		t.Skip("it does not")
	}
	former, first := session(t, p, 1, false)
	stored := outcomes(t, p, former, false, 1)
	second := outcomes(t, p, former, false, 2)
	latter, _ := session(t, p, 2, false)
	scan := func(above uint64) (seqs []int64) {
		t.Helper()
		err := latter.Scan(t.Context(), above, func(f history.Found) error {
			if !f.Event {
				return nil
			}
			if want := event(f.Seq); f.ID != want.ID || f.Size != len(want.Data) || f.Stored == 0 {
				t.Errorf("found %+v", f)
			}
			seqs = append(seqs, f.Seq)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return seqs
	}
	if got := scan(first.Sequence); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("after the first fence it reads %v, want events 1 and 2", got)
	}
	if got := scan(stored[1].Stored); !slices.Equal(got, []int64{2}) {
		t.Errorf("after event 1 it reads %v, want event 2", got)
	}
	outcomes(t, p, latter, false, 3)
	if got := scan(0); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("up to the fence it reads %v, want events 1 and 2", got)
	}
	enough := errors.New("enough")
	if err := latter.Scan(t.Context(), 0, func(history.Found) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("Scan returns %v, want the error of visit", err)
	}
	if f, err := latter.Find(t.Context(), second[2].Stored); err != nil || !f.Event || f.Seq != 2 || f.ID != event(2).ID {
		t.Errorf("found %+v, %v; want event 2", f, err)
	}
	state, err := latter.Verify(t.Context(), history.State{}, second[2].Stored)
	if err != nil || state.Last < second[2].Stored {
		t.Errorf("the stream's state is %+v, %v", state, err)
	}
	if _, err := latter.Verify(t.Context(), state, state.Last); err != nil {
		t.Errorf("nothing has changed, and yet: %v", err)
	}
	var lost *stream.LostError
	if _, err := latter.Verify(t.Context(), history.State{}, state.Last+100); !errors.As(err, &lost) {
		t.Errorf("a sequence that the stream has not reached was acknowledged: %v, want a %T", err, lost)
	}
}

func sendsWithLease(t *testing.T, s PublisherUnderTest) {
	t.Helper()
	p := s.New(t)
	if !p.Guards() {
		t.Skip("it asks for no lease")
	}
	var ended atomic.Bool
	p.Guard(func() bool { return !ended.Load() })
	if _, err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	session, _ := session(t, p, 1, true)
	if o := outcomes(t, p, session, false, 1)[1]; o.Err != nil {
		t.Fatal(o.Err)
	}
	ended.Store(true)
	for err := session.Publish(event(2)); err == nil; {
		await(t, "outcome", p.Outcomes())
		outcomes, _ := p.Collect(nil)
		for _, o := range outcomes {
			if o.Err == nil {
				t.Errorf("the event is stored: %+v", o)
			}
			err = errors.New("told")
		}
	}
	s.stored(t, "after the lease", "1")
}

// TestElector verifies what the relay relies on of an Elector that nobody competes with. Each test makes one of its own.
func TestElector(t *testing.T, newElector func(t *testing.T) relay.Elector) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, e relay.Elector){
		"a stop while leading ends Run": func(t *testing.T, e relay.Elector) {
			t.Helper()
			c := run(t, e)
			term := await(t, "election", c.terms)
			if !term.lease.Valid() {
				t.Error("elected without a valid lease")
			}
			if e.Standby() {
				t.Error("a leader stands by")
			}
			c.stop()
			await(t, "end of the leader's context", term.ctx.Done())
			select {
			case err := <-c.ended:
				t.Errorf("Run returned %v before the leader had", err)
			case <-time.After(20 * time.Millisecond):
			}
			term.leave <- nil
			if err := await(t, "end of Run", c.ended); err != nil {
				t.Errorf("Run returned %v, want nil", err)
			}
			if term.lease.Valid() {
				t.Error("the lease is valid after Run")
			}
		},
		"the leader's error ends Run": func(t *testing.T, e relay.Elector) {
			t.Helper()
			c, wrong := run(t, e), errors.New("wrong")
			await(t, "election", c.terms).leave <- wrong
			if err := await(t, "end of Run", c.ended); !errors.Is(err, wrong) {
				t.Errorf("Run returned %v, want %v", err, wrong)
			}
		},
		"a leader who returns is elected again": func(t *testing.T, e relay.Elector) {
			t.Helper()
			c := run(t, e)
			for range 3 {
				term := await(t, "election", c.terms)
				if !term.lease.Valid() {
					t.Error("elected without a valid lease")
				}
				term.leave <- nil
			}
		},
		"nobody is elected whose context has ended": func(t *testing.T, e relay.Elector) {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := e.Run(ctx, func(context.Context, *election.Lease) error {
				t.Error("elected")
				return nil
			})
			if err != nil {
				t.Errorf("Run returned %v, want nil", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { test(t, newElector(t)) })
	}
}

// campaign is an elector that runs until the test ends, if not stopped before.
type campaign struct {
	stop  context.CancelFunc
	terms chan leading
	ended chan error
}

// leading is a term under way.
type leading struct {
	ctx   context.Context //nolint:containedctx // It is what is tested.
	lease *election.Lease
	leave chan error
}

func run(t *testing.T, e relay.Elector) *campaign {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	c := &campaign{stop: stop, terms: make(chan leading), ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.ended <- e.Run(ctx, func(term context.Context, lease *election.Lease) error {
			l := leading{term, lease, make(chan error, 1)}
			select {
			case c.terms <- l:
			case <-term.Done():
				return nil
			case <-ctx.Done():
				return nil
			}
			return <-l.leave
		})
	}()
	t.Cleanup(func() {
		stop()
		select {
		case <-done:
		case term := <-c.terms:
			term.leave <- nil
			<-done
		}
	})
	return c
}
