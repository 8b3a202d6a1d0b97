package election

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
)

// fakeSession answers as the test wants: a use never gets a connection, and its outcome is that of answer.
type fakeSession struct {
	answer func(ctx context.Context) error

	mu         sync.Mutex // Protects what follows.
	start      time.Time
	generation uint64
	uses       int
	closed     int
}

// fresh is a session that was just used, and whose server answers at once.
func fresh() *fakeSession {
	return &fakeSession{answer: func(context.Context) error { return nil }, start: time.Now(), generation: 1}
}

func (s *fakeSession) Do(ctx context.Context, _ func(ctx context.Context, conn *pgx.Conn) error) error {
	start := time.Now()
	s.mu.Lock()
	s.uses++
	s.mu.Unlock()
	if err := s.answer(ctx); err != nil {
		return err
	}
	s.used(start)
	return nil
}

// used is a round trip of somebody else.
func (s *fakeSession) used(start time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start = start
}

// reopened is the loss of the connection, noticed by somebody else who has opened another.
func (s *fakeSession) reopened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start = time.Now()
	s.generation++
}

func (s *fakeSession) LastRoundTrip() (start time.Time, generation uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.start, s.generation
}

func (s *fakeSession) Close(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed++
	return nil
}

func (s *fakeSession) counts() (uses, closed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uses, s.closed
}

// silent is the answer of a server that is out of reach.
func silent(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// leadership is a term under way.
type leadership struct {
	*testing.T

	ctx   context.Context //nolint:containedctx // It is what the test looks at.
	lease *Lease
	leave chan error // What lead returns.
	held  chan error // What serve returned.
}

// lead begins a term on the session.
func lead(t *testing.T, session *fakeSession) *leadership {
	t.Helper()
	l := &leadership{T: t, leave: make(chan error, 1), held: make(chan error, 1)}
	elector := NewAdvisoryLock(session, AdvisoryLockOptions{})
	began := make(chan struct{})
	go func() {
		_, generation := session.LastRoundTrip()
		l.held <- elector.serve(t.Context(), &lock{elector, generation}, func(ctx context.Context, lease *Lease) error {
			l.ctx, l.lease = ctx, lease
			close(began)
			return <-l.leave
		})
	}()
	<-began
	return l
}

// expect verifies whether the lease is valid and the leader's context lives.
func (l *leadership) expect(when string, valid, alive bool) {
	l.Helper()
	synctest.Wait()
	if got := l.lease.Valid(); got != valid {
		l.Errorf("%s: the lease is valid: %v, want %v", when, got, valid)
	}
	cause := context.Cause(l.ctx)
	if got := cause == nil; got != alive {
		l.Errorf("%s: the context has ended for %v, want alive: %v", when, cause, alive)
	}
	if cause != nil && !errors.Is(cause, ErrLeaseLost) {
		l.Errorf("%s: the context has ended for %v, want %v", when, cause, ErrLeaseLost)
	}
}

// end lets lead return err, and verifies what serve does.
func (l *leadership) end(err, want error) {
	l.Helper()
	l.leave <- err
	if got := <-l.held; !errors.Is(got, want) {
		l.Errorf("serve returned %v, want %v", got, want)
	}
}

func TestLeaseIsRenewedInSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		l := lead(t, session)
		for range 60 {
			time.Sleep(time.Second)
			l.expect("while the server answers", true, true)
		}
		uses, _ := session.counts()
		if want := int(time.Minute / renewAfter); uses != want {
			t.Errorf("asked the server %d times in a minute, want %d", uses, want)
		}
		l.end(nil, nil)
		if after, closed := session.counts(); after != uses+1 || closed != 0 {
			t.Errorf("to resign it used the session %d times and closed it %d times, want 1 and 0", after-uses, closed)
		}
	})
}

func TestLeadersWorkRenewsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		l := lead(t, session)
		for range 60 {
			time.Sleep(renewAfter - time.Millisecond)
			session.used(time.Now())
			l.expect("while the leader works", true, true)
		}
		if uses, _ := session.counts(); uses != 0 {
			t.Errorf("asked the server %d times although it was heard of all the time", uses)
		}
		l.end(nil, nil)
	})
}

// The deadline counts from when the last answered question was asked.
func TestLeaseEndsWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		session.answer = silent
		l := lead(t, session)
		time.Sleep(time.Second)
		session.used(time.Now().Add(-400 * time.Millisecond)) // The leader's own, which took a while.
		time.Sleep(LeaseDuration - 400*time.Millisecond - time.Nanosecond)
		if !l.lease.Valid() {
			t.Error("a nanosecond before the deadline the lease is not valid")
		}
		time.Sleep(time.Nanosecond)
		if l.lease.Valid() {
			t.Error("at the deadline the lease is valid")
		}
		l.end(nil, nil)
	})
}

func TestTermEndsWhenTheServerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		session.answer = func(context.Context) error { return errors.New("terminated by the administrator") }
		l := lead(t, session)
		time.Sleep(renewAfter - time.Nanosecond)
		l.expect("before the server is asked", true, true)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if cause := context.Cause(l.ctx); !errors.Is(cause, ErrLeaseLost) {
			t.Errorf("after it was asked the context has ended for %v, want %v", cause, ErrLeaseLost)
		}
		// What lead failed to do because of that is not an error of Run.
		l.end(errors.New("cannot go on"), nil)
		if _, closed := session.counts(); closed == 0 {
			t.Error("the session was left open, and with it maybe the lock")
		}
	})
}

func TestTermEndsWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		l := lead(t, session)
		time.Sleep(time.Second)
		session.reopened()
		if l.lease.Valid() {
			t.Error("the lease is valid on another connection than that with the lock")
		}
		time.Sleep(renewAfter)
		l.expect("soon after", false, false)
		l.end(nil, nil)
		if _, closed := session.counts(); closed == 0 {
			t.Error("the session was left open")
		}
	})
}

func TestLeadersErrorIsReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lead(t, fresh())
		wrong := errors.New("wrong")
		l.end(wrong, wrong)
		if l.ctx.Err() == nil {
			t.Error("the context goes on after the term")
		}
	})
}

func TestResignationThatFailsClosesTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		l := lead(t, session)
		session.answer = silent
		start := time.Now()
		l.end(nil, nil)
		if took := time.Since(start); took != unlockTimeout {
			t.Errorf("took %v, want %v", took, unlockTimeout)
		}
		if _, closed := session.counts(); closed != 1 {
			t.Errorf("the session was closed %d times, want once", closed)
		}
	})
}

func TestStandbyIsBelievedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		elector := NewAdvisoryLock(fresh(), AdvisoryLockOptions{Retry: time.Second})
		if elector.Standby() {
			t.Error("stands by before anything is known")
		}
		now := time.Now()
		elector.standingBy.Store(&now)
		time.Sleep(time.Second + LeaseDuration - time.Nanosecond)
		if !elector.Standby() {
			t.Error("does not stand by although another has just been seen to lead")
		}
		time.Sleep(time.Nanosecond)
		if elector.Standby() {
			t.Error("stands by although nobody has been seen to lead for so long")
		}
	})
}

// Without a database everybody campaigns, at a bounded rate.
func TestCampaignBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		session.answer = func(context.Context) error { return errors.New("connection refused") }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		elector := NewAdvisoryLock(session, AdvisoryLockOptions{})
		err := elector.Run(ctx, func(context.Context, *Lease) error {
			t.Error("elected")
			return nil
		})
		if err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
		// After 0, 0.1, 0.3, 0.7, 1.5, and then every second.
		if uses, _ := session.counts(); uses != 63 {
			t.Errorf("tried %d times in a minute, want 63", uses)
		}
		if elector.Standby() {
			t.Error("stands by although nobody is known to lead")
		}
	})
}

func TestFold(t *testing.T) {
	for key, want := range map[int64]int32{
		0:          0,
		7:          7,
		-7:         -7,
		1<<31 - 1:  1<<31 - 1,
		-1 << 31:   -1 << 31,
		1 << 31:    -1 << 31,
		1 << 32:    1,
		1<<32 | 1:  0,
		1<<40 | 5:  1<<8 ^ 5,
		-1 << 63:   -1 << 31,
		-1<<31 - 1: -1 << 31,
	} {
		if got := fold(key); got != want {
			t.Errorf("fold(%d): got %d, want %d", key, got, want)
		}
	}
}

// The context ends with the lease, whoever has the session meanwhile.
func TestContextEndsWithTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		session.answer = silent
		l := lead(t, session)
		time.Sleep(LeaseDuration - time.Nanosecond)
		l.expect("a nanosecond before the deadline", true, true)
		time.Sleep(time.Nanosecond)
		l.expect("at the deadline", false, false)
		l.end(nil, nil)
	})
}

// While the leader is inside a long statement nobody gets the session, but its server may be known to live nevertheless.
func TestLeaseOutlastsALongStatement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := fresh()
		session.answer = func(ctx context.Context) error { // It is somebody else's turn all the time.
			<-ctx.Done()
			return context.Cause(ctx)
		}
		l := lead(t, session)
		// Somebody looks every three seconds: now and then after a renewal has begun to wait for its turn.
		for range 10 {
			time.Sleep(3 * time.Second)
			session.used(time.Now())
			l.expect("while the server is known to live", true, true)
		}
		time.Sleep(LeaseDuration)
		l.expect("when nothing has been heard of it for as long as the lease", false, false)
		l.end(nil, nil)
	})
}
