package store

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// sweepEvery is how often at most the relay looks for rows below the floor. The looks may take one part in sweepShare of
	// the time: with millions of dead rows that vacuum may not remove, one look takes seconds.
	sweepEvery = 10 * time.Second
	sweepShare = 10
	// sweepTimeout bounds one look.
	sweepTimeout = time.Minute
	// sweepBrief is how long a look may have taken for the next one to use the session.
	sweepBrief = 20 * time.Millisecond
)

// lowest seqs to go back to, gathered from several goroutines.
type back struct {
	mu  sync.Mutex // Protects what follows.
	set bool
	to  int64
}

// lower makes the next fetch begin at a seq at the latest.
func (b *back) lower(to int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.set || to < b.to {
		b.set, b.to = true, to
	}
}

// take returns where the next fetch has to begin, if it has to go back.
func (b *back) take() (to int64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	to, ok = b.to, b.set
	b.set = false
	return to, ok
}

// Sweep looks from time to time for rows below the floor that no notification told of: rows from sessions in which triggers
// do not fire, and rows whose producers chose the seq. The next fetch begins at the lowest of them, and Sweep calls wake. It
// also keeps the archive's index up to date, and removes dead letters that are older than Options.DeadRetain. A look that takes long holds nobody up: it has a connection of its own. Sweep
// blocks until ctx ends.
func (t *Term) Sweep(ctx context.Context, wake func()) {
	timer := time.NewTimer(sweepEvery)
	defer timer.Stop()
	took := time.Duration(0)
	var letters expired
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		start := time.Now()
		found, err := t.sweep(ctx, took < sweepBrief)
		took = time.Since(start)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			t.outbox.back.lower(math.MinInt64) // The session has to do it.
		case found:
			wake()
		}
		t.outbox.expireDead(ctx, &letters)
		if err := t.summarize(ctx); err != nil && ctx.Err() == nil {
			t.outbox.log.LogAttrs(ctx, slog.LevelDebug, "could not summarize the archive", slog.Any("error", err)) // Recoveries read more.
		}
		timer.Reset(max(sweepEvery, sweepShare*took))
	}
}

// sweep looks for the lowest row below the floor that could be published now: its aggregate is neither blocked until a later
// attempt nor held back by a dead letter. If there is such a row, the next fetch begins there. A look that is expected to be
// brief uses the session, which costs no connection. If it takes longer, it is repeated on a connection of its own.
func (t *Term) sweep(ctx context.Context, brief bool) (found bool, err error) {
	floor := t.floorSeen.Load()
	if floor == math.MinInt64 {
		return false, nil
	}
	if brief {
		err = t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
			if err := t.inTerm(); err != nil {
				return err
			}
			found, err = t.sweepOn(ctx, conn, floor, 2*sweepBrief)
			return err
		})
		var refusal *pgconn.PgError
		if !errors.As(err, &refusal) || refusal.Code != "57014" {
			return found, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	err = t.outbox.with(ctx, func(conn *pgx.Conn) error {
		found, err = t.sweepOn(ctx, conn, floor, sweepTimeout)
		return err
	})
	return found, err
}

func (t *Term) sweepOn(ctx context.Context, conn *pgx.Conn, floor int64, timeout time.Duration) (found bool, err error) {
	var (
		seq   int64
		known = t.outbox.held.Load()
		held  *names
		batch = &pgx.Batch{}
	)
	if t.outbox.holdDead { // Read before the rows: an aggregate that goes on meanwhile is then still left out by name.
		t.outbox.queueHeld(batch, &held)
	}
	batch.Queue(t.outbox.stragglers(), floor).Query(func(rows pgx.Rows) error {
		_, err := pgx.ForEachRow(rows, []any{&seq}, func() error { found = true; return nil })
		return err
	})
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select set_config('statement_timeout', $1, true)`, strconv.FormatInt(timeout.Milliseconds(), 10)); err != nil {
			return err
		}
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return false, err
	}
	if found {
		t.outbox.back.lower(seq)
	}
	if held != nil {
		t.outbox.held.CompareAndSwap(known, held) // Unless it has changed meanwhile, as by someMayGoOn.
	}
	return found, nil
}

func (o *Outbox) stragglers() string {
	t := o.table
	held := ""
	if o.holdDead {
		held = `
   and not exists (select from only ` + t.dead() + ` d where ` + sameAggregate("d") + `)
   and not exists (select from only ` + t.outbox() + ` g
                    where g.given_up_at is not null and ` + sameAggregate("g") + `)`
	}
	return `
select seq from only ` + t.outbox() + ` o
 where seq < $1 and given_up_at is null
   and not exists (select from only ` + t.outbox() + ` r
                    where r.retry_at > clock_timestamp() and r.retry_at < clock_timestamp() + interval '1 day' -- Not even a relay waits longer.
                      and ` + sameAggregate("r") + `)` + held + `
 order by seq limit 1`
}

const (
	// heldNames is how many held aggregates a page leaves out by name, and nameFits how long their names may be. To leave them
	// out by name is cheaper than to look up the aggregate of each row.
	heldNames = 1000
	nameFits  = 256
)

// names are aggregates, pairwise.
type names struct{ types, ids []string }

// readHeld notes which aggregates are held, for a dead letter.
func (o *Outbox) readHeld(ctx context.Context, conn *pgx.Conn) error {
	if !o.holdDead {
		return nil
	}
	var (
		held  *names
		batch = &pgx.Batch{}
	)
	o.queueHeld(batch, &held)
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	o.held.Store(held)
	return nil
}

// queueHeld queues the query for the names of held aggregates.
func (o *Outbox) queueHeld(batch *pgx.Batch, into **names) {
	batch.Queue(`
select aggregate_type, aggregate_id
  from (select `+aggregateColumns+` from only `+o.table.dead()+`
        union select `+aggregateColumns+` from only `+o.table.outbox()+` where given_up_at is not null) held (aggregate_type, aggregate_id)
 where octet_length(aggregate_type) <= $1 and octet_length(aggregate_id) <= $1 limit $2`, nameFits, heldNames).Query(func(rows pgx.Rows) error {
		n := &names{}
		var kind, id string
		_, err := pgx.ForEachRow(rows, []any{&kind, &id}, func() error {
			n.types, n.ids = append(n.types, kind), append(n.ids, id)
			return nil
		})
		*into = n
		return err
	})
}

// someMayGoOn forgets which aggregates are held, for some of them may go on now. Call back.lower with their rows' lowest seq
// before.
func (o *Outbox) someMayGoOn() { o.held.Store(&names{}) }

// excluded are the aggregates that a page leaves out by name.
func (t *Term) excluded(f *Fetch) names {
	held := t.leftOut
	if held == nil || len(held.ids) == 0 {
		return names{f.BlockedTypes, f.BlockedIDs}
	}
	return names{slices.Concat(held.types, f.BlockedTypes), slices.Concat(held.ids, f.BlockedIDs)}
}
