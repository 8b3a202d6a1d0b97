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
	"github.com/go-outbox/go-outbox/stream"
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

// Options of a [Relay]. The zero value works: fields that are zero take their defaults.
type Options struct {
	// BatchSize is how many rows are fetched at once. The default is DefaultBatchSize. While one page is being
	// published the next one is fetched, so twice as many are in memory.
	BatchSize int
	// BatchBytes bounds the bytes of a page, of all columns; a page holds at least one row. The default is DefaultBatchBytes.
	BatchBytes int
	// Window is how many events may be on their way to the broker at once. The default is DefaultWindow.
	Window int
	// PollInterval is how often an idle relay looks for events of which it was not notified. The default is
	// DefaultPollInterval.
	PollInterval time.Duration
	// MaxAttempts is how often the broker may refuse an event, for a reason that is the event's own, before it
	// becomes a dead letter. The default is DefaultMaxAttempts. Outages do not count.
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

// Store is the outbox as the relay sees it. store.Outbox implements it.
type Store interface {
	// Begin prepares for a term of office: it verifies that the outbox is fit to be worked on, records who
	// leads, and returns the term's number, at least atLeast, and what the former leader left.
	Begin(ctx context.Context, stream, leader string, atLeast int64) (store.Term, error)
	// Stand tells others whether this relay, which does not lead, could publish to stream. Its error says why it could not
	// lead, as far as the database is concerned, and obstacle why nobody can be elected; empty for nothing.
	Stand(ctx context.Context, stream string, fit bool) (obstacle string, err error)
	// Standbys returns how many other relays say that they could publish to the term's stream.
	Standbys(ctx context.Context) (int, error)
	// End ends it, if the session is still there that it rested on.
	End(ctx context.Context) error
	// Exchange records outcomes and fetches rows, in one transaction.
	Exchange(ctx context.Context, request store.Request) (store.Reply, error)
	// Archive returns what is in the archive as published to the stream after a sequence, for all from this one on.
	Archive(ctx context.Context, from uint64) ([]store.Archived, error)
	// Settle removes those of the events found in the stream, all after the sequence after, that are still in the outbox, and returns
	// how many those were, and which of them the database does not let go, each for a reason of its own.
	Settle(ctx context.Context, found []store.Ref, after uint64) (settled int, kept []store.Ref, err error)
	// PutBack puts archived events that the stream has lost back into the outbox, and records the checkpoint unless it
	// is zero.
	PutBack(ctx context.Context, lost []store.Archived, checkpoint store.Checkpoint) (int, error)
	// Listen calls wake when there may be something to fetch, until ctx ends.
	Listen(ctx context.Context, wake func()) error
	// Sweep calls wake when it has found rows that no notification told of, until ctx ends.
	Sweep(ctx context.Context, wake func())
	// Watch tells what in the database holds the relay up, until ctx ends.
	Watch(ctx context.Context, report func(store.Finding))
}

// Publisher takes events to the broker. stream.Publisher implements it.
type Publisher interface {
	// Open makes it ready, or says why it is not; called again after trouble.
	Open(ctx context.Context) (warnings []string, err error)
	// Publish sends an event without waiting. Its error says that nothing was sent. Publish must not keep event
	// after it returns: the relay reuses it. Data and Headers are not modified.
	Publish(event *stream.Event) error
	// Outcomes is signalled when Collect has something to return.
	Outcomes() <-chan struct{}
	// Collect appends what became of published events: one outcome for each that Publish took. Trouble is what is no one
	// event's, such as a lost connection; nil for none.
	Collect(to []stream.Outcome) (outcomes []stream.Outcome, trouble *stream.Error)
	// Close drops the connection and whatever is not sent yet, and ends a Publish that waits for the network. It
	// may be called at any time, from anywhere.
	Close()
	// Stream names where the events go.
	Stream() string
}

// Pipeline is what a [Publisher] may also have: a way to send events in one ordered batch, where nothing after an
// event that failed is stored. The relay then need not wait for the outcome of an aggregate's former event.
type Pipeline interface {
	// Pipeline returns how many events may be in flight in a pipe; 0 if there can be none now.
	Pipeline() int
	// PublishInOrder is Publish into the pipe, which it opens if need be. It may keep the event back until Flush, which
	// follows when there are no more just now, or Finish.
	PublishInOrder(event *stream.Event) error
	Flush()
	// Finish closes the pipe, so that the outcomes of all events in it become known.
	Finish()
}

// Reader is what a [Publisher] may also have: it can tell what the stream holds. Without one, a relay whose publishing
// had an open outcome publishes again, and what then keeps an event from being stored twice is the stream's duplicate
// window alone.
type Reader interface {
	// Fence keeps out of the stream what was sent before, for an outbox's term: see stream.Publisher.Fence.
	Fence(ctx context.Context, outbox string, term int64) (stream.Fence, error)
	// Unfenced is Fence for an outbox that has never been published to the stream.
	Unfenced(ctx context.Context, outbox string, term int64) (stream.Fence, error)
	// Scan passes on the events that are stored above a sequence, up to a fence.
	Scan(ctx context.Context, above uint64, fence stream.Fence, visit func(stream.Found) error) error
	// Alone reports whether the next event is to go alone, to find out whether the stream still is the one that was read
	// back: see stream.Publisher.Alone. A pipe does so by itself.
	Alone() bool
	// Find returns the event of the message at a sequence.
	Find(ctx context.Context, sequence uint64) (stream.Found, error)
	// Look compares the stream with what it looked like before.
	Look(ctx context.Context, before stream.Sight, acked uint64) (stream.Sight, error)
}

// Guarded is what a [Publisher] may also have: it asks before it puts anything on the network. Of another one the relay only
// knows that its lease was valid before each event, but what it hands over may lie in a buffer, and a process can be stopped
// for any time before that is written.
type Guarded interface {
	// Guard sets what is asked, for connections that are opened from then on. Once the answer is false nothing more is
	// sent on them.
	Guard(valid func() bool)
}

// Limited is what a [Publisher] may also have: it knows what the broker takes. Then an event that is too large is never
// read.
type Limited interface {
	// MaxData returns the size in bytes of the largest payload that can be stored; 0 if that is not known.
	MaxData() int
}

// unlimited is for publishers that do not know.
type unlimited struct{}

func (unlimited) MaxData() int { return 0 }

// noPipeline is for publishers that have none.
type noPipeline struct{ Publisher }

func (noPipeline) Pipeline() int                              { return 0 }
func (p noPipeline) PublishInOrder(event *stream.Event) error { return p.Publish(event) }
func (noPipeline) Flush()                                     {}
func (noPipeline) Finish()                                    {}

// Elector decides who may publish. Package election has some.
type Elector interface {
	// Run calls lead for each term of office, with a context that ends with the lease, until ctx ends or lead
	// returns an error.
	Run(ctx context.Context, lead func(ctx context.Context, lease *election.Lease) error) error
}

// Relay moves events from an outbox to a stream. Make one with [New].
type Relay struct {
	store     Store
	publisher Publisher
	pipeline  Pipeline
	reader    Reader // Nil for none.
	limited   Limited
	elector   Elector
	options   Options
	log       *slog.Logger
	hooks     Hooks

	status   status
	watchdog watchdog
	pulse    election.Pulse
	atLeast  int64 // The least number of the next term; belongs to the term in office.

	mu      sync.Mutex // Protects what follows.
	running bool
	warned  map[string]bool // Warnings are given once, not once a term.
}

// New returns a relay that does nothing until [Relay.Run] is called. It connects to nothing; its error lists
// every option that is out of range.
func New(outbox Store, publisher Publisher, elector Elector, options Options) (*Relay, error) {
	if outbox == nil || publisher == nil || elector == nil {
		return nil, errors.New("relay: store, publisher and elector are all needed")
	}
	options, err := options.validated()
	if err != nil {
		return nil, err
	}
	r := &Relay{
		store:     outbox,
		publisher: publisher,
		elector:   elector,
		options:   options,
		log:       options.Logger,
		hooks:     options.Hooks.orNop(),
	}
	if pipeline, ok := publisher.(Pipeline); ok {
		r.pipeline = pipeline
	} else {
		r.pipeline = noPipeline{publisher}
	}
	r.reader, _ = publisher.(Reader)
	r.limited = unlimited{}
	if limited, ok := publisher.(Limited); ok {
		r.limited = limited
	}
	r.status.set(Status{State: Stopped, Trouble: "it has not been started"})
	return r, nil
}

// ErrRunning is returned by a second Run beside the first.
var ErrRunning = errors.New("relay: already running")

// Run publishes events whenever this relay is elected, until ctx ends. Then it stops gracefully: what is in
// flight is finished and recorded and the leadership is given back, within Options.ShutdownTimeout. It waits
// for everything that it started, and returns nil if it was stopped; an error means that it cannot work until
// a person changes something. Outages are none: it starts, and goes on, while Postgres or NATS are away.
//
// Run may be called again after it has returned. So it leaves the outbox's session open, without the leader's lock;
// store.Outbox.Close ends it.
func (r *Relay) Run(ctx context.Context) (err error) {
	r.mu.Lock()
	if r.running {
		r.mu.Unlock()
		return ErrRunning
	}
	r.running = true
	r.mu.Unlock()
	defer func() {
		trouble := "it was stopped"
		if err != nil {
			trouble = err.Error()
		}
		r.watchdog.rest()
		r.status.set(Status{State: Stopped, Trouble: trouble})
		r.mu.Lock()
		r.running = false
		r.mu.Unlock()
	}()

	// A stop must not cut off a term at once, so the elector's context outlives ctx: by the time that a term in
	// office needs to end, or not at all.
	campaign, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	office := &office{stop: ctx.Done()}
	var watching sync.WaitGroup
	finished := make(chan struct{})
	watching.Go(func() {
		select {
		case <-finished:
			return
		case <-ctx.Done():
		}
		if office.close() {
			abort() // Not in office: there is nothing to finish.
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
	err = r.campaign(campaign, office, abort)
	close(finished)
	abort()
	watching.Wait()
	r.publisher.Close()
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return nil
}

// missed returns what tells of a time in which this process did not run.
func (r *Relay) missed(ctx context.Context) func(gap time.Duration) {
	return func(gap time.Duration) {
		r.log.WarnContext(ctx, "this process did not run for a while: it or its machine was stopped, or it got no processor", slog.Duration("for", gap.Round(time.Millisecond)))
	}
}

// campaign takes part in elections, and serves the terms, until ctx ends or no further term can be served.
func (r *Relay) campaign(ctx context.Context, office *office, abort func()) error {
	scout := &scout{Relay: r, working: make(chan struct{}, 1)}
	var unfit *unfitError // That ended the latest term; nil for another reason.
	setbacks := backoff{first: 100 * time.Millisecond, most: 5 * time.Second}
	failures := 0
	lead := func(leading context.Context, lease *election.Lease) error {
		if !office.enter() {
			abort()
			return nil
		}
		scout.rest()
		defer scout.resume()
		defer func() {
			r.status.set(Status{State: Campaigning, Since: time.Now()})
			if office.leave() {
				abort()
			}
		}()
		err := r.lead(leading, lease, office.stop, func() { failures = 0 })
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
		sleep(leading, office.stop, wait)
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

// office says whether the relay leads, and lets nobody in once it is to stop.
type office struct {
	stop <-chan struct{}

	mu     sync.Mutex // Protects what follows.
	inside bool
	closed bool
}

// enter begins a term; false if none may begin any more.
func (o *office) enter() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inside = !o.closed
	return o.inside
}

// leave ends a term and reports whether it was the last.
func (o *office) leave() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inside = false
	return o.closed
}

// close lets nobody in any more and reports whether nobody is inside.
func (o *office) close() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	return !o.inside
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
