package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgxlisten"
)

const (
	// listenPause is how long the listener waits before it connects again, doubling to listenPauseMax as long as it does not
	// stay connected for that long. Until then the poll interval stands in.
	listenPause    = 250 * time.Millisecond
	listenPauseMax = 30 * time.Second
	// listenReminder is when an interruption that lasts is logged again. It doubles each time.
	listenReminder = time.Minute
)

// rescanPayload asks the relay to look again at the table from its head or, with a colon and a seq after it, from there.
const rescanPayload = "rescan"

// askForRescan tells the relay, when the transaction commits, that rows have come back, perhaps below its floor. lowest is
// the lowest of their seqs.
func (t Table) askForRescan(ctx context.Context, tx pgx.Tx, lowest int64) error {
	_, err := tx.Exec(ctx, `select pg_notify($1, $2)`, t.channel(), rescanPayload+":"+strconv.FormatInt(lowest, 10))
	return err
}

// parseRescan reads such a payload; without a seq it is the lowest there is.
func parseRescan(payload string) (lowest int64, ok bool) {
	if payload == rescanPayload {
		return math.MinInt64, true
	}
	seq, ok := strings.CutPrefix(payload, rescanPayload+":")
	if !ok {
		return 0, false
	}
	lowest, err := strconv.ParseInt(seq, 10, 64)
	if err != nil {
		return math.MinInt64, true // From a later version: what it adds is not understood.
	}
	return lowest, true
}

// Listen calls wake whenever a producer found the relay asleep, and after each (re)connection, since what was
// notified before that went unheard. It blocks until ctx ends, and keeps a connection of its own. Nothing depends on its
// liveness: the next poll makes up for a lost notification.
func (o *Outbox) Listen(ctx context.Context, wake func()) error {
	l := &listening{outbox: o, wake: wake}
	listener := &pgxlisten.Listener{
		Connect:        l.connect,
		ReconnectDelay: -1, // None of its own: connect waits.
		LogError:       l.interrupted,
	}
	listener.Handle(o.table.channel(), l)
	defer o.listening.Store(false)
	if err := listener.Listen(ctx); err != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// Listening reports whether Listen runs and hears notifications.
func (o *Outbox) Listening() bool { return o.listening.Load() }

// listening is the state of one Listen. pgxlisten calls its methods one after the other.
type listening struct {
	outbox *Outbox
	wake   func()

	pause    time.Duration // Before the next connection; 0 for the first.
	since    time.Time     // When the connection was there, or when it was lost.
	lost     bool
	remind   time.Time // When the loss is told again,
	reminder time.Duration
	reason   string // and the reason that was told.
}

// connect waits after a failure, and longer after each.
func (l *listening) connect(ctx context.Context) (*pgx.Conn, error) {
	if l.pause > 0 {
		timer := time.NewTimer(l.pause)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return l.outbox.connector.connect(ctx, forListener())
}

// interrupted notes a failure. It logs the failure when it begins, when its reason changes and, less and less often, as long
// as it lasts.
func (l *listening) interrupted(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	l.outbox.listening.Store(false)
	if !l.lost {
		if now.Sub(l.since) > listenPauseMax {
			l.pause = 0
		}
		l.lost, l.since, l.reason = true, now, ""
	}
	l.pause = min(max(2*l.pause, listenPause), listenPauseMax)
	switch {
	case l.reason != err.Error():
		l.reason, l.reminder = err.Error(), listenReminder
	case now.Before(l.remind):
		return
	}
	l.remind, l.reminder = now.Add(l.reminder), 2*l.reminder
	l.outbox.log.LogAttrs(ctx, slog.LevelWarn, "not listening for new events; polling meanwhile", slog.Any("error", err), slog.Duration("for", now.Sub(l.since)))
}

// HandleNotification implements [pgxlisten.Handler].
func (l *listening) HandleNotification(_ context.Context, n *pgconn.Notification, _ *pgx.Conn) error {
	if from, ok := parseRescan(n.Payload); ok {
		l.outbox.back.lower(from)
		l.outbox.someMayGoOn()
	}
	if n.Payload == pausePayload {
		l.outbox.pauseTold.Store(true)
	}
	l.wake()
	return nil
}

// HandleBacklog implements [pgxlisten.BacklogHandler]: it is called once LISTEN is in force.
func (l *listening) HandleBacklog(ctx context.Context, _ string, _ *pgx.Conn) error {
	now := time.Now()
	if l.lost {
		l.outbox.log.LogAttrs(ctx, slog.LevelInfo, "listening for new events again", slog.Duration("after", now.Sub(l.since)))
	}
	l.lost, l.since = false, now
	l.outbox.listening.Store(true)
	l.wake()
	return nil
}
