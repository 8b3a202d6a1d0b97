package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// Only a relay that could publish campaigns. As long as it does not lead, a scout looks whether it could: Postgres, the broker
// and the stream must answer. It says so through the outbox (Store.Stand), and a leader that cannot publish makes way for a
// relay that says so. A leader without such a standby stays.

const (
	// scoutEvery is how often a relay that could lead looks whether it still could.
	scoutEvery = 2 * time.Second
	// standPatience bounds one look at the outbox.
	standPatience = 4 * time.Second

	// unfitAfter is for how long a leader must have been unable to publish before it makes way for another.
	unfitAfter = 3 * time.Second
	// standBack is for how long it then leaves the election to others.
	standBack = 5 * time.Second
)

// modesty is for how long a relay that made way does not say that it could publish: it was wrong before. It doubles with
// each term in a row in which the relay published nothing. So relays that are all kept from publishing, by a full stream
// for example, do not go on making way for each other.
var modesty = backoff{first: 10 * time.Second, most: 10 * time.Minute} //nolint:gochecknoglobals // Immutable.

// unfitError ends a term of a leader that cannot publish, while another relay says that it could.
type unfitError struct{ reason string }

func (e *unfitError) Error() string {
	return "another relay says that it could publish, and this one cannot: " + e.reason
}

// scout looks whether its relay could lead.
type scout struct {
	*Relay

	standFrom time.Time // Before that the relay does not campaign.
	claimFrom time.Time // Before that it does not say that it could publish.
	futile    int       // How many terms in a row it made way without having published anything.
	looks     int       // How many looks in a row found that it could not lead.
	said      string    // What the log says.

	// working has a token during a look, and during a term, whose publisher and session they share.
	working chan struct{}

	mu        sync.Mutex // Protects what follows.
	resting   bool       // A term wants to begin, or has begun.
	interrupt context.CancelFunc
}

// ready returns nil once the relay could lead, and an error if it never can. It returns nil, too, when ctx has ended.
func (s *scout) ready(ctx context.Context) error {
	for {
		fit, err := s.look(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		wait := time.Until(s.standFrom)
		if fit && wait <= 0 {
			return nil
		}
		if !fit {
			wait = reopen.after(s.looks)
		} else {
			s.status.scouted(false, "it could not publish when it led, and leaves that to others for some seconds")
		}
		sleep(ctx, nil, min(wait, scoutEvery))
	}
}

// watch looks again and again, and calls withdraw once the relay could not lead any more.
func (s *scout) watch(ctx context.Context, withdraw context.CancelCauseFunc) {
	for {
		sleep(ctx, nil, scoutEvery)
		if ctx.Err() != nil {
			return
		}
		select {
		case s.working <- struct{}{}:
		case <-ctx.Done():
			return
		}
		fit, err := s.look(ctx)
		switch {
		case err != nil:
			withdraw(err)
		case !fit && !s.isResting():
			withdraw(errNotFit)
		}
		<-s.working
	}
}

// errNotFit withdraws a candidate. Why it is not fit is in the log and in the status.
var errNotFit = errors.New("not fit to lead")

// rest ends the look under way, and keeps the scout from the publisher and the session until resume.
func (s *scout) rest() {
	s.mu.Lock()
	s.resting = true
	if s.interrupt != nil {
		s.interrupt()
	}
	s.mu.Unlock()
	s.working <- struct{}{}
	s.publisher.Close()
}

func (s *scout) resume() {
	s.mu.Lock()
	s.resting = false
	s.mu.Unlock()
	<-s.working
}

func (s *scout) isResting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resting
}

// look finds out whether the relay could lead now. Its error says that it never can.
func (s *scout) look(ctx context.Context) (fit bool, err error) {
	s.watchdog.turn(time.Now())
	openErr := s.open(ctx)
	if errors.Is(openErr, stream.ErrRefused) {
		return false, openErr
	}
	if s.isResting() {
		return true, nil // Elected meanwhile.
	}
	s.watchdog.turn(time.Now())
	// A use of the session that is broken off closes it, and the lock that was just won may be on it. So this one ends with
	// the relay only.
	standing, cancel := context.WithTimeout(ctx, standPatience)
	defer cancel()
	obstacle, standErr := s.store.Stand(standing, s.publisher.Stream(), openErr == nil && !time.Now().Before(s.claimFrom))
	switch {
	case ctx.Err() != nil:
		return false, nil
	case store.Fatal(standErr):
		return false, standErr
	}
	s.watchdog.turn(time.Now())
	fault := errors.Join(standErr, openErr)
	s.tell(ctx, fault, obstacle)
	return fault == nil, nil
}

// open opens the publisher, or asks it again.
func (s *scout) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	s.mu.Lock()
	if s.resting {
		s.mu.Unlock()
		return nil
	}
	s.interrupt = cancel
	s.mu.Unlock()
	s.publisher.Guard(nil) // It is only asked. What a term sends goes over a connection of its own.
	warnings, err := s.publisher.Open(ctx)
	_, _ = s.publisher.Collect(nil) // That it was away counts only if it still is.
	s.mu.Lock()
	s.interrupt = nil
	s.mu.Unlock()
	if err != nil {
		return err
	}
	for _, warning := range warnings {
		s.warn(ctx, warning)
	}
	return nil
}

// tell says in status and log whether the relay could lead, and why not.
func (s *scout) tell(ctx context.Context, fault error, obstacle string) {
	reason := obstacle
	if fault != nil {
		reason = fault.Error()
		s.looks++
	} else {
		s.looks = 0
	}
	if obstacle != "" && fault == nil {
		reason = "the leader's lock cannot be had: " + obstacle
	}
	s.status.scouted(fault == nil && obstacle == "", reason)
	if reason == s.said {
		return
	}
	if reason == "" {
		s.log.InfoContext(ctx, "fit to lead again")
	} else {
		s.log.WarnContext(ctx, "not fit to lead; trying until Postgres, NATS and the stream can be used", slog.String("because", reason))
	}
	s.said = reason
}

// madeWay takes note that the relay led and made way for another.
func (s *scout) madeWay(published bool) {
	if published {
		s.futile = 0
	}
	s.futile++
	now := time.Now()
	s.standFrom, s.claimFrom = now.Add(standBack), now.Add(modesty.after(s.futile))
}

// campaign takes part in the election until ctx ends, the relay could not lead any more, or lead returns an error.
func (s *scout) campaign(ctx context.Context, elect func(ctx context.Context) error) error {
	standing, withdraw := context.WithCancelCause(ctx)
	defer withdraw(nil)
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(standing, withdraw) })
	err := elect(standing)
	cause := context.Cause(standing)
	withdraw(nil)
	watching.Wait()
	if err == nil && cause != nil && !errors.Is(cause, errNotFit) && !errors.Is(cause, context.Canceled) {
		return fmt.Errorf("stand for election: %w", cause)
	}
	return err
}
