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

// listenReconnectDelay is how long the listener waits before it connects again; pgxlisten's own default is a
// minute. Until then the poll interval stands in.
const listenReconnectDelay = 250 * time.Millisecond

// rescanPayload asks the relay to look again at the table from its head or, with a colon and a seq after it, from there.
const rescanPayload = "rescan"

// askForRescan tells the relay, when the transaction commits, that rows have come back, perhaps below its floor. The
// lowest has the seq lowest.
func (t Table) askForRescan(ctx context.Context, tx pgx.Tx, lowest int64) error {
	_, err := tx.Exec(ctx, `select pg_notify($1, $2)`, t.channel(), rescanPayload+":"+strconv.FormatInt(lowest, 10))
	return err //nolint:wrapcheck // The callers explain it.
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
		return math.MinInt64, true // A later version says more; less is understood.
	}
	return lowest, true
}

// Listen calls wake whenever a producer found the relay asleep, and after each (re)connection, since what was
// notified before that went unheard. It blocks until ctx ends, and keeps a connection of its own. Nothing
// depends on its liveness: a notification that is lost is made up for by the next poll.
func (o *Outbox) Listen(ctx context.Context, wake func()) error {
	listener := &pgxlisten.Listener{
		Connect:        func(ctx context.Context) (*pgx.Conn, error) { return connect(ctx, o.listener) },
		ReconnectDelay: listenReconnectDelay,
		LogError: func(ctx context.Context, err error) {
			if ctx.Err() == nil {
				o.log.LogAttrs(ctx, slog.LevelWarn, "listening for new events was interrupted; polling meanwhile", slog.Any("error", err))
			}
		},
	}
	listener.Handle(o.table.channel(), &wakeHandler{outbox: o, wake: wake})
	if err := listener.Listen(ctx); err != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

type wakeHandler struct {
	outbox *Outbox
	wake   func()
}

// HandleNotification implements [pgxlisten.Handler].
func (h *wakeHandler) HandleNotification(_ context.Context, n *pgconn.Notification, _ *pgx.Conn) error {
	if _, ok := parseRescan(n.Payload); ok {
		h.outbox.rescan.Store(true)
	}
	h.wake()
	return nil
}

// HandleBacklog implements [pgxlisten.BacklogHandler]: it is called once LISTEN is in force.
func (h *wakeHandler) HandleBacklog(context.Context, string, *pgx.Conn) error {
	h.wake()
	return nil
}
