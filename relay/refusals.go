package relay

import (
	"context"
	"log/slog"
	"time"
)

const (
	// refusalsTold is how many refusals the log tells one by one in each refusalsSpan; the others it sums up.
	refusalsTold = 10
	refusalsSpan = 10 * time.Second
	// valueShown is how much of a value the log shows.
	valueShown = 100
)

// refusalLog logs refused events, and sums up many of them: a thousand at once have one cause, not a thousand.
type refusalLog struct {
	since            time.Time // When the present span began.
	told             int
	refused, givenUp int         // How many were not told one by one.
	last             []slog.Attr // The latest of them.
}

// tell logs a refusal, or counts it.
func (l *refusalLog) tell(ctx context.Context, log *slog.Logger, r refusal, now time.Time) {
	l.flush(ctx, log, now)
	attributes := []slog.Attr{
		slog.Int64("seq", r.row.Seq), slog.String("id", r.row.ID.String()), slog.String("event_type", cut(r.row.EventType)),
		slog.String("aggregate_type", cut(r.row.AggregateType)), slog.String("aggregate_id", cut(r.row.AggregateID)),
		slog.Int("attempt", r.row.Attempts+1), slog.String("error", cut(r.err.Error())),
	}
	switch {
	case l.told >= refusalsTold && r.verdict == givenUp:
		l.givenUp++
	case l.told >= refusalsTold:
		l.refused++
	case r.verdict == givenUp:
		log.LogAttrs(ctx, slog.LevelError, "event given up; see `outbox-relay dead`", attributes...)
	default:
		log.LogAttrs(ctx, slog.LevelWarn, "event refused; trying again later", attributes...)
	}
	l.told++
	l.last = attributes
}

// flush sums up what was not told once a span has ended.
func (l *refusalLog) flush(ctx context.Context, log *slog.Logger, now time.Time) {
	if now.Sub(l.since) < refusalsSpan {
		return
	}
	if l.refused+l.givenUp > 0 {
		log.LogAttrs(ctx, slog.LevelError, "more events refused or given up; see `outbox-relay dead`",
			append([]slog.Attr{slog.Int("given_up", l.givenUp), slog.Int("to_be_tried_again", l.refused)}, slog.GroupAttrs("latest", l.last...))...)
	}
	*l = refusalLog{since: now}
}

// due returns when flush has something to say; zero if it has not.
func (l *refusalLog) due() time.Time {
	if l.refused+l.givenUp == 0 {
		return time.Time{}
	}
	return l.since.Add(refusalsSpan)
}

// cut shortens, for the log, a value that somebody else made.
func cut(value string) string {
	const mark = "…"
	if len(value) <= valueShown {
		return value
	}
	end := valueShown
	for end > 0 && value[end]&0xC0 == 0x80 { // In the middle of a character.
		end--
	}
	return value[:end] + mark
}
