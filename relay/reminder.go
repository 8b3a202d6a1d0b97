package relay

import (
	"context"
	"log/slog"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// reminder says when an alarm that lasts is told again: after 1, 2 and 5 minutes, then every 10 minutes.
type reminder struct {
	since time.Time // When the alarm was raised.
	told  int       // How often it was told again.
}

// remindEvery is how often an alarm is told again in the end.
const remindEvery = 10 * time.Minute

// timesOf returns how often an alarm of this age was to be told again.
func timesOf(age time.Duration) (n int) {
	for _, early := range [...]time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute} {
		if age >= early {
			n++
		}
	}
	return n + int(age/remindEvery)
}

// due reports whether an alarm that was raised at that time is to be told again now.
func (r *reminder) due(since, now time.Time) (again bool) {
	if !since.Equal(r.since) {
		*r = reminder{since: since}
	}
	times := timesOf(now.Sub(since))
	again = times > r.told
	r.told = times // Several at once if the process was stopped.
	return again
}

// waitsPatience bounds the look at what waits.
const waitsPatience = 3 * time.Second

// waits says how much waits, for the log; nothing if the outbox does not tell.
func (r *Relay) waits(ctx context.Context) []slog.Attr {
	outbox, ok := r.store.(interface{ Gauge() *store.Gauge })
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, waitsPatience)
	defer cancel()
	gauge := outbox.Gauge()
	defer gauge.Close(ctx)
	found, err := gauge.Read(ctx)
	if err != nil {
		return nil
	}
	return []slog.Attr{slog.Int64("pending", found.Pending.Rows), slog.Duration("oldest", found.Oldest.Round(time.Second))}
}

// remind tells an alarm of this term again when that is due, in the background: somebody has to look at what waits.
func (t *term) remind(ctx context.Context, now time.Time) {
	if reason := t.core.circuit.reason; reason != "" && t.reminder.due(t.core.report.since, now) {
		lasts := now.Sub(t.core.report.since)
		t.start(func() {
			t.log.LogAttrs(ctx, slog.LevelWarn, "publishing is still paused",
				append([]slog.Attr{slog.Duration("for", lasts.Round(time.Second)), slog.String("error", reason)}, t.waits(ctx)...)...)
		})
	}
	if pause := t.pauses.said; pause != nil && t.pauses.reminder.due(t.pauses.since, now) {
		t.start(func() {
			t.log.LogAttrs(ctx, slog.LevelWarn, "still paused by hand", append(pauseAttrs(pause), t.waits(ctx)...)...)
		})
	}
}

// pauseAttrs tell of a pause.
func pauseAttrs(p *store.Pause) []slog.Attr {
	return []slog.Attr{slog.Duration("for", p.Lasts().Round(time.Second)), slog.String("because", cut(p.Reason)), slog.String("by", cut(p.By))}
}
