package relay

import (
	"context"
	"log/slog"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// A person can pause the outbox: see store.Outbox.Pause. The leader then hands no event to the publisher, and goes on with all
// else: what is in flight is settled, pages are fetched up to what the relay may hold, a standby stands by. A new leader knows of
// the pause before it has fetched anything.

// askPauseEvery is how often a leader that is paused by hand asks whether it still is, unless it is notified.
const askPauseEvery = time.Second

// byHand says whether a person has paused the outbox.
type byHand struct {
	paused bool
	askAt  time.Time // When to ask whether that is still so. A round trip for anything else asks, too.
}

// due reports whether a round trip is due only to ask.
func (b *byHand) due(now time.Time) bool { return b.paused && !now.Before(b.askAt) }

// ask makes that due at once.
func (b *byHand) ask() { b.askAt = b.askAt.Add(-askPauseEvery) }

// asked takes note that a round trip has asked.
func (b *byHand) asked(now time.Time) { b.askAt = now.Add(askPauseEvery) }

// heedPause does what a person has ordered.
func (t *term) heedPause(ctx context.Context) {
	pause := t.store.Paused()
	t.core.byHand.paused = pause != nil
	t.pauses.tell(ctx, t.log, pause)
}

// pauseLog tells the log of pauses. It belongs to the term under way, and to the scout between terms.
type pauseLog struct {
	said     *store.Pause
	since    time.Time // When it was first told.
	reminder reminder
}

// tell logs that a pause has begun, has another reason or has ended.
func (l *pauseLog) tell(ctx context.Context, log *slog.Logger, now *store.Pause) {
	former := l.said
	l.said = now
	switch {
	case now == nil && former == nil:
	case now == nil:
		log.InfoContext(ctx, "resumed by hand; events are published again", slog.Duration("after", former.Lasts().Round(time.Second)))
	case former == nil || former.Reason != now.Reason || former.By != now.By:
		log.LogAttrs(ctx, slog.LevelWarn, "paused by hand; events wait until somebody runs `outbox-relay resume`", pauseAttrs(now)...)
		l.since = time.Now()
	}
}

// remind tells a pause again that lasts.
func (l *pauseLog) remind(ctx context.Context, log *slog.Logger, now time.Time) {
	if l.said != nil && l.reminder.due(l.since, now) {
		log.LogAttrs(ctx, slog.LevelWarn, "still paused by hand", pauseAttrs(l.said)...)
	}
}
