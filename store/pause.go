package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A person can pause an outbox: then no relay publishes, whichever leads, and events wait in order. The pause is a row of a table
// of its own, so it outlives relays and restarts. Whoever changes the table notifies the leader, which otherwise asks twice a
// second in a round trip that it makes anyway; a relay that does not lead asks when it stands for election.

// pauseEvery is how often a leader asks whether the outbox is paused.
const pauseEvery = 500 * time.Millisecond

// pausePayload tells a leader to ask now.
const pausePayload = "pause"

// Pause is a person's order that nothing be published.
type Pause struct {
	// Reason and By say why, and who ordered it, for people.
	Reason, By string
	// Since is when it began, by the database's clock. For is how long ago that was when the pause was read, at Read.
	Since time.Time
	For   time.Duration
	Read  time.Time
}

// Lasts returns for how long the pause has lasted.
func (p *Pause) Lasts() time.Duration { return max(p.For+time.Since(p.Read), 0) }

// ErrNoReason is returned by [Outbox.Pause] without a reason.
var ErrNoReason = errors.New("pause: a reason is needed: others will ask for it")

// Pause pauses the outbox: the relays publish nothing from within a second on, until [Outbox.Resume]. Events wait, and their
// order holds. Reason and by are shown to whoever asks. If the outbox is paused already, they take the place of the former ones,
// and Since stays.
func (o *Outbox) Pause(ctx context.Context, reason, by string) error {
	if reason = recordable(reason); reason == "" {
		return ErrNoReason
	}
	return o.explain("pause the outbox", o.changePause(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
insert into `+o.table.pause()+` (reason, paused_by, paused_at) values ($1, $2, clock_timestamp())
    on conflict (one) do update set reason = excluded.reason, paused_by = excluded.paused_by`, reason, recordable(by))
		return err
	}))
}

// Resume ends a pause, and returns it; nil if the outbox was not paused.
func (o *Outbox) Resume(ctx context.Context) (ended *Pause, err error) {
	err = o.changePause(ctx, func(tx pgx.Tx) (err error) {
		if ended, err = o.table.readPause(ctx, tx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `delete from only `+o.table.pause())
		return err
	})
	if err != nil {
		return nil, o.explain("resume the outbox", err)
	}
	return ended, nil
}

// changePause changes the table, on disk when it returns, and tells the leader.
func (o *Outbox) changePause(ctx context.Context, change func(tx pgx.Tx) error) error {
	return o.with(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `set local synchronous_commit = on`); err != nil {
				return err
			}
			if err := change(tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `select pg_notify($1, $2)`, o.table.channel(), pausePayload)
			return err
		})
	})
}

// Paused returns the pause that this outbox was found in when [Term.RoundTrip] or [Outbox.Stand] last asked; nil if there was
// none, or neither has been called. RoundTrip asks twice a second, and whenever a request wants it.
func (o *Outbox) Paused() *Pause { return o.paused.Load() }

func (t Table) selectPause() string {
	return `select reason, paused_by, paused_at, clock_timestamp() - paused_at from only ` + t.pause() + ` limit 1`
}

// scanPause reads what selectPause selects; nil for nothing.
func scanPause(rows pgx.Rows) (found *Pause, err error) {
	p := Pause{Read: time.Now()}
	_, err = pgx.ForEachRow(rows, []any{&p.Reason, &p.By, &p.Since, &p.For}, func() error { found = &p; return nil })
	return found, err
}

func (t Table) readPause(ctx context.Context, q querier) (*Pause, error) {
	rows, err := q.Query(ctx, t.selectPause())
	if err != nil {
		return nil, fmt.Errorf("read the pause: %w", err)
	}
	return scanPause(rows)
}

// queuePause queues the question whether the outbox is paused.
func (o *Outbox) queuePause(batch *pgx.Batch) {
	batch.Queue(o.table.selectPause()).Query(func(rows pgx.Rows) error {
		found, err := scanPause(rows)
		if err == nil {
			o.paused.Store(found)
			o.pauseAsked = time.Now()
		}
		return err
	})
}

// askPause queues it in a round trip, if it is due or wanted.
func (o *Outbox) askPause(batch *pgx.Batch, wanted bool, now time.Time) {
	if told := o.pauseTold.Swap(false); told || wanted || now.Sub(o.pauseAsked) >= pauseEvery {
		o.queuePause(batch)
	}
}
