package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
)

// knownMost is how many aggregates a lane remembers of whose events some came again.
const knownMost = 10_000

// reasonMost bounds what is recorded of an error.
const reasonMost = 2000

// lane works off the events of its share of the aggregates, one transaction at a time.
type lane struct {
	*term

	queue chan *message
	known map[string]entered // Of aggregates whose events came again.

	mu   sync.Mutex
	held *Held // The event that fails.
}

// entered is what the inbox says of an aggregate's older events. All up to the Seq below are taken for handled, provided that the
// stream had them before sequence.
type entered struct {
	below    int64
	sequence uint64
}

// of tells whether an event was handled, or is stale, so that this cannot be told: it is a new message, as old as others that
// were handled. It may be a repetition that somebody published, or an event that was held up for long, as a dead letter is.
func (e entered) of(m *message) (handled, stale bool) {
	old := m.event.Seq <= e.below
	return old && m.sequence <= e.sequence, old && m.sequence > e.sequence
}

// run works until ctx ends. What is at work then goes on until work ends.
func (l *lane) run(ctx, work context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-l.queue:
			l.handle(ctx, work, l.gather(m))
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// gather adds to a message those that wait, as many as go into one transaction.
func (l *lane) gather(first *message) []*message {
	batch := []*message{first}
	for len(batch) < l.config.Batch {
		select {
		case m := <-l.queue:
			batch = append(batch, m)
		default:
			return batch
		}
	}
	return batch
}

// handle handles messages: together, if that goes well, otherwise one by one.
func (l *lane) handle(ctx, work context.Context, batch []*message) {
	var together []*message
	for _, m := range batch {
		switch {
		case m.damaged != nil:
		case l.skips(m):
			m.settled = true
		default:
			together = append(together, m)
		}
	}
	if len(together) > 1 && l.apply(work, 1, together...) == nil {
		for _, m := range together {
			m.settled = !m.stale
		}
	}
	for _, m := range batch {
		if !m.settled && !l.insist(ctx, work, m) {
			return
		}
		l.done(m)
	}
}

// skips reports whether it is known, without a look at the inbox, that an event was handled.
func (l *lane) skips(m *message) bool {
	e, known := l.known[m.key]
	if handled, _ := e.of(m); !known || !handled {
		return false
	}
	l.counts.skipped.Add(1)
	return true
}

// insist tries until a message is handled or parked. It reports whether that was before ctx ended.
func (l *lane) insist(ctx, work context.Context, m *message) bool {
	defer l.hold(nil)
	var (
		attempts int
		since    = time.Now()
		pause    = l.config.RetryBackoff
		giveUp   = m.damaged // Why it is parked.
	)
	for {
		var err error
		if m.stale {
			giveUp = errStale
		}
		if giveUp != nil {
			err = l.park(work, m, attempts, giveUp)
		} else {
			err = l.apply(work, attempts+1, m)
		}
		switch {
		case err != nil:
		case m.stale && giveUp == nil: // The inbox has just said so.
			continue
		default:
			return true
		}
		if failed, ok := errors.AsType[*handlerError](err); ok {
			attempts++
			l.counts.retries.Add(1)
			if isPermanent(failed.err) || l.config.MaxAttempts > 0 && attempts >= l.config.MaxAttempts {
				giveUp = failed.err
				continue
			}
		}
		if ctx.Err() != nil {
			return false
		}
		if attempts&(attempts-1) == 0 { // The first, second, fourth, …: it may fail for days.
			l.log.WarnContext(ctx, "an event is not handled; trying again", l.describe(m), slog.Int("attempts", attempts), slog.Duration("in", pause), slog.Any("error", err))
		}
		l.hold(&Held{
			AggregateType: m.event.AggregateType, AggregateID: m.event.AggregateID, ID: m.event.ID, Seq: m.event.Seq, Sequence: m.sequence,
			Attempts: attempts, Since: since, Reason: err.Error(),
		})
		sleep(ctx, pause)
		if ctx.Err() != nil {
			return false
		}
		pause = min(2*pause, l.config.RetryBackoffMax)
	}
}

func (l *lane) describe(m *message) slog.Attr {
	return slog.Group("event",
		slog.Int64("seq", m.event.Seq), slog.String("id", m.event.ID.String()), slog.String("type", m.event.EventType),
		slog.String("aggregate_type", m.event.AggregateType), slog.String("aggregate_id", m.event.AggregateID), slog.Uint64("sequence", m.sequence))
}

func (l *lane) hold(h *Held) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = h
}

// handlerError is the handler's own failure, which counts as an attempt.
type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }
func (e *handlerError) Unwrap() error { return e.err }

// errStale is why a stale event is parked.
var errStale = fmt.Errorf("it comes after more than %d later events of its aggregate, so the inbox cannot tell whether it was handled before; if it was not, as a dead letter that was requeued late, Redo applies it", remembered)

// apply handles events in one transaction. Events that were handled before are skipped.
func (l *lane) apply(ctx context.Context, attempt int, messages ...*message) error {
	fresh, err := l.transact(ctx, messages, func(tx *transaction, fresh []bool) error {
		for i, m := range messages {
			if !fresh[i] {
				continue
			}
			event := Event{Event: m.event, Sequence: m.sequence, Subject: m.Subject(), Attempt: attempt}
			err := l.call(ctx, tx, event)
			switch {
			case tx.conn.IsClosed(): // By Postgres or the network: whatever the handler says, that is why.
				return errors.Join(errors.New("the connection to Postgres was lost"), err)
			case rolledBack(err):
				return err
			case err != nil:
				return &handlerError{err}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, m := range messages {
		switch {
		case fresh[i]:
			l.counts.applied.Add(1)
		case !m.stale:
			l.counts.skipped.Add(1)
		}
	}
	return nil
}

// rolledBack reports whether Postgres has rolled back a transaction because of others at the same time: a deadlock, or a
// serialization failure. That is no fault of the event, and it may be tried again at once.
func rolledBack(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.HasPrefix(pg.Code, "40")
}

// call calls the handler.
func (l *lane) call(ctx context.Context, tx pgx.Tx, event Event) (err error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.HandlerTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panics: %v\n%s", p, debug.Stack())
		}
	}()
	return l.config.Handle(ctx, tx, event)
}

// transact begins a transaction that enters the messages' events in the inbox, calls f with which of them are new, and commits.
// If none is new, it does not call f. Messages that have no event, or a stale one, are not entered, and count as new.
func (l *lane) transact(ctx context.Context, messages []*message, f func(tx *transaction, fresh []bool) error) (fresh []bool, err error) {
	pooled, err := l.config.Pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer pooled.Release() // The pool drops a connection that is still in a transaction.
	conn := pooled.Conn()

	fresh = make([]bool, len(messages))
	begin := &pgx.Batch{}
	begin.Queue(`begin`)
	begin.Queue(`select set_config('idle_in_transaction_session_timeout', $1, true)`, strconv.FormatInt((l.config.HandlerTimeout+time.Second).Milliseconds(), 10))
	for i, m := range messages {
		if m.damaged != nil || m.stale {
			fresh[i] = true
			continue
		}
		begin.Queue(l.tables.enter, l.config.Name, m.key, m.event.Seq, int64(m.sequence)).Exec(func(tag pgconn.CommandTag) error {
			if tag.RowsAffected() > 0 {
				fresh[i] = true
			}
			return nil
		})
	}
	err = conn.SendBatch(ctx, begin).Close()
	if err == nil && slices.Contains(fresh, false) {
		err = l.lookUp(ctx, conn, messages, fresh)
	}
	if err == nil && slices.Contains(fresh, true) {
		err = f(&transaction{conn: conn}, fresh)
	} else if err == nil {
		l.rollBack(ctx, conn)
		return fresh, nil
	}
	if err != nil {
		l.rollBack(ctx, conn)
		return nil, err
	}
	tag, err := conn.Exec(ctx, `commit`)
	switch {
	case err != nil: // It may have been committed; the inbox will tell.
		return nil, err
	case tag.String() != "COMMIT":
		return nil, &handlerError{errors.New("the transaction was rolled back: the handler went on after a statement had failed in it")}
	}
	return fresh, nil
}

// rollBack ends a transaction, or the connection with it.
func (l *lane) rollBack(ctx context.Context, conn *pgx.Conn) {
	if conn.IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	if _, err := conn.Exec(ctx, `rollback`); err != nil {
		_ = conn.Close(ctx)
	}
}

// lookUp finds out, for messages whose events are not new, which of them are stale; and remembers what the inbox says, so that
// others which come again need no look at it.
func (l *lane) lookUp(ctx context.Context, conn *pgx.Conn, messages []*message, fresh []bool) error {
	if len(l.known) > knownMost {
		clear(l.known)
	}
	batch := &pgx.Batch{}
	for i, m := range messages {
		if fresh[i] {
			continue
		}
		batch.Queue(l.tables.entered, l.config.Name, m.key).QueryRow(func(row pgx.Row) error {
			var e entered
			var sequence int64
			if err := row.Scan(&e.below, &sequence); err != nil {
				return err
			}
			e.sequence = uint64(sequence)
			l.known[m.key] = e
			_, m.stale = e.of(m)
			return nil
		})
	}
	return conn.SendBatch(ctx, batch).Close()
}

// park puts a message among those that were given up, unless its event was handled before.
func (l *lane) park(ctx context.Context, m *message, attempts int, reason error) error {
	var key *string
	var seq *int64
	if m.damaged == nil {
		key, seq = &m.key, &m.event.Seq
	}
	headers, err := json.Marshal(storableHeaders(m.Headers()))
	if err != nil {
		return err
	}
	why := storable(reason.Error())
	fresh, err := l.transact(ctx, []*message{m}, func(tx *transaction, _ []bool) error {
		_, err := tx.Exec(ctx, l.tables.park, l.config.Name, m.created, int64(m.sequence), storable(m.Subject()), headers, m.Data(), key, seq, why, attempts)
		return err
	})
	if err != nil {
		return fmt.Errorf("park: %w", err)
	}
	if fresh[0] {
		l.counts.parked.Add(1)
		l.log.ErrorContext(ctx, "an event is parked; see table outbox_parked", l.describe(m), slog.Int("attempts", attempts), slog.String("error", why))
	}
	return nil
}

// storable makes of a text what Postgres takes, not too long.
func storable(text string) string {
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", `\0`), "\uFFFD")
	if len(text) > reasonMost {
		text = strings.ToValidUTF8(text[:reasonMost], "") + " (cut)"
	}
	return text
}

// storableHeaders returns headers without what Postgres' JSON cannot hold.
func storableHeaders(headers nats.Header) nats.Header {
	fit := make(nats.Header, len(headers))
	for name, values := range headers {
		for _, value := range values {
			fit.Add(strings.ReplaceAll(name, "\x00", `\0`), strings.ToValidUTF8(strings.ReplaceAll(value, "\x00", `\0`), "\uFFFD"))
		}
	}
	return fit
}
