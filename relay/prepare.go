package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

const (
	// prepareWait is the pause between attempts to prepare, doubling to prepareWaitMax.
	prepareWait    = 100 * time.Millisecond
	prepareWaitMax = time.Second
	// closeTimeout bounds the end of the session.
	closeTimeout = 2 * time.Second
)

// What the status says before the relay does anything.
const (
	notPrepared = "its tables are not ready yet"
	notRun      = "it has not been started"
)

// What is given up, by which part.
const (
	noArchive    = "what the broker loses after it has acknowledged it, as in a crash before it was written to the disk, cannot be published again"
	noReadBack   = "the publisher cannot read the stream back: what is in doubt after a crash or a lost acknowledgement is published again, and only the stream's duplicate window keeps it from being stored twice, if it is longer than any interruption; what the broker loses is not noticed"
	noGuard      = "the publisher does not ask for the lease before it writes: what it has in a buffer when this process is stopped may be sent after another relay was elected"
	retainIsZero = "retain is 0: " + noArchive
)

// Outbox returns the outbox of a relay that [New] made: its Table inserts events, and it has the operator's verbs, such as
// DeadLetters, Requeue, Discard, Replay and Inspect. It is nil for a relay that was assembled of the program's own parts.
func (r *Relay) Outbox() *store.Outbox { return r.outbox }

// claim makes sure that only one at a time uses the publisher and the session.
func (r *Relay) claim() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running {
		return false
	}
	r.running = true
	return true
}

func (r *Relay) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = false
}

// end closes the session and waits until it is closed, so that a restarted relay does not find this one's lock.
func (r *Relay) end(ctx context.Context, failure error) {
	trouble := "it was stopped"
	if failure != nil {
		trouble = failure.Error()
	}
	r.watchdog.rest()
	r.status.set(Status{State: Stopped, Trouble: trouble})
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := r.store.Close(closing); err != nil {
		r.log.DebugContext(ctx, "closing the connection to Postgres", slog.Any("error", err))
	}
	r.release()
}

// warnOfParts logs which guarantees the chosen parts weaken.
func (r *Relay) warnOfParts(ctx context.Context) {
	if !r.store.Retains() {
		r.warn(ctx, retainIsZero)
	}
	if !r.readsBack {
		r.warn(ctx, noReadBack)
	}
	if !r.publisher.Guards() {
		r.warn(ctx, noGuard)
	}
}

// Prepare returns nil once the outbox's tables are ready: it creates or upgrades them or, with NoMigrate, waits until somebody
// else has done so. Run does so by itself. A program calls Prepare if it wants to insert events before Run, or without Run.
// Prepare returns an error only if waiting does not help, or if ctx has ended.
func (r *Relay) Prepare(ctx context.Context) error {
	if r.isPrepared() {
		return nil
	}
	prepare := r.store.Migrate
	if r.options.NoMigrate {
		prepare = r.store.Check
	}
	tell := func(err error, lasts time.Duration) {
		r.log.WarnContext(ctx, "the outbox's tables are not ready; trying until they are", slog.Any("error", err), slog.Duration("for", lasts))
	}
	attempt := func(ctx context.Context) error {
		err := prepare(ctx)
		r.reach.askedPostgres(err)
		return err
	}
	if err := r.until(ctx, attempt, store.Fatal, tell); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("prepare the outbox's tables: %w", err)
		}
		return err
	}
	r.nowPrepared()
	r.log.InfoContext(ctx, "tables are up to date", slog.String("table", r.store.Table().String()))
	return nil
}

// PrepareStream returns nil once the stream is there: it creates the stream, if it may, and checks it. A leader does so by
// itself. A program calls PrepareStream if it wants to create consumers before the relay runs. It returns [ErrRunning] while
// the relay runs, and another error only if waiting does not help, or if ctx has ended.
func (r *Relay) PrepareStream(ctx context.Context) error {
	if !r.claim() {
		return ErrRunning
	}
	defer r.release()
	defer r.publisher.Close()
	open := func(ctx context.Context) error {
		opening, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		r.publisher.Guard(nil)
		warnings, err := r.publisher.Open(opening)
		_, _ = r.publisher.Collect(nil) // Trouble of earlier attempts is in the error, if it still matters.
		r.lookedAtStream(warnings, err)
		for _, warning := range warnings {
			r.warn(ctx, warning.Text)
		}
		return err
	}
	refused := func(err error) bool { return errors.Is(err, stream.ErrRefused) }
	tell := func(err error, lasts time.Duration) {
		r.log.WarnContext(ctx, "the stream is not ready; trying until it is", slog.Any("error", err), slog.Duration("for", lasts))
	}
	if err := r.until(ctx, open, refused, tell); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("prepare the stream: %w", err)
		}
		return err
	}
	r.status.scouted(false, r.beforeRun())
	r.log.InfoContext(ctx, "the stream is ready", slog.String("stream", r.publisher.Stream()))
	return nil
}

// until repeats an attempt until it succeeds, fails with a fatal error, or ctx has ended. It tells every other error once,
// until another one follows, and again as long as it lasts.
func (r *Relay) until(ctx context.Context, attempt func(context.Context) error, fatal func(error) bool, tell func(err error, lasts time.Duration)) error {
	said, since, again := "", time.Now(), reminder{}
	for wait := prepareWait; ; wait = min(2*wait, prepareWaitMax) {
		err := attempt(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case fatal(err):
			return err
		case err.Error() != said, again.due(since, time.Now()):
			said = err.Error()
			r.status.scouted(false, said)
			tell(err, time.Since(since).Round(time.Second))
		}
		sleep(ctx, nil, wait)
	}
}

func (r *Relay) isPrepared() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.prepared
}

func (r *Relay) nowPrepared() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prepared = true
	if !r.running {
		r.status.scouted(false, notRun)
	}
}

// beforeRun says why a relay that has not been run does not lead.
func (r *Relay) beforeRun() string {
	if r.isPrepared() {
		return notRun
	}
	return notPrepared
}
