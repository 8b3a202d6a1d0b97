package store

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// sweepEvery is how often rows below the floor are looked for, at most, and sweepShare which part of the time that may
	// take: with millions of dead rows that vacuum may not remove, one look lasts seconds.
	sweepEvery = 10 * time.Second
	sweepShare = 10
	// sweepTimeout bounds one look.
	sweepTimeout = time.Minute
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

// Sweep looks from time to time for rows below the floor that no notification told of: those of sessions in which triggers
// do not fire, and rows whose producers gave them a seq of their own. It calls wake when it has found some, for the next
// fetch begins there. It blocks until ctx ends. It works on connections of its own, so that a look that takes long holds
// nobody up.
func (o *Outbox) Sweep(ctx context.Context, wake func()) {
	timer := time.NewTimer(sweepEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		start := time.Now()
		found, seq, err := o.sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			o.back.lower(math.MinInt64) // The session has to do it.
		case found:
			o.back.lower(seq)
			wake()
		}
		timer.Reset(max(sweepEvery, sweepShare*time.Since(start)))
	}
}

// sweep looks for the lowest row below the floor that waits for nothing: neither it nor its aggregate is to be tried again
// later, or is held.
func (o *Outbox) sweep(ctx context.Context) (found bool, seq int64, err error) {
	floor := o.floorSeen.Load()
	if floor == math.MinInt64 {
		return false, 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	err = o.with(ctx, func(conn *pgx.Conn) error {
		if err := o.readHeld(ctx, conn); err != nil {
			return err
		}
		err := conn.QueryRow(ctx, o.stragglers(), floor).Scan(&seq)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		found = err == nil
		return err
	})
	return found, seq, err
}

func (o *Outbox) stragglers() string {
	t := o.table
	held := ""
	if o.holdDead {
		held = `
   and not exists (select from ` + t.dead() + ` d where d.aggregate_type = o.aggregate_type and d.aggregate_id = o.aggregate_id)
   and not exists (select from ` + t.outbox() + ` g
                    where g.given_up_at is not null and g.aggregate_type = o.aggregate_type and g.aggregate_id = o.aggregate_id)`
	}
	return `
select seq from ` + t.outbox() + ` o
 where seq < $1 and given_up_at is null
   and not exists (select from ` + t.outbox() + ` r
                    where r.retry_at > clock_timestamp() and r.retry_at < clock_timestamp() + interval '1 day' -- Not even a relay waits longer.
                      and r.aggregate_type = o.aggregate_type and r.aggregate_id = o.aggregate_id)` + held + `
 order by seq limit 1`
}

const (
	// heldNames is how many held aggregates are left out of a page by name, which is cheaper than to look each row's up,
	// and nameFits how long their names may be.
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
	var n names
	rows, err := conn.Query(ctx, `
select aggregate_type, aggregate_id
  from (select aggregate_type, aggregate_id from `+o.table.dead()+`
        union select aggregate_type, aggregate_id from `+o.table.outbox()+` where given_up_at is not null) held
 where octet_length(aggregate_type) <= $1 and octet_length(aggregate_id) <= $1 limit $2`, nameFits, heldNames)
	if err != nil {
		return err
	}
	var kind, id string
	if _, err := pgx.ForEachRow(rows, []any{&kind, &id}, func() error {
		n.types, n.ids = append(n.types, kind), append(n.ids, id)
		return nil
	}); err != nil {
		return err
	}
	o.held.Store(&n)
	return nil
}

// excluded are the aggregates that a page leaves out by name.
func (o *Outbox) excluded(f *Fetch) names {
	held := o.leftOut
	if held == nil || len(held.ids) == 0 {
		return names{f.BlockedTypes, f.BlockedIDs}
	}
	return names{slices.Concat(held.types, f.BlockedTypes), slices.Concat(held.ids, f.BlockedIDs)}
}
