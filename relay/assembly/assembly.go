package assembly

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// DefaultClientName is what NATS calls the relay's connection.
const DefaultClientName = "outbox-relay"

const (
	// prepareWait is the pause between attempts to prepare the tables, doubling to prepareWaitMax.
	prepareWait    = 100 * time.Millisecond
	prepareWaitMax = time.Second
	// closeTimeout bounds the end of the session.
	closeTimeout = 2 * time.Second
)

// Options are what a configuration does not say. The zero value works, unless nats_url is "embedded".
type Options struct {
	// NATSURL replaces nats_url. It is needed where that is "embedded", and then the URL of the server that the
	// program runs.
	NATSURL string
	// ClientName is what NATS calls the relay's connection in its logs and its monitoring. The default is
	// DefaultClientName.
	ClientName string
	// Name says in logs and in the database who leads. The default is the host's name and the process ID.
	Name string
	// Logger receives what an operator wants to know, never payloads. The default discards it.
	Logger *slog.Logger
	// BeforeConnect may change how the next connection to Postgres is made, above all the password: see
	// store.Options.BeforeConnect.
	BeforeConnect func(ctx context.Context, config *pgx.ConnConfig) error
	// Hooks are told what the relay does, for metrics: see package metrics.
	Hooks relay.Hooks
}

// ConfigError says what is wrong with a configuration, all of it.
type ConfigError struct{ faults error }

// Error lists the faults, one a line, as package config does.
func (e *ConfigError) Error() string {
	return "the configuration has faults:\n  " + strings.ReplaceAll(e.faults.Error(), "\n", "\n  ")
}

// Unwrap returns the faults.
func (e *ConfigError) Unwrap() error { return e.faults }

// Assembly is a relay with all that belongs to it. Make one with [New].
type Assembly struct {
	outbox  *store.Outbox
	relay   *relay.Relay
	migrate bool
	retains bool
	log     *slog.Logger

	mu       sync.Mutex // Protects what follows.
	since    time.Time  // When it was made, or run.
	running  bool
	ended    bool   // The relay has run.
	prepared bool   // The tables were found ready.
	trouble  string // Why they were not.
	failure  string // Why it ended; empty if it was stopped.
}

// Validate returns what [New] finds wrong with a configuration, for programs that run the server of nats_url =
// "embedded" and do not want to start it in vain.
func Validate(c config.Config) error {
	var o Options
	if c.NATS.Embedded() {
		o.NATSURL = embeddedURL
	}
	_, err := New(c, o)
	return err
}

// New returns a relay that does nothing until [Assembly.Run] is called. It connects to nothing, so it fails for what is
// wrong with the configuration only: its error is a [ConfigError] with all that package config let pass.
func New(c config.Config, o Options) (*Assembly, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.ClientName = cmp.Or(o.ClientName, DefaultClientName)
	// Each goes on without what the ones before could not make, so that all faults are found.
	p, planErr := planOf(c, o)
	outbox, outboxErr := store.Open(p.dsn, p.store)
	publisher, publisherErr := stream.NewPublisher(p.publisher)
	elector, electorErr := p.elector(outbox)
	if electorErr != nil {
		elector = election.Always{}
	}
	r, relayErr := relay.New(outbox, publisher, elector, p.relay)
	if err := errors.Join(planErr, outboxErr, publisherErr, electorErr, relayErr); err != nil {
		return nil, &ConfigError{err}
	}
	return &Assembly{outbox: outbox, relay: r, migrate: c.Migrate, retains: c.Relay.Retain > 0, log: o.Logger, since: time.Now()}, nil
}

// Outbox returns the outbox that is relayed: its table inserts events, and it has the dead letters.
func (a *Assembly) Outbox() *store.Outbox { return a.outbox }

// Relay returns the relay, for programs that do themselves what else [Assembly.Run] does.
func (a *Assembly) Relay() *relay.Relay { return a.relay }

// Run prepares the tables as [Assembly.Prepare] does, unless that was done before, then relays until ctx ends, and then
// closes the session. Like relay.Relay.Run it returns nil if it was stopped, and may be called again.
func (a *Assembly) Run(ctx context.Context) (err error) {
	if err := a.begin(); err != nil {
		return err
	}
	defer func() { a.end(ctx, err) }()
	if !a.retains {
		a.log.WarnContext(ctx, "a guarantee is weakened", slog.String("because", "retain is 0: "+noArchive))
	}
	err = a.Prepare(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil
	default:
		return err
	}
	return a.relay.Run(ctx)
}

func (a *Assembly) begin() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running {
		return relay.ErrRunning // Whose session is not ours to close.
	}
	a.running, a.ended, a.since, a.failure = true, false, time.Now(), ""
	return nil
}

// end closes the session, and waits for that: a restarted relay is not to find this one's lock.
func (a *Assembly) end(ctx context.Context, failure error) {
	a.mu.Lock()
	a.ended = true
	if failure != nil {
		a.failure = failure.Error()
	}
	a.mu.Unlock()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := a.outbox.Close(closing); err != nil {
		a.log.DebugContext(ctx, "closing the connection to Postgres", slog.Any("error", err))
	}
	a.mu.Lock()
	a.running = false
	a.mu.Unlock()
}

// Prepare returns nil once the outbox's tables are ready: it creates or upgrades them or, with migrate = false, waits until
// somebody else did. Run does so by itself; a program calls Prepare that wants to insert events before it does, or without.
// Only what waiting does not mend is an error, and that ctx has ended.
func (a *Assembly) Prepare(ctx context.Context) error {
	if a.isPrepared() {
		return nil
	}
	prepare := a.outbox.Check
	if a.migrate {
		prepare = a.outbox.Migrate
	}
	for wait := prepareWait; ; wait = min(2*wait, prepareWaitMax) {
		err := prepare(ctx)
		switch {
		case err == nil:
			a.nowPrepared()
			a.log.InfoContext(ctx, "tables are up to date", slog.String("table", a.outbox.Table().String()))
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("prepare the outbox's tables: %w", context.Cause(ctx))
		case store.Fatal(err):
			return err
		case a.troubled(err):
			a.log.WarnContext(ctx, "the outbox's tables are not ready; trying until they are", slog.Any("error", err))
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

func (a *Assembly) isPrepared() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.prepared
}

func (a *Assembly) nowPrepared() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.prepared, a.trouble = true, ""
}

// troubled notes why the tables are not ready, and reports whether that is news.
func (a *Assembly) troubled(err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	news := err.Error() != a.trouble
	a.trouble = err.Error()
	return news
}

// Status returns what the relay is doing or, before it runs, that it wants to lead and what it waits for. It may be
// called at any time from anywhere.
func (a *Assembly) Status() relay.Status {
	s := a.relay.Status()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case s.State != relay.Stopped:
	case !a.ended:
		s.State, s.Since, s.Trouble = relay.Campaigning, a.since, cmp.Or(a.trouble, "its tables are not ready yet")
	case a.failure != "":
		s.Trouble = a.failure
	}
	return s
}
