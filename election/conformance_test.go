package election_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/election"
)

// elector is what the relay takes.
type elector interface {
	Run(ctx context.Context, lead func(ctx context.Context, lease *election.Lease) error) error
}

// contender is an elector under test.
type contender struct {
	elector

	// waits reports whether it stands by and would be told of a resignation; kill takes its leadership away from
	// outside, without a word to it. Both are nil for an elector that has no rivals.
	waits func() bool
	kill  func()
}

// conform verifies what every elector promises.
func conform(t *testing.T, newContender func(t *testing.T) contender) {
	t.Helper()
	t.Run("a stop while leading ends Run without an error", func(t *testing.T) {
		t.Parallel()
		c := campaign(t, newContender(t))
		term := c.elected(t)
		if !term.lease.Valid() {
			t.Error("elected without a valid lease")
		}
		c.stop()
		await(t, "end of the leader's context", term.ctx.Done())
		if err := await(t, "end of Run", c.done); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	})
	t.Run("Run waits for the leader", func(t *testing.T) {
		t.Parallel()
		c := campaign(t, newContender(t))
		term := c.elected(t)
		c.linger.Store(true)
		c.stop()
		await(t, "end of the leader's context", term.ctx.Done())
		select {
		case err := <-c.done:
			t.Errorf("Run returned %v before the leader had", err)
		case <-time.After(20 * time.Millisecond):
		}
		term.leave(nil)
		if err := await(t, "end of Run", c.done); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	})
	t.Run("the leader's error ends Run", func(t *testing.T) {
		t.Parallel()
		c := campaign(t, newContender(t))
		wrong := errors.New("wrong")
		c.elected(t).leave(wrong)
		if err := await(t, "end of Run", c.done); !errors.Is(err, wrong) {
			t.Errorf("Run returned %v, want %v", err, wrong)
		}
	})
	t.Run("a leader who returns is elected again", func(t *testing.T) {
		t.Parallel()
		c := campaign(t, newContender(t))
		for range 3 {
			c.elected(t).leave(nil)
		}
		if !c.elected(t).lease.Valid() {
			t.Error("elected again without a valid lease")
		}
	})
	t.Run("nobody is elected whose context has ended", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := newContender(t).Run(ctx, func(context.Context, *election.Lease) error {
			t.Error("elected")
			return nil
		})
		if err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	})
}

// conformAmongRivals verifies what electors promise of which only one may lead. Those that newContender returns for
// one place compete with each other.
func conformAmongRivals(t *testing.T, newPlace func(t *testing.T) (newContender func(t *testing.T) contender)) {
	t.Helper()
	conform(t, func(t *testing.T) contender { t.Helper(); return newPlace(t)(t) })

	t.Run("one leads at a time", func(t *testing.T) {
		t.Parallel()
		newContender := newPlace(t)
		watch := &watch{}
		var all []*candidate
		for range 3 {
			all = append(all, watch.campaign(t, newContender(t)))
		}
		led := make(map[*candidate]int)
		for range 30 {
			leader, term := electedOf(t, all)
			led[leader]++
			term.leave(nil)
		}
		watch.verify(t)
		t.Logf("%d of %d have led", len(led), len(all))
	})

	t.Run("a stopped leader is replaced at once", func(t *testing.T) {
		t.Parallel()
		newContender := newPlace(t)
		watch := &watch{}
		leader := watch.campaign(t, newContender(t))
		leader.elected(t)
		var took []time.Duration
		for range 3 {
			next := watch.campaign(t, newContender(t))
			eventually(t, "the other stands by", next.waits)
			start := time.Now()
			leader.stop()
			next.elected(t)
			took = append(took, time.Since(start))
			leader = next
		}
		watch.verify(t)
		t.Logf("took over within %v", took)
		// The quickest, since this machine may have been busy with others.
		if got, want := slices.Min(took), 300*time.Millisecond; got > want {
			t.Errorf("took over within %v, want %v", took, want)
		}
	})

	t.Run("a leader who lost it without knowing is replaced soon", func(t *testing.T) {
		t.Parallel()
		newContender := newPlace(t)
		watch := &watch{}
		leader := watch.campaign(t, newContender(t))
		term := leader.elected(t)
		other := watch.campaign(t, newContender(t))
		all := []*candidate{leader, other}
		var took, overlap []time.Duration
		for range 3 {
			eventually(t, "the other stands by", other.waits)
			start := time.Now()
			leader.kill()
			next, successor := electedOf(t, all) // It may be the same again, if it notices in time.
			took = append(took, time.Since(start))
			elected := time.Now()
			await(t, "end of the old term", term.ctx.Done())
			overlap = append(overlap, time.Since(elected))
			if cause := context.Cause(term.ctx); !errors.Is(cause, election.ErrLeaseLost) {
				t.Errorf("the old term's context ended for %v, want %v", cause, election.ErrLeaseLost)
			}
			if !successor.lease.Valid() {
				t.Error("the new leader's lease is not valid")
			}
			if next != leader {
				leader, other = other, leader
			}
			term = successor
		}
		t.Logf("took over within %v; the old leader noticed %v later", took, overlap)
		if got, want := slices.Min(took), 1500*time.Millisecond; got > want {
			t.Errorf("took over within %v, want %v", took, want)
		}
		if got, want := slices.Min(overlap), 1500*time.Millisecond; got > want {
			t.Errorf("the old leader noticed %v later, want %v", overlap, want)
		}
	})

	t.Run("a stop while standing by ends Run without an error", func(t *testing.T) {
		t.Parallel()
		newContender := newPlace(t)
		campaign(t, newContender(t)).elected(t)
		c := campaign(t, newContender(t))
		eventually(t, "the other stands by", c.waits)
		c.stop()
		if err := await(t, "end of Run", c.done); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
		if n := len(c.terms); n > 0 {
			t.Errorf("it was elected %d times while another led", n)
		}
	})

	t.Run("a leader's error makes room for the next", func(t *testing.T) {
		t.Parallel()
		newContender := newPlace(t)
		leader := campaign(t, newContender(t))
		term := leader.elected(t)
		next := campaign(t, newContender(t))
		eventually(t, "the other stands by", next.waits)
		term.leave(errors.New("wrong"))
		next.elected(t)
	})
}

// candidate is a contender whose Run is under way.
type candidate struct {
	contender

	watch  *watch
	linger atomic.Bool // Leaders stay when their context ends, until leave.
	stop   context.CancelFunc
	done   chan error // What Run returned.
	terms  chan *term // As they begin.
}

// term is one term, which lasts until leave or the end of its context.
type term struct {
	ctx   context.Context //nolint:containedctx // It is what the test looks at.
	lease *election.Lease
	ended chan error
}

func (t *term) leave(err error) { t.ended <- err }

// campaign starts Run, which is stopped when the test ends.
func campaign(t *testing.T, c contender) *candidate {
	t.Helper()
	return (&watch{}).campaign(t, c)
}

// lead is what the candidate's Run calls.
func (c *candidate) lead(ctx context.Context, lease *election.Lease) error {
	term := &term{ctx: ctx, lease: lease, ended: make(chan error, 1)}
	c.watch.enter(term)
	defer c.watch.leave(term)
	c.terms <- term
	select {
	case err := <-term.ended:
		return err
	case <-ctx.Done():
	}
	if c.linger.Load() {
		return <-term.ended
	}
	return nil
}

// elected waits for the next term.
func (c *candidate) elected(t *testing.T) *term {
	t.Helper()
	return await(t, "election", c.terms)
}

// electedOf waits until one of the candidates is elected.
func electedOf(t *testing.T, candidates []*candidate) (*candidate, *term) {
	t.Helper()
	var leader *candidate
	var elected *term
	eventually(t, "one is elected", func() bool {
		for _, c := range candidates {
			select {
			case elected = <-c.terms:
				leader = c
				return true
			default:
			}
		}
		return false
	})
	return leader, elected
}

// watch sees to it that of several candidates one at a time holds a valid lease.
type watch struct {
	mu     sync.Mutex // Protects what follows.
	terms  []*term    // That have not ended.
	faults int
}

func (w *watch) campaign(t *testing.T, contender contender) *candidate {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &candidate{contender: contender, watch: w, stop: cancel, done: make(chan error, 1), terms: make(chan *term, 100)}
	var running sync.WaitGroup
	running.Go(func() { c.done <- c.Run(ctx, c.lead) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return c
}

func (w *watch) enter(begun *term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range w.terms {
		if other.lease.Valid() && begun.lease.Valid() {
			w.faults++
		}
	}
	w.terms = append(w.terms, begun)
}

func (w *watch) leave(ended *term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.terms = slices.DeleteFunc(w.terms, func(t *term) bool { return t == ended })
}

// verify fails the test if two have led at a time.
func (w *watch) verify(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.faults > 0 {
		t.Errorf("%d times somebody was elected while another had a valid lease", w.faults)
	}
}
