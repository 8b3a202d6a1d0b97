package audit

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// Hooks are called by Watch, from its goroutine; those that are nil are not.
type Hooks struct {
	// Audited tells of each audit, and Violated of each violation: once, however many audits find it.
	Audited  func(Report)
	Violated func(Violation)
}

// WatchOptions say how to audit again and again. Archive, Dial and Interval are needed, and Options.Stream.
type WatchOptions struct {
	Options

	// Archive is the outbox.
	Archive Archive
	// Dial connects to the stream for one audit, and returns what closes the connection.
	Dial func(ctx context.Context) (Stream, func(), error)
	// Interval is the time from the end of an audit to the beginning of the next one.
	Interval time.Duration
	// Due reports whether to audit now, such as whether this relay leads. Default: always.
	Due func() bool
	// Logger receives each violation, at level error, and why an audit could not be done. Default: it is discarded.
	Logger *slog.Logger
	// Hooks are told what an audit has found.
	Hooks Hooks
}

// logged is how many violations of one audit are logged.
const logged = 10

// violated names a violation.
type violated struct {
	store.Ref

	kind Kind
}

// Watch audits again and again until ctx ends: all of the archive each time, since a message may be removed or doubled at any
// time.
func Watch(ctx context.Context, o WatchOptions) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var known map[violated]struct{} // By the audit before.
	failing := false
	for {
		next := time.NewTimer(o.Interval)
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return
		}
		if o.Due != nil && !o.Due() {
			continue
		}
		report, err := o.once(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			level := slog.LevelWarn
			if failing || errors.Is(err, ErrReplaced) { // The relay tells what became of the stream.
				level = slog.LevelDebug
			}
			failing = true
			o.Logger.LogAttrs(ctx, level, "the stream could not be audited; trying again later", slog.Any("error", err))
			continue
		}
		failing = false
		known = o.tell(ctx, &report, known)
	}
}

// once audits.
func (o *WatchOptions) once(ctx context.Context) (Report, error) {
	stream, hangUp, err := o.Dial(ctx)
	if err != nil {
		return Report{}, err
	}
	defer hangUp()
	return Run(ctx, o.Archive, stream, o.Options)
}

// tell tells what was found, and returns what is known from now on.
func (o *WatchOptions) tell(ctx context.Context, r *Report, known map[violated]struct{}) map[violated]struct{} {
	if o.Hooks.Audited != nil {
		o.Hooks.Audited(*r)
	}
	found, fresh := make(map[violated]struct{}, len(r.Violations)), 0
	for i := range r.Violations {
		v := &r.Violations[i]
		name := violated{v.Ref, v.Kind}
		found[name] = struct{}{}
		if _, old := known[name]; old {
			continue
		}
		if o.Hooks.Violated != nil {
			o.Hooks.Violated(*v)
		}
		if fresh++; fresh <= logged {
			o.Logger.LogAttrs(ctx, slog.LevelError, "an audit has found an event that breaks the claim", slog.String("kind", string(v.Kind)),
				slog.Int64("seq", v.Seq), slog.String("id", v.ID.String()), slog.String("aggregate_type", v.AggregateType), slog.String("aggregate_id", v.AggregateID),
				slog.String("what", v.String()))
		}
	}
	if fresh > logged {
		o.Logger.LogAttrs(ctx, slog.LevelError, "an audit has found more events that break the claim; outbox-relay audit names them", slog.Int("events", fresh-logged))
	}
	return found
}
