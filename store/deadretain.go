package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// expireEvery is how often a leader looks for dead letters that have been kept long enough, and expireAtOnce how many it
	// removes at once.
	expireEvery  = time.Minute
	expireAtOnce = 1000
)

// errHoldsDead is for options that contradict each other.
var errHoldsDead = errors.New("options DeadRetain and HoldDead exclude each other: a dead letter that is removed would let its aggregate go on, which is for a person to decide")

// expired is a look for dead letters that have been kept long enough. It belongs to Sweep.
type expired struct{ next time.Time }

// expireDead removes dead letters that are older than Options.DeadRetain, when that is due, and logs how many they were. Those that
// could not leave the outbox stay, as they are in nobody's way.
func (o *Outbox) expireDead(ctx context.Context, e *expired) {
	if o.deadRetain == 0 || time.Now().Before(e.next) {
		return
	}
	e.next = time.Now().Add(expireEvery)
	removed, err := o.removeDead(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		o.log.LogAttrs(ctx, slog.LevelWarn, "cannot remove old dead letters", slog.Any("error", err))
	case removed == expireAtOnce:
		e.next = time.Time{} // There may be more.
	}
	if removed > 0 {
		o.log.LogAttrs(ctx, slog.LevelInfo, "removed dead letters that were kept long enough", slog.Int64("letters", removed), slog.Duration("dead_retain", o.deadRetain))
	}
}

func (o *Outbox) removeDead(ctx context.Context) (removed int64, err error) {
	err = o.with(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, inspectSettings); err != nil {
			return fmt.Errorf("remove dead letters: %w", err)
		}
		tag, err := conn.Exec(ctx, `
delete from only `+o.table.dead()+`
 where letter in (select letter from only `+o.table.dead()+` where died_at < clock_timestamp() - $1::bigint * interval '1 microsecond' order by letter limit $2 for update skip locked)`,
			o.deadRetain.Microseconds(), expireAtOnce)
		removed = tag.RowsAffected()
		return o.explain("remove dead letters", err)
	})
	return removed, err
}
