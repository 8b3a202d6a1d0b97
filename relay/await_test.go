package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// stage is all that a relay waits for: an outbox, a stream and an elector, in memory. Whatever may take its time passes
// the stage's gate first, which knows each such wait by its name and number, and can make one of them last for ever: until
// its context ends.
type stage struct {
	mu      sync.Mutex // Protects what follows.
	calls   map[string]int
	waits   []string // In the order in which they came.
	endless string   // The wait that does not end by itself; empty for none.
	reached chan struct{}
	inTerm  bool // It was reached in a term.

	rows       map[int64]bool // In the outbox.
	checkpoint store.Checkpoint
	recorded   bool
	terms      int64
	standbys   int
	standErr   error
	pause      *store.Pause
	wake       func()
	claims     []bool // What Stand was told, the latest last.

	messages []int64 // By sequence, from 1; 0 for a fence.
	outcomes []publisher.Outcome
	trouble  *stream.Error
	openErr  error
	lookErr  error // Of the next look at the stream.
	loseAck  bool  // Of the next event.
	refused  int64 // An event that is refused.
	closed   chan struct{}
	signal   chan struct{}

	leading  bool
	idle     time.Duration // For how long another relay leads before each election.
	endTerm  context.CancelCauseFunc
	valid    atomic.Bool
	returned chan struct{} // Signalled when lead has returned.
	elected  int
}

func newStage() *stage {
	return &stage{
		calls: map[string]int{}, reached: make(chan struct{}), rows: map[int64]bool{}, closed: make(chan struct{}),
		signal: make(chan struct{}, 1), returned: make(chan struct{}, 100), idle: 5 * time.Second,
	}
}

// pass is called by whatever may wait.
func (s *stage) pass(ctx context.Context, name string) error {
	s.mu.Lock()
	s.calls[name]++
	wait := fmt.Sprintf("%s %d", name, s.calls[name])
	s.waits = append(s.waits, wait)
	endless := wait == s.endless
	if endless {
		s.inTerm = s.leading
		close(s.reached)
	}
	s.mu.Unlock()
	if !endless {
		return ctx.Err()
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (s *stage) locked(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func (s *stage) insert(seqs ...int64) {
	s.locked(func() {
		for _, seq := range seqs {
			s.rows[seq] = true
		}
	})
}

// stageStore is the stage as an outbox: the publisher's Close is another.
type stageStore struct{ *stage }

func (stageStore) Close(context.Context) error { return nil }
func (stageStore) Table() store.Table          { return store.Table{} }
func (stageStore) Retains() bool               { return true }

func (s stageStore) Paused() *store.Pause {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pause
}

func (s *stage) parts() Parts {
	return Parts{Store: stageStore{s}, Publisher: stagePublisher{s}, Elector: s}
}

// The outbox.

func (s *stage) Migrate(ctx context.Context) error { return s.pass(ctx, "Migrate") }
func (s *stage) Check(ctx context.Context) error   { return s.pass(ctx, "Check") }

func (s *stage) Begin(ctx context.Context, _, _ string, atLeast int64) (Term, error) {
	if err := s.pass(ctx, "Begin"); err != nil {
		return nil, err
	}
	var start store.TermStart
	s.locked(func() {
		s.terms = max(s.terms+1, atLeast)
		start = store.TermStart{OutboxID: uuid.UUID{1}, Number: s.terms, Checkpoint: s.checkpoint, First: !s.recorded}
	})
	return stageTerm{s, start}, nil
}

// stageTerm is a term of the stage's outbox.
type stageTerm struct {
	*stage

	start store.TermStart
}

func (t stageTerm) Start() store.TermStart { return t.start }

func (s *stage) Stand(ctx context.Context, _ string, c store.Candidacy) (string, error) {
	if err := s.pass(ctx, "Stand"); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims = append(s.claims, c.Fit)
	return "", s.standErr
}

func (s *stage) Standbys(ctx context.Context) (int, error) {
	err := s.pass(ctx, "Standbys")
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.standbys, err
}

func (s *stage) Report(ctx context.Context, _ string, _ time.Duration) error {
	return s.pass(ctx, "Report")
}

func (s *stage) End(ctx context.Context) error { return s.pass(ctx, "End") }

func (s *stage) RoundTrip(ctx context.Context, request store.Request) (response store.Response, err error) {
	if err := s.pass(ctx, "RoundTrip"); err != nil {
		return store.Response{}, err
	}
	s.locked(func() {
		for _, settled := range request.Settled {
			for _, seq := range settled.Seqs {
				delete(s.rows, seq)
			}
		}
		for _, failed := range slices.Concat(request.Failed, request.Dead) {
			delete(s.rows, failed.Seq)
		}
		if request.Checkpoint > 0 {
			s.checkpoint.Sequence, s.checkpoint.Before = request.Checkpoint, s.checkpoint.Sequence
		}
		response.Asleep = request.Sleep == store.FallAsleep
		if f := request.Fetch; f != nil {
			for _, seq := range slices.Sorted(maps.Keys(s.rows)) {
				if !slices.Contains(f.Held, seq) {
					response.Rows = append(response.Rows, store.Row{Seq: seq, ID: idOf(seq), AggregateType: "A", AggregateID: "a"})
				}
			}
		}
	})
	return response, nil
}

func (s *stage) Archive(ctx context.Context, _ uint64) ([]store.Archived, error) {
	return nil, s.pass(ctx, "Archive")
}

func (s *stage) Settle(ctx context.Context, found []store.Ref, _ uint64) (settled int, kept []store.Ref, err error) {
	if err := s.pass(ctx, "Settle"); err != nil {
		return 0, nil, err
	}
	s.locked(func() {
		for _, ref := range found {
			if s.rows[ref.Seq] {
				delete(s.rows, ref.Seq)
				settled++
			}
		}
	})
	return settled, nil, nil
}

func (s *stage) PutBack(ctx context.Context, _ []store.Archived, checkpoint store.Checkpoint) (int, error) {
	if err := s.pass(ctx, "PutBack"); err != nil {
		return 0, err
	}
	s.locked(func() { s.checkpoint, s.recorded = checkpoint, true })
	return 0, nil
}

func (s *stage) Listen(ctx context.Context, wake func()) error {
	s.locked(func() { s.wake = wake })
	_ = s.pass(ctx, "Listen")
	<-ctx.Done()
	return nil
}

func (s *stage) Sweep(ctx context.Context, _ func()) {
	_ = s.pass(ctx, "Sweep")
	<-ctx.Done()
}

func (s *stage) Watch(ctx context.Context, _ func(store.Finding)) {
	_ = s.pass(ctx, "Watch")
	<-ctx.Done()
}

// The stream.

func (s *stage) Stream() string            { return "S" }
func (s *stage) Outcomes() <-chan struct{} { return s.signal }
func (s *stage) VerifyFirst() bool         { return false }
func (s *stage) Alone() bool               { return false }

func (s *stage) ReadsBack() bool                                 { return true }
func (s *stage) Guards() bool                                    { return false }
func (s *stage) Guard(func() bool)                               {}
func (s *stage) RequireWindow(func(time.Duration) time.Duration) {}
func (s *stage) BatchWindow() int                                { return 0 }
func (s *stage) PublishOrdered(event *stream.Event) error        { return s.Publish(event) }
func (s *stage) Flush()                                          {}
func (s *stage) Finish()                                         {}
func (s *stage) MaxData() int                                    { return 0 }
func (s *stage) Standby() bool                                   { return false }
func (s *stage) Trouble() string                                 { return "" }

func (s *stage) append(seq int64) uint64 {
	s.messages = append(s.messages, seq)
	return uint64(len(s.messages))
}
func (s *stage) tell(o publisher.Outcome) { s.outcomes = append(s.outcomes, o); s.told() }
func (s *stage) told() {
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// hasRefused has an event refused for a reason of its own, which is held up in a hook. The caller holds mu.
func (s *stage) hasRefused(seq int64) {
	s.rows[seq], s.refused = true, seq
	s.wake()
}

func (s *stage) Open(ctx context.Context) ([]stream.Warning, error) {
	if err := s.pass(ctx, "Open"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return nil, s.openErr
}

// Close ends whatever waits for the network.
func (s *stage) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.closed)
	s.closed = make(chan struct{})
	s.outcomes, s.trouble = nil, nil
}

// Publish has no context: Close ends it.
func (s *stage) Publish(event *stream.Event) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	go func() {
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := s.pass(ctx, "Publish"); err != nil {
		return &stream.Error{Err: err}
	}
	s.locked(func() {
		if event.Seq == s.refused {
			s.tell(publisher.Outcome{Seq: event.Seq, Err: errRow})
			return
		}
		if at := slices.Index(s.messages, event.Seq); at >= 0 {
			s.tell(publisher.Outcome{Seq: event.Seq, Stored: uint64(at + 1), Duplicate: true})
			return
		}
		sequence := s.append(event.Seq)
		if s.loseAck {
			s.loseAck = false
			s.tell(publisher.Outcome{Seq: event.Seq, Err: errSilence})
			return
		}
		s.tell(publisher.Outcome{Seq: event.Seq, Stored: sequence})
	})
	return nil
}

func (s *stage) Collect(to []publisher.Outcome) (outcomes []publisher.Outcome, trouble *stream.Error) {
	s.locked(func() {
		outcomes, trouble = append(to, s.outcomes...), s.trouble
		s.outcomes, s.trouble = nil, nil
	})
	return outcomes, trouble
}

// stagePublisher is the stage as a publisher: the outbox's Begin is another.
type stagePublisher struct{ *stage }

func (s stagePublisher) Begin(ctx context.Context, _ string, _ int64, first bool) (_ Session, f history.Fence, err error) {
	if err := s.pass(ctx, "Fence"); err != nil {
		return nil, history.Fence{}, stream.Classify(err)
	}
	s.locked(func() {
		if first {
			f = history.Fence{Sequence: uint64(len(s.messages)), Created: birth}
			return
		}
		former := uint64(0)
		for i, seq := range s.messages {
			if seq == 0 {
				former = uint64(i + 1)
			}
		}
		f = history.Fence{Sequence: s.append(0), Created: birth, First: 1, Former: former}
	})
	return stageSession{s.stage, f}, f, nil
}

// stageSession is what is published to the stage, and read back from it, after a fence.
type stageSession struct {
	*stage

	fence history.Fence
}

func (s stageSession) Scan(ctx context.Context, above uint64, visit func(history.Found) error) error {
	if err := s.pass(ctx, "Scan"); err != nil {
		return stream.Classify(err)
	}
	s.mu.Lock()
	messages := slices.Clone(s.messages)
	s.mu.Unlock()
	for i := above; i+1 < s.fence.Sequence; i++ {
		if seq := messages[i]; seq > 0 {
			if err := visit(history.Found{Event: true, Seq: seq, ID: idOf(seq), Stored: i + 1}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *stage) Find(ctx context.Context, sequence uint64) (history.Found, error) {
	if err := s.pass(ctx, "Find"); err != nil {
		return history.Found{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	seq := s.messages[sequence-1]
	return history.Found{Event: true, Seq: seq, ID: idOf(seq), Stored: sequence}, nil
}

func (s *stage) Verify(ctx context.Context, _ history.State, _ uint64) (history.State, error) {
	if err := s.pass(ctx, "Verify"); err != nil {
		return history.State{}, stream.Classify(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.lookErr
	s.lookErr = nil
	return history.State{Created: birth, Last: uint64(len(s.messages))}, err
}

// The elector.

func (s *stage) Run(ctx context.Context, lead func(ctx context.Context, lease *election.Lease) error) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		idle := s.idle
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(idle):
		}
		leading, end := context.WithCancelCause(ctx)
		s.valid.Store(true)
		s.locked(func() {
			s.leading, s.endTerm = true, end
			s.elected++
		})
		lease := election.NewLease(func() (time.Time, bool) { return time.Now().Add(time.Second), s.valid.Load() })
		err := lead(leading, lease)
		lost := errors.Is(context.Cause(leading), election.ErrLeaseLost)
		end(nil)
		s.locked(func() { s.leading = false })
		select {
		case s.returned <- struct{}{}:
		default: // A relay that stops may be elected many times before it is told so.
		}
		if err != nil && !lost {
			if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				return nil
			}
			return err
		}
	}
	return nil
}

// play runs a relay through all that it may wait for, and stops it in the end, unless meanwhile does so before. It returns
// what Run did.
func (s *stage) play(t *testing.T, meanwhile func(stop context.CancelFunc)) error {
	t.Helper()
	relay, err := Assemble(s.parts(), Options{ShutdownTimeout: 400 * time.Millisecond, PollInterval: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	script, quit := context.WithCancel(ctx)
	var playing sync.WaitGroup
	playing.Go(func() { s.script(script) })
	playing.Go(func() {
		meanwhile(stop)
		<-script.Done()
		stop()
	})
	time.AfterFunc(time.Minute, quit)
	err = <-ended
	quit()
	playing.Wait()
	return err
}

// script is what happens to the relay: it stands by for some seconds, publishes, has an acknowledgement lost and its
// connection broken for some seconds, publishes a row that is stored already, and is idle.
func (s *stage) script(ctx context.Context) {
	at := func(d time.Duration, do func()) {
		sleep(ctx, nil, d)
		if ctx.Err() == nil {
			s.locked(do)
		}
	}
	s.insert(1, 2)
	at(10*time.Second, func() { s.rows[3] = true; s.loseAck = true })
	at(0, func() {
		s.openErr, s.trouble = errors.New("no servers available"), errCut
		s.told()
	})
	at(6*time.Second, func() { s.openErr = nil })
	at(4*time.Second, func() {
		s.messages = append(s.messages, 4) // A stray.
		s.rows[4], s.rows[5] = true, true
	})
}

// waitsOf returns the names of the methods of an interface that take a context.
func waitsOf[T any]() (names []string) {
	typ := reflect.TypeFor[T]()
	for method := range typ.Methods() {
		for in := range method.Type.Ins() {
			if in == reflect.TypeFor[context.Context]() {
				names = append(names, method.Name)
			}
		}
	}
	return names
}

// Wherever a relay waits, and however long that would last, it ends its term when its lease ends, and itself when it is
// stopped, within a second. All waits of a run are found by running it.
func TestEveryWaitEnds(t *testing.T) {
	t.Parallel()
	var waits []string
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		if err := s.play(t, func(context.CancelFunc) {}); err != nil {
			t.Fatal(err)
		}
		if len(s.rows) > 0 || s.elected != 1 {
			t.Errorf("in the end %v are left, after %d elections", s.rows, s.elected)
		}
		if !isHandOver(s.checkpoint) {
			t.Errorf("it has not handed over: the checkpoint is %+v", s.checkpoint)
		}
		waits = s.waits
	})
	// The publisher's Begin passes as Fence.
	for _, name := range slices.Concat(waitsOf[Store](), waitsOf[Term](), waitsOf[Publisher](), waitsOf[Session](), []string{"Fence"}) {
		if name == "Check" || name == "Close" {
			continue // One takes the place of Migrate, the other is the end of all, and has a time of its own.
		}
		if !slices.ContainsFunc(waits, func(wait string) bool { return strings.HasPrefix(wait, name+" ") }) {
			t.Errorf("nobody waited for %s: this test shows nothing about it", name)
		}
	}
	t.Logf("%d waits", len(waits))
	for _, wait := range waits {
		t.Run(wait+", stopped", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { stopDuring(t, wait) }) })
		if wait == "Migrate 1" {
			continue // There is no lease yet.
		}
		t.Run(wait+", lease lost", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { endTermDuring(t, wait) }) })
	}
}

// within waits for a signal for a second.
func within(t *testing.T, what string, signal <-chan struct{}) {
	t.Helper()
	select {
	case <-signal:
	case <-time.After(time.Second):
		t.Errorf("%s: not within a second", what)
	}
}

func stopDuring(t *testing.T, wait string) {
	t.Helper()
	s := newStage()
	s.endless = wait
	var asked time.Time
	defer func() {
		if !slices.Contains(s.waits, wait) {
			t.Error("nobody waited for it")
		}
	}()
	err := s.play(t, func(stop context.CancelFunc) {
		select {
		case <-s.reached:
			asked = time.Now()
			stop()
		case <-time.After(time.Minute): // It comes after the stop.
			asked = time.Now()
		}
	})
	if err != nil {
		t.Error(err)
	}
	if took := time.Since(asked); took > time.Second {
		t.Errorf("it stopped after %v", took)
	}
}

func endTermDuring(t *testing.T, wait string) {
	t.Helper()
	s := newStage()
	s.endless = wait
	err := s.play(t, func(context.CancelFunc) {
		select {
		case <-s.reached:
		case <-time.After(59 * time.Second):
			return // It comes after the stop.
		}
		s.mu.Lock()
		inTerm, end := s.inTerm, s.endTerm
		s.mu.Unlock()
		if !inTerm {
			return
		}
		s.valid.Store(false)
		end(election.ErrLeaseLost)
		within(t, "it campaigns again", s.returned)
	})
	if err != nil {
		t.Error(err)
	}
	if len(s.rows) > 0 {
		t.Errorf("in the end %v are left", slices.Sorted(maps.Keys(s.rows)))
	}
}
