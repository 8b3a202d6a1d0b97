package relay

import (
	"context"
	"log/slog"
	"time"
)

// report tells the outbox why nothing can be published, for those who look at the database only. It does so when the reason
// changes, and repeats the reason every few seconds, which shows that the leader is alive.
type report struct {
	since   time.Time // When publishing became impossible; without meaning while it is possible.
	said    string    // The reason that the outbox was told last.
	at      time.Time // When it was told that.
	telling bool      // The outbox is being told.
}

const (
	// reportAfter is for how long publishing must have been impossible before the outbox is told.
	reportAfter = time.Second
	// reportPause is the least time between two reports.
	reportPause = 2 * time.Second
	// reportAgain is after how long the same reason is told again.
	reportAgain = 10 * time.Second
)

type told struct {
	reason string
	err    error
}

// begin notes that publishing is not possible from now on.
func (r *report) begin(now time.Time) { r.since = now }

// due returns when to tell the outbox the reason, which is empty if there is none; zero for never.
func (r *report) due(reason string) time.Time {
	switch {
	case r.telling || reason == "" && r.said == "":
		return time.Time{}
	case reason == "":
		return r.at // At once: it is no trouble any more.
	case reason == r.said:
		return r.at.Add(reportAgain)
	}
	due, next := r.since.Add(reportAfter), r.at.Add(reportPause)
	if due.Before(next) {
		return next
	}
	return due
}

// tellOutbox has the outbox told when that is due.
func (t *term) tellOutbox(ctx context.Context, now time.Time) {
	reason, since, due := t.core.tell(now)
	if due {
		t.start(func() { t.reported <- told{reason, t.inOutbox.Report(ctx, reason, since)} })
	}
}

// tell reports whether the outbox is to be told the reason now, and since when it has been so.
func (c *core) tell(now time.Time) (reason string, since time.Duration, due bool) {
	r := &c.report
	if at := r.due(c.circuit.reason); at.IsZero() || now.Before(at) || c.stopping {
		return "", 0, false
	}
	r.telling, r.at = true, now
	return c.circuit.reason, now.Sub(r.since), true
}

// toldOutbox takes the result. A reason that could not be told is told later. It is not for the report to find out whether
// the outbox can be reached.
func (t *term) toldOutbox(ctx context.Context, answer told) {
	t.core.report.telling = false
	if answer.err != nil {
		t.log.DebugContext(ctx, "the reason could not be recorded", slog.Any("error", answer.err))
		return
	}
	t.core.report.said = answer.reason
}
