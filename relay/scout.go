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

// Only a relay that could publish campaigns. While a relay does not lead, its scout checks whether it could: Postgres, the
// broker and the stream must answer. A relay that could publish says so through the outbox (Store.Stand). A leader that cannot
// publish makes way for a relay that says so, and stays if there is none.

const (
	// scoutEvery is how often a relay that could lead checks whether it still could.
	scoutEvery = 2 * time.Second
	// standPatience bounds one call of Store.Stand.
	standPatience = 4 * time.Second

	// unfitAfter is for how long a leader must have been unable to publish before it makes way for another.
	unfitAfter = 3 * time.Second
	// standBack is for how long it then leaves the election to others.
	standBack = 5 * time.Second
)

// modesty is for how long a relay that made way does not say that it could publish, since it was wrong the last time. The time
// doubles with each term in a row in which the relay published nothing. So if none of the relays can publish, for example
// because the stream is full, they do not go on making way for each other.
var modesty = backoff{first: 10 * time.Second, most: 10 * time.Minute} //nolint:gochecknoglobals // Immutable.

// unfitError ends a term of a leader that cannot publish, while another relay says that it could.
type unfitError struct{ reason string }

func (e *unfitError) Error() string {
	return "another relay says that it could publish, and this one cannot: " + e.reason
}

// scout checks whether its relay could lead.
type scout struct {
	*Relay

	standFrom time.Time // Before that time the relay does not campaign.
	claimFrom time.Time // Before that time it does not say that it could publish.
	futile    int       // How many terms in a row ended by making way, without having published anything.
	looks     int       // How many checks in a row found that it could not lead.
	said      string    // What was logged last,
	since     time.Time // and since when the relay has not been fit, if it is not.
	reminder  reminder

	// working has a token during a check and during a term: both use the relay's publisher and session.
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

// watch checks again and again whether the relay could lead, and calls withdraw once it could not.
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

// errNotFit withdraws a candidate. Log and status say why it is not fit.
var errNotFit = errors.New("not fit to lead")

// rest ends the check under way, and keeps the scout from the publisher and the session until resume.
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

// look checks whether the relay could lead now. Its error says that it never can.
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
	// Breaking off a use of the session closes the session, and the lock that was just won may be on it. So rest does not
	// break this one off.
	standing, cancel := context.WithTimeout(ctx, standPatience)
	defer cancel()
	candidacy := store.Candidacy{Fit: openErr == nil && !time.Now().Before(s.claimFrom), Name: s.options.Name}
	if openErr != nil {
		candidacy.Reason = openErr.Error()
	}
	obstacle, standErr := s.store.Stand(standing, s.publisher.Stream(), candidacy)
	switch {
	case ctx.Err() != nil:
		return false, nil
	case store.Fatal(standErr):
		return false, standErr
	}
	s.watchdog.turn(time.Now())
	s.reach.askedPostgres(standErr)
	if standErr == nil {
		s.pauses.tell(ctx, s.log, s.store.Paused())
		s.pauses.remind(ctx, s.log, time.Now())
	}
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
	s.publisher.Guard(nil) // No event is sent over this connection: a term opens its own.
	warnings, err := s.publisher.Open(ctx)
	_, _ = s.publisher.Collect(nil) // An outage that is over does not count.
	interrupted := s.isResting()
	s.mu.Lock()
	s.interrupt = nil
	s.mu.Unlock()
	if err == nil || !interrupted { // Otherwise a term has ended it.
		s.lookedAtStream(warnings, err)
	}
	if err != nil {
		return err
	}
	for _, warning := range warnings {
		s.warn(ctx, warning.Text)
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
	now := time.Now()
	if reason == s.said {
		if reason != "" && s.reminder.due(s.since, now) {
			s.log.LogAttrs(ctx, slog.LevelWarn, "still not fit to lead",
				append([]slog.Attr{slog.Duration("for", now.Sub(s.since).Round(time.Second)), slog.String("because", reason)}, s.waits(ctx)...)...)
		}
		return
	}
	if reason == "" {
		s.log.InfoContext(ctx, "fit to lead again", slog.Duration("after", now.Sub(s.since).Round(time.Millisecond)))
	} else {
		if s.said == "" {
			s.since = now
		}
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

// campaign takes part in the election until ctx ends, the relay can no longer lead, or elect returns an error.
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
