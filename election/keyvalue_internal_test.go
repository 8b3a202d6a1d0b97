package election

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fakeRecord is a record without a server: a request takes effect at once, unless the test wants it otherwise.
type fakeRecord struct {
	mu sync.Mutex // Protects what follows.

	// before and after, if set, run before a request takes effect and after it did. The error is the answer.
	before, after func(ctx context.Context, what string) error

	states   []observed // All that there were. The last one counts.
	outdated int        // How many of them the next reads do not know of.
	requests map[string]int
	watches  []chan jetstream.KeyValueEntry // The next ones.
}

// request has a request take effect, and returns the answer.
func (s *fakeRecord) request(ctx context.Context, what string, effect func() error) error {
	s.mu.Lock()
	before, after := s.before, s.after
	s.mu.Unlock()
	if before != nil {
		if err := before(ctx, what); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if s.requests == nil {
		s.requests = make(map[string]int)
	}
	s.requests[what]++
	err := effect()
	s.mu.Unlock()
	if after != nil {
		if err := after(ctx, what); err != nil {
			return err
		}
	}
	return err
}

// meddle sets what happens to the requests from now on.
func (s *fakeRecord) meddle(before, after func(ctx context.Context, what string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

func (s *fakeRecord) state(outdated int) observed {
	if i := len(s.states) - 1 - outdated; i >= 0 {
		return s.states[i]
	}
	return observed{}
}

func (s *fakeRecord) append(holder leaseValue, revision uint64) (uint64, error) {
	if s.state(0).revision != revision {
		return 0, errMoved
	}
	s.states = append(s.states, observed{revision + 1, holder})
	return revision + 1, nil
}

func (s *fakeRecord) read(ctx context.Context) (seen observed, err error) {
	err = s.request(ctx, "read", func() error {
		seen = s.state(s.outdated)
		return nil
	})
	return seen, err
}

func (s *fakeRecord) write(ctx context.Context, value leaseValue, revision uint64) (written uint64, err error) {
	err = s.request(ctx, "write", func() (err error) {
		written, err = s.append(value, revision)
		return err
	})
	return written, err
}

func (s *fakeRecord) delete(ctx context.Context, revision uint64) error {
	return s.request(ctx, "delete", func() error {
		_, err := s.append(leaseValue{}, revision)
		return err
	})
}

func (s *fakeRecord) watch(context.Context) (<-chan jetstream.KeyValueEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.watches) == 0 {
		return nil, errors.New("it is to be polled")
	}
	next := s.watches[0]
	s.watches = s.watches[1:]
	return next, nil
}

// put is what somebody else does to the entry, whatever its revision.
func (s *fakeRecord) put(holder leaseValue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states = append(s.states, observed{s.state(0).revision + 1, holder})
}

// now returns the entry, and how often it was requested to do what.
func (s *fakeRecord) now(what string) (observed, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state(0), s.requests[what]
}

// candidateFor returns a candidate that is about to campaign for a record.
func candidateFor(t *testing.T, s record) *candidate {
	t.Helper()
	k, err := NewKeyValue(func(context.Context) (*nats.Conn, error) { return nil, errors.New("there is no server") }, KeyValueOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return k.newCandidate(func(context.Context) (record, error) { return s, nil })
}

// rivalsValue is the value that a rival writes.
func rivalsValue(lease time.Duration) leaseValue {
	return leaseValue{Leader: "rival", Candidate: "rival", Beat: 1, Lease: lease.Milliseconds()}
}

// leadOn begins a term on a record that nobody holds.
func leadOn(t *testing.T, s *fakeRecord) *leadership {
	t.Helper()
	c := candidateFor(t, s)
	won, err := c.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := &leadership{T: t, leave: make(chan error, 1), held: make(chan error, 1)}
	began := make(chan struct{})
	go func() {
		l.held <- c.serve(t.Context(), won, func(ctx context.Context, lease *Lease) error {
			l.ctx, l.lease = ctx, lease
			close(began)
			return <-l.leave
		})
	}()
	<-began
	return l
}

func TestEntryIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeRecord{}
		l := leadOn(t, s)
		for range 60 {
			time.Sleep(time.Second)
			l.expect("while the server answers", true, true)
		}
		if _, writes := s.now("write"); writes != 1+54 {
			t.Errorf("wrote %d times in a minute, want at first and every 1.1 s", writes)
		}
		l.end(nil, nil)
		if state, deletes := s.now("delete"); deletes != 1 || state.held() {
			t.Errorf("after %d resignations the entry is %v, want it deleted by one", deletes, state)
		}
	})
}

// The deadline counts from when the last update began that was answered, even if later ones were stored.
func TestEntryEndsWithoutAnAnswer(t *testing.T) {
	timeout := func(ctx context.Context, _ string) error {
		ctx, cancel := context.WithTimeout(ctx, LeaseDuration/4)
		defer cancel()
		return silent(ctx)
	}
	for name, lose := range map[string]func(s *fakeRecord){
		"request lost": func(s *fakeRecord) { s.meddle(timeout, nil) },
		"answer lost":  func(s *fakeRecord) { s.meddle(nil, timeout) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &fakeRecord{}
				s.meddle(nil, func(context.Context, string) error {
					time.Sleep(400 * time.Millisecond)
					return nil
				})
				l := leadOn(t, s) // It took 0.4 s to ask, and as long to write.
				lose(s)
				time.Sleep(LeaseDuration - 400*time.Millisecond - time.Nanosecond)
				l.expect("a nanosecond before the deadline", true, true)
				time.Sleep(time.Nanosecond)
				l.expect("at the deadline", false, false)
				start := time.Now()
				l.end(nil, nil)
				if took := time.Since(start); took != 0 {
					t.Errorf("took %v to give back what was lost", took)
				}
			})
		})
	}
}

func TestEntryThatWasTakenIsLostAtOnce(t *testing.T) {
	for name, holder := range map[string]leaseValue{"taken": rivalsValue(time.Second), "deleted": {}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &fakeRecord{}
				l := leadOn(t, s)
				s.put(holder)
				time.Sleep(1100*time.Millisecond - time.Nanosecond)
				l.expect("before the server is asked", true, true)
				time.Sleep(time.Nanosecond)
				l.expect("when it is asked", false, false)
				// What lead failed to do because of that is not an error of Run.
				l.end(errors.New("cannot go on"), nil)
				if state, deletes := s.now("delete"); deletes != 0 || state.value != holder {
					t.Errorf("after %d resignations the entry is %v, want it left alone", deletes, state)
				}
			})
		})
	}
}

// lossy loses the answer to each request of that kind while there are some to be lost.
type lossy struct {
	what string
	n    int
}

func (l *lossy) lose(_ context.Context, what string) error {
	if what != l.what || l.n <= 0 {
		return nil
	}
	l.n--
	return errors.New("no answer")
}

func TestUnansweredUpdate(t *testing.T) {
	for name, test := range map[string]struct {
		unanswered int
		then       func(s *fakeRecord)
		lost       bool
	}{
		"our own":          {1, func(*fakeRecord) {}, false},
		"two of our own":   {2, func(*fakeRecord) {}, false},
		"read late":        {1, func(s *fakeRecord) { s.outdated = 1 }, false},
		"then taken":       {1, func(s *fakeRecord) { s.put(rivalsValue(time.Second)) }, true},
		"then deleted":     {1, func(s *fakeRecord) { s.put(leaseValue{}) }, true},
		"none of our own":  {0, func(s *fakeRecord) { s.put(rivalsValue(time.Second)) }, true},
		"read late, taken": {1, func(s *fakeRecord) { s.put(rivalsValue(time.Second)); s.outdated = 1 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &fakeRecord{}
				l := leadOn(t, s)
				loss := &lossy{"write", test.unanswered}
				s.meddle(nil, func(ctx context.Context, what string) error {
					err := loss.lose(ctx, what)
					if what == "write" && loss.n == 0 {
						loss.n = -1
						test.then(s)
					}
					return err
				})
				time.Sleep(1100 * time.Millisecond)
				synctest.Wait()
				time.Sleep(200 * time.Millisecond)
				s.mu.Lock()
				s.outdated = 0
				s.mu.Unlock()
				time.Sleep(time.Second + 200*time.Millisecond)
				l.expect("after two renewals", !test.lost, !test.lost)
				l.end(nil, nil)
				if state, _ := s.now("delete"); state.held() != (state.value == rivalsValue(time.Second)) {
					t.Errorf("the entry is %v after the resignation", state)
				}
			})
		})
	}
}

// A replicated bucket may refuse an update since one before is still in process, and that may be our own.
func TestUpdateInProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeRecord{}
		l := leadOn(t, s)
		refusals := 3
		s.meddle(func(context.Context, string) error {
			if refusals--; refusals >= 0 {
				return errInProcess
			}
			return nil
		}, nil)
		time.Sleep(2 * time.Second)
		l.expect("after some refusals", true, true)
		if _, writes := s.now("write"); writes != 2 {
			t.Errorf("wrote %d times, want twice", writes)
		}
		l.end(nil, nil)
	})
}

func TestResignation(t *testing.T) {
	for name, test := range map[string]struct {
		unanswered string // Which request loses its answer,
		n          int    // how often.
		want       time.Duration
	}{
		"answered":                   {"delete", 0, 0},
		"unanswered":                 {"delete", 1, writeAgain},
		"after an unanswered update": {"write", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &fakeRecord{}
				l := leadOn(t, s)
				s.meddle(nil, (&lossy{test.unanswered, test.n}).lose)
				time.Sleep(1100 * time.Millisecond)
				synctest.Wait()
				start := time.Now()
				l.end(nil, nil)
				if took := time.Since(start); took != test.want {
					t.Errorf("took %v, want %v", took, test.want)
				}
				if state, _ := s.now(""); state.held() {
					t.Errorf("the entry is %v, want it deleted", state)
				}
			})
		})
	}
	t.Run("out of reach", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &fakeRecord{}
			l := leadOn(t, s)
			s.meddle(func(ctx context.Context, _ string) error { return silent(ctx) }, nil)
			start := time.Now()
			l.end(nil, nil)
			if took := time.Since(start); took != resignTimeout {
				t.Errorf("took %v, want %v", took, resignTimeout)
			}
		})
	})
}

// timeToElection is how long a candidate waits for a record.
func timeToElection(t *testing.T, s *fakeRecord, c *candidate) time.Duration {
	t.Helper()
	start := time.Now()
	won, err := c.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	if state, _ := s.now(""); state.value.Candidate != c.id {
		t.Errorf("elected, but the entry is %v", state)
	}
	if c.Standby() {
		won.resign(t.Context())
	}
	return took
}

func TestVacancy(t *testing.T) {
	patience := rivalsValue(LeaseDuration).patience()
	for name, test := range map[string]struct {
		states []observed // Before.
		do     func(s *fakeRecord)
		want   time.Duration
	}{
		"never held": {nil, nil, 0},
		"resigned":   {[]observed{{7, rivalsValue(LeaseDuration)}, {8, leaseValue{}}}, nil, 0},
		"held and never renewed, as by a leader that was killed": {
			[]observed{{7, rivalsValue(LeaseDuration)}}, nil, patience,
		},
		"held for another lease": {
			[]observed{{7, rivalsValue(30 * time.Second)}}, nil, 36 * time.Second,
		},
		"renewed": {
			[]observed{{7, rivalsValue(LeaseDuration)}},
			func(s *fakeRecord) {
				time.Sleep(4 * time.Second)
				renewed := rivalsValue(LeaseDuration)
				renewed.Beat++
				s.put(renewed)
			},
			4*time.Second + DefaultRetry/2 + patience, // It is polled.
		},
		"resigned meanwhile": {
			[]observed{{7, rivalsValue(LeaseDuration)}},
			func(s *fakeRecord) {
				time.Sleep(2 * time.Second)
				s.put(leaseValue{})
			},
			3 * DefaultRetry,
		},
		"forgotten by the server": {
			[]observed{{7, rivalsValue(LeaseDuration)}},
			func(s *fakeRecord) {
				time.Sleep(time.Second)
				s.mu.Lock()
				defer s.mu.Unlock()
				s.states = nil
			},
			patience,
		},
		"rolled back to a resignation from before": {
			[]observed{{6, leaseValue{}}, {7, rivalsValue(LeaseDuration)}},
			func(s *fakeRecord) {
				time.Sleep(time.Second)
				s.mu.Lock()
				defer s.mu.Unlock()
				s.states = s.states[:1]
			},
			patience,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &fakeRecord{states: test.states}
				if test.do != nil {
					go test.do(s)
				}
				got := timeToElection(t, s, candidateFor(t, s))
				if got < test.want || got > test.want+DefaultRetry/2 {
					t.Errorf("waited %v, want %v", got, test.want)
				}
			})
		})
	}
}

// An entry of our own is left from a term that is over, or from an update that was not answered.
func TestOwnEntryIsTakenBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeRecord{}
		c := candidateFor(t, s)
		s.meddle(nil, (&lossy{"write", 1}).lose)
		if _, err := c.acquire(t.Context()); err == nil {
			t.Fatal("got no error although there was no answer")
		}
		if got := timeToElection(t, s, c); got != 0 {
			t.Errorf("waited %v for itself", got)
		}
	})
}

// deletion is what a watch tells of a resignation.
type deletion struct {
	jetstream.KeyValueEntry

	revision uint64
}

func (d deletion) Revision() uint64              { return d.revision }
func (deletion) Operation() jetstream.KeyValueOp { return jetstream.KeyValueDelete }
func (deletion) Value() []byte                   { return nil }

// A watch tells of a resignation at once, and one that has ended, as when its server goes, is replaced soon.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended, next := make(chan jetstream.KeyValueEntry), make(chan jetstream.KeyValueEntry)
		close(ended)
		s := &fakeRecord{states: []observed{{7, rivalsValue(LeaseDuration)}}, watches: []chan jetstream.KeyValueEntry{ended, next}}
		go func() {
			next <- nil // That was all there is. Heard when the watch is there.
			time.Sleep(time.Second + time.Millisecond)
			s.put(leaseValue{})
			next <- deletion{revision: 8}
		}()
		if got, want := timeToElection(t, s, candidateFor(t, s)), DefaultRetry+time.Second+time.Millisecond; got != want {
			t.Errorf("waited %v, want %v", got, want)
		}
		if _, reads := s.now("read"); reads != 3 {
			t.Errorf("looked %d times, want 3: at first and every %v", reads, DefaultRetry)
		}
	})
}

// Who is told to stop while it is elected gives the entry back.
func TestStopWhileElected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &fakeRecord{}
		s.meddle(nil, func(_ context.Context, what string) error {
			if what == "write" {
				cancel()
			}
			return nil
		})
		c := candidateFor(t, s)
		err := c.run(ctx, c.acquire, func(context.Context, *Lease) error {
			t.Error("elected")
			return nil
		})
		if err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
		if state, _ := s.now(""); state.held() {
			t.Errorf("the entry is %v, want it deleted", state)
		}
	})
}

// A read that is out of date, as that of a replica that lags, leads to no more than an update that is refused.
func TestOutdatedReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeRecord{states: []observed{{7, leaseValue{}}, {8, rivalsValue(LeaseDuration)}}, outdated: 1}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := candidateFor(t, s)
		err := c.run(ctx, c.acquire, func(context.Context, *Lease) error {
			t.Error("elected")
			return nil
		})
		if err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
		if state, writes := s.now("write"); state.revision != 8 || writes > int(time.Minute/DefaultRetry)+1 {
			t.Errorf("after %d attempts the entry is %v, want one every %v and it left alone", writes, state, DefaultRetry)
		}
		if !c.Standby() {
			t.Error("does not stand by although somebody leads")
		}
	})
}

// network is a record behind an unreliable network: requests and answers are late or lost.
type network struct {
	record *fakeRecord

	mu    sync.Mutex // Protects what follows.
	rand  *rand.Rand
	until time.Time // Until then, nothing comes through.
}

// delay returns how long something is on its way, and false if it never arrives.
func (n *network) delay() (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch r := n.rand.IntN(100); {
	case r < 5, time.Now().Before(n.until):
		return 0, false
	case r < 20:
		return time.Duration(n.rand.IntN(8000)) * time.Millisecond, true
	default:
		return time.Duration(n.rand.IntN(50)) * time.Millisecond, true
	}
}

func (n *network) cut(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.until = time.Now().Add(d)
}

// send has a request take effect some time, whether the sender still waits or not.
func (n *network) send(ctx context.Context, request func() error) error {
	ctx, cancel := context.WithTimeout(ctx, LeaseDuration/4)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		there, ok := n.delay()
		if !ok {
			return
		}
		time.Sleep(there)
		err := request()
		if back, ok := n.delay(); ok {
			time.Sleep(back)
			answer <- err
		}
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *network) read(ctx context.Context) (observed, error) {
	n.mu.Lock()
	outdated := max(n.rand.IntN(8)-4, 0) // A replica may lag.
	n.mu.Unlock()
	seen := make(chan observed, 1)
	err := n.send(ctx, func() error {
		n.record.mu.Lock()
		defer n.record.mu.Unlock()
		seen <- n.record.state(outdated)
		return nil
	})
	if err != nil {
		return observed{}, err
	}
	return <-seen, nil
}

func (n *network) write(ctx context.Context, value leaseValue, revision uint64) (uint64, error) {
	err := n.send(ctx, func() error {
		_, err := n.record.write(ctx, value, revision)
		return err
	})
	return revision + 1, err
}

func (n *network) delete(ctx context.Context, revision uint64) error {
	return n.send(ctx, func() error { return n.record.delete(ctx, revision) })
}

func (n *network) watch(ctx context.Context) (<-chan jetstream.KeyValueEntry, error) {
	return n.record.watch(ctx)
}

// Whatever the network does, no two have a valid lease at a time, and somebody has one again and again.
func TestOneLeadsAtATimeOnAnUnreliableNetwork(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var (
					mu     sync.Mutex // Protects what follows.
					leases = make(map[*Lease]int)
					terms  [3]int
				)
				check := func() {
					mu.Lock()
					defer mu.Unlock()
					var valid []int
					for lease, candidate := range leases {
						if lease.Valid() {
							valid = append(valid, candidate)
						}
					}
					if len(valid) > 1 {
						t.Errorf("%v have a valid lease", valid)
					}
				}
				ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
				defer stop()
				s := &fakeRecord{}
				var running sync.WaitGroup
				for i := range terms {
					chance := rand.New(rand.NewPCG(seed, uint64(i)))
					n := &network{record: s, rand: rand.New(rand.NewPCG(seed, uint64(i)+100))}
					c := candidateFor(t, n)
					running.Go(func() {
						err := c.run(ctx, c.acquire, func(ctx context.Context, lease *Lease) error {
							mu.Lock()
							leases[lease] = i
							terms[i]++
							mu.Unlock()
							if chance.IntN(2) == 0 {
								n.cut(time.Duration(chance.IntN(15_000)) * time.Millisecond)
							}
							end := time.Now().Add(time.Duration(chance.IntN(20_000)) * time.Millisecond)
							for ctx.Err() == nil && time.Now().Before(end) {
								check()
								pause(ctx, time.Duration(1+chance.IntN(20))*time.Millisecond)
							}
							mu.Lock()
							defer mu.Unlock()
							delete(leases, lease)
							return nil
						})
						if err != nil {
							t.Errorf("candidate %d: %v", i, err)
						}
					})
				}
				running.Wait()
				if sum := terms[0] + terms[1] + terms[2]; sum < 20 {
					t.Errorf("there were %v terms in ten minutes, want more", terms)
				}
				t.Logf("%v terms", terms)
				time.Sleep(time.Minute) // What is on its way arrives.
			})
		})
	}
}
