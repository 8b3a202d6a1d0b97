package relay

import (
	"context"
	"log/slog"
	"time"
)

// report is what the outbox has been told of why nothing can be published, so that it shows to those who look at the
// database only: when the reason changes, and again every few seconds as long as there is one, which tells that the leader
// is alive.
type report struct {
	since   time.Time // When it began; of no meaning without a reason.
	said    string    // What has been told.
	at      time.Time // When that was.
	telling bool
	answers chan told // The answer to the telling under way.
}

const (
	// reportAfter is how long a reason must have lasted,
	reportAfter = time.Second
	// reportPause is how soon after one report the next may follow,
	reportPause = 2 * time.Second
	// and reportAgain after how long the same is said again.
	reportAgain = 10 * time.Second
)

type told struct {
	reason string
	err    error
}

// begin takes note that publishing is not possible from now on.
func (r *report) begin(now time.Time) { r.since = now }

// due returns when to tell a reason, empty for none; zero for never.
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
	if due := t.report.due(t.reason); due.IsZero() || now.Before(due) || t.stopping {
		return
	}
	reason, since := t.reason, now.Sub(t.report.since)
	t.report.telling, t.report.at = true, now
	t.workers.Go(func() { t.report.answers <- told{reason, t.store.Report(ctx, reason, since)} })
}

// toldOutbox takes the answer. What could not be told is told later: whether the outbox can be reached, others find out.
func (t *term) toldOutbox(ctx context.Context, answer told) {
	t.report.telling = false
	if answer.err != nil {
		t.log.DebugContext(ctx, "the reason could not be recorded", slog.Any("error", answer.err))
		return
	}
	t.report.said = answer.reason
}
