package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-multierror"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
)

// Defaults of [Options].
const (
	DefaultBatchSize       = 1000
	DefaultBatchBytes      = 2 << 20
	DefaultWindow          = 4096
	DefaultPollInterval    = time.Second
	DefaultMaxAttempts     = 3
	DefaultRetryBackoff    = time.Second
	DefaultRetryBackoffMax = time.Minute
	DefaultShutdownTimeout = 10 * time.Second
)

// Options of a [Relay] that [Assemble] makes. The zero value works: fields that are zero take their defaults.
type Options struct {
	// NoMigrate leaves the tables to others: the relay waits until they are ready. The default, false, creates or upgrades
	// them.
	NoMigrate bool
	// BatchSize is how many rows are fetched at once. The default is DefaultBatchSize. While one page is being
	// published the next one is fetched, so twice as many are in memory.
	BatchSize int
	// BatchBytes bounds the bytes of a page, of all columns; a page holds at least one row. The default is DefaultBatchBytes.
	BatchBytes int
	// Window is how many events may be on their way to the broker at once. The default is DefaultWindow.
	Window int
	// PollInterval is how often an idle relay looks for events that no notification told of. The default is
	// DefaultPollInterval.
	PollInterval time.Duration
	// MaxAttempts is how often the broker may refuse an event, for a reason that is the event's own, before it
	// becomes a dead letter. The default is DefaultMaxAttempts. Outages do not count, nor does a subject that the relay's
	// user may not publish to, as long as the term has stored no event at all.
	MaxAttempts int
	// RetryBackoff is the wait after an event's first refusal; it doubles up to RetryBackoffMax. Only events of
	// the same aggregate wait meanwhile. The defaults are DefaultRetryBackoff and DefaultRetryBackoffMax.
	RetryBackoff, RetryBackoffMax time.Duration
	// ShutdownTimeout bounds a graceful stop: finishing what is in flight, recording it, resigning. The default
	// is DefaultShutdownTimeout.
	ShutdownTimeout time.Duration
	// Name says in logs and in the database who leads. The default is the host's name and the process ID.
	Name string
	// Logger receives what an operator wants to know, never payloads. The default discards it.
	Logger *slog.Logger
	// Hooks are told what happens, for metrics and tests.
	Hooks Hooks
}

// validated returns the options with defaults filled in, or everything that is wrong with them.
func (o Options) validated() (Options, error) {
	var faults *multierror.Error
	atLeastOne := func(name string, field *int, byDefault int) {
		if *field == 0 {
			*field = byDefault
		}
		if *field < 1 {
			faults = multierror.Append(faults, fmt.Errorf("relay option %s is %d, it must be at least 1", name, *field))
		}
	}
	positive := func(name string, field *time.Duration, byDefault time.Duration) {
		if *field == 0 {
			*field = byDefault
		}
		if *field < 0 {
			faults = multierror.Append(faults, fmt.Errorf("relay option %s is %v, it must be positive", name, *field))
		}
	}
	atLeastOne("BatchSize", &o.BatchSize, DefaultBatchSize)
	atLeastOne("BatchBytes", &o.BatchBytes, DefaultBatchBytes)
	atLeastOne("Window", &o.Window, DefaultWindow)
	atLeastOne("MaxAttempts", &o.MaxAttempts, DefaultMaxAttempts)
	positive("PollInterval", &o.PollInterval, DefaultPollInterval)
	positive("RetryBackoff", &o.RetryBackoff, DefaultRetryBackoff)
	if o.RetryBackoffMax == 0 {
		o.RetryBackoffMax = max(DefaultRetryBackoffMax, o.RetryBackoff)
	}
	positive("ShutdownTimeout", &o.ShutdownTimeout, DefaultShutdownTimeout)
	if o.RetryBackoffMax < o.RetryBackoff {
		faults = multierror.Append(faults, fmt.Errorf("relay option RetryBackoffMax is %v, it must not be below RetryBackoff, %v", o.RetryBackoffMax, o.RetryBackoff))
	}
	if o.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		o.Name = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, faults.ErrorOrNil()
}

// Relay moves events from an outbox to a stream. Make one with [New] or [Assemble].
type Relay struct {
	store     Store
	publisher Publisher
	readsBack bool // Publisher.ReadsBack.
	elector   Elector
	options   Options
	log       *slog.Logger
	hooks     Hooks
	outbox    *store.Outbox // The store of a relay that New made; nil otherwise.

	status     status
	reach      reach
	conditions conditions
	pauses     pauseLog
	watchdog   watchdog
	pulse      election.Pulse
	atLeast    int64 // The least number of the next term; belongs to the term under way.

	mu       sync.Mutex // Protects what follows.
	running  bool
	prepared bool            // The tables were found ready.
	warned   map[string]bool // Warnings are given once, not once a term.
}

// ErrRunning is returned by a second Run beside the first.
var ErrRunning = errors.New("relay: already running")

// Run prepares the tables as [Relay.Prepare] does, unless that was done before, and then publishes events whenever this
// relay is elected, until ctx ends. Then it stops gracefully: what is in flight is finished and recorded and the leadership is
// given back, within Options.ShutdownTimeout. It waits for everything that it started and closes the session, and returns nil
// if it was stopped; an error means that it cannot work until a person changes something. Outages are none: it starts, and
// goes on, while Postgres or NATS are away.
//
// Run may be called again after it has returned.
func (r *Relay) Run(ctx context.Context) (err error) {
	if !r.claim() {
		return ErrRunning // The session belongs to the first Run, so it is not closed here.
	}
	r.status.set(Status{State: Campaigning, Since: time.Now(), Trouble: notPrepared})
	defer func() { r.end(ctx, err) }()
	r.warnOfParts(ctx)
	err = r.Prepare(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil
	default:
		return err
	}
	return r.run(ctx)
}

// run relays until ctx ends.
func (r *Relay) run(ctx context.Context) error {
	// A stop must not cut off a term at once. So the elector's context outlives ctx, for as long as a term under way needs to
	// end; if no term is under way it ends with ctx.
	campaign, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	terms := &termLatch{stop: ctx.Done()}
	var watching sync.WaitGroup
	finished := make(chan struct{})
	watching.Go(func() {
		select {
		case <-finished:
			return
		case <-ctx.Done():
		}
		if terms.close() {
			abort() // No term is under way: there is nothing to finish.
			return
		}
		deadline := time.NewTimer(r.options.ShutdownTimeout)
		defer deadline.Stop()
		select {
		case <-finished:
		case <-deadline.C:
			r.log.WarnContext(ctx, "stopping before everything in flight was acknowledged; it is published again by the next leader", slog.Duration("after", r.options.ShutdownTimeout))
			abort()
		}
	})

	watching.Go(func() { r.pulse.Run(campaign, r.missed(ctx)) })
	r.status.set(Status{State: Campaigning, Since: time.Now(), Trouble: "finding out whether Postgres, NATS and the stream can be used"})
	err := r.campaign(campaign, terms, abort)
	close(finished)
	abort()
	watching.Wait()
	r.publisher.Close()
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return nil
}

// missed returns a function that logs that this process did not run for a while.
func (r *Relay) missed(ctx context.Context) func(gap time.Duration) {
	return func(gap time.Duration) {
		r.log.WarnContext(ctx, "this process did not run for a while: it or its machine was stopped, or it got no processor", slog.Duration("for", gap.Round(time.Millisecond)))
	}
}

// campaign takes part in elections and serves the terms, until ctx ends or no further term can begin.
func (r *Relay) campaign(ctx context.Context, terms *termLatch, abort func()) error {
	scout := &scout{Relay: r, working: make(chan struct{}, 1)}
	var unfit *unfitError // Why the latest term made way for another relay; nil if it did not.
	setbacks := backoff{first: 100 * time.Millisecond, most: 5 * time.Second}
	failures := 0
	lead := func(leading context.Context, lease *election.Lease) error {
		if !terms.begin() {
			abort()
			return nil
		}
		scout.rest()
		defer scout.resume()
		defer func() {
			r.status.set(Status{State: Campaigning, Since: time.Now()})
			if terms.end() {
				abort()
			}
		}()
		err := r.lead(leading, lease, terms.stop, func() { failures = 0 })
		var setback *setbackError
		if !errors.As(err, &setback) {
			errors.As(err, &unfit)
			return err
		}
		failures++
		wait := setbacks.after(failures)
		reason := setback.err
		if gap := r.pulse.Gap(); gap > 0 {
			reason = fmt.Errorf("this process did not run for %v (%w)", gap.Round(time.Millisecond), reason)
		}
		r.status.set(Status{State: Campaigning, Since: time.Now(), Trouble: reason.Error()})
		r.log.WarnContext(ctx, "term ended early", slog.Any("error", reason), slog.Duration("next_in", wait))
		sleep(leading, terms.stop, wait)
		return nil
	}
	for {
		if err := scout.ready(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		unfit = nil
		published := r.status.get().Published
		err := scout.campaign(ctx, func(standing context.Context) error { return r.elector.Run(standing, lead) })
		switch {
		case unfit != nil:
			r.log.WarnContext(ctx, "made way for another relay", slog.Any("error", unfit))
			scout.madeWay(r.status.get().Published > published)
		case err != nil:
			return err
		}
	}
}

// warn logs a condition that weakens the guarantees, once.
func (r *Relay) warn(ctx context.Context, warning string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.warned[warning] {
		return
	}
	if r.warned == nil {
		r.warned = make(map[string]bool)
	}
	r.warned[warning] = true
	r.log.WarnContext(ctx, "a guarantee is weakened", slog.String("because", warning))
}

// termLatch says whether a term is under way, and lets none begin once the relay is to stop.
type termLatch struct {
	stop <-chan struct{}

	mu     sync.Mutex // Protects what follows.
	inTerm bool
	closed bool
}

// begin begins a term; false if none may begin any more.
func (l *termLatch) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inTerm = !l.closed
	return l.inTerm
}

// end ends a term and reports whether it was the last.
func (l *termLatch) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inTerm = false
	return l.closed
}

// close lets no further term begin, and reports whether none is under way.
func (l *termLatch) close() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return !l.inTerm
}

// setbackError ends a term without ending the relay.
type setbackError struct{ err error }

func (e *setbackError) Error() string { return e.err.Error() }
func (e *setbackError) Unwrap() error { return e.err }

// sleep waits for d, unless ctx or stop end it.
func sleep(ctx context.Context, stop <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-stop:
	case <-ctx.Done():
	}
}
