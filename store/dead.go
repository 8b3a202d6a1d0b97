package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// DeadLetter is an event that was given up: the broker refused it as often as allowed.
type DeadLetter struct {
	Row

	LastError string
	DiedAt    time.Time
}

// DeadFilter selects dead letters. The zero value selects all.
type DeadFilter struct {
	// Topic and AggregateType select by equality where they are not empty; so does AggregateID.
	Topic, AggregateType, AggregateID string
	// After selects those with a higher seq: the last one of the page before.
	After int64
	// Limit bounds the result; 0 means no bound.
	Limit int
}

const deadColumns = `seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers::text, created_at, attempts, last_error, died_at`

// DeadLetters lists dead letters in seq order. With payload false their Data is left out.
func (o *Outbox) DeadLetters(ctx context.Context, filter DeadFilter, payload bool) ([]DeadLetter, error) {
	columns := deadColumns
	if !payload {
		columns = `seq, id, topic, aggregate_type, aggregate_id, event_type, ''::bytea, headers::text, created_at, attempts, last_error, died_at`
	}
	var limit *int
	if filter.Limit > 0 {
		limit = &filter.Limit
	}
	var letters []DeadLetter
	err := o.with(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
select `+columns+` from `+o.table.dead()+`
 where ($1 = '' or topic = $1) and ($2 = '' or aggregate_type = $2) and ($3 = '' or aggregate_id = $3) and seq > $4
 order by seq limit $5`, filter.Topic, filter.AggregateType, filter.AggregateID, filter.After, limit)
		if err != nil {
			return err //nolint:wrapcheck // Explained below.
		}
		letters, err = pgx.CollectRows(rows, scanDeadLetter)
		return err //nolint:wrapcheck // Explained below.
	})
	return letters, o.explain("list dead letters", err)
}

// DeadLetter returns one dead letter with its payload; [ErrNoDeadLetter] if there is none.
func (o *Outbox) DeadLetter(ctx context.Context, key DeadKey) (DeadLetter, error) {
	var letter DeadLetter
	err := o.with(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `select `+deadColumns+` from `+o.table.dead()+` where `+key.condition(), key.value())
		if err != nil {
			return err //nolint:wrapcheck // Explained below.
		}
		letter, err = pgx.CollectOneRow(rows, scanDeadLetter)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("%w: %s", ErrNoDeadLetter, key)
		}
		return err //nolint:wrapcheck // Explained below.
	})
	return letter, o.explain("show dead letter", err)
}

func scanDeadLetter(row pgx.CollectableRow) (DeadLetter, error) {
	var d DeadLetter
	err := row.Scan(&d.Seq, &d.ID, &d.Topic, &d.AggregateType, &d.AggregateID, &d.EventType, &d.Data, &d.Headers, &d.CreatedAt, &d.Attempts, &d.LastError, &d.DiedAt)
	return d, err //nolint:wrapcheck // The callers explain it.
}

// DeadKey names a dead letter by its seq or by its event id.
type DeadKey struct {
	Seq int64
	ID  uuid.UUID
}

// String returns the key as a person would type it.
func (k DeadKey) String() string {
	if k.ID != uuid.Nil {
		return "id " + k.ID.String()
	}
	return fmt.Sprintf("seq %d", k.Seq)
}

func (k DeadKey) condition() string {
	if k.ID != uuid.Nil {
		return "id = $1"
	}
	return "seq = $1"
}

func (k DeadKey) value() any {
	if k.ID != uuid.Nil {
		return k.ID
	}
	return k.Seq
}

// Requeue puts dead letters back into the outbox, with their seq and no attempts, so that they are published
// before what their aggregate produced later and still waits. All of keys or none; [ErrNoDeadLetter] if one
// is not there. They keep their last error, with which the table takes what it would refuse from a producer. Seqs are unique, ids as good as their producers made them: all letters of an id are taken.
func (o *Outbox) Requeue(ctx context.Context, keys ...DeadKey) (int, error) {
	const columns = `seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at`
	return o.takeDead(ctx, "requeue", keys, func(condition string) string {
		return `
with back as (delete from ` + o.table.dead() + ` where ` + condition + ` returning ` + columns + `, last_error)
insert into ` + o.table.outbox() + ` (` + columns + `, last_error) overriding system value select ` + columns + `, last_error from back`
	})
}

// Discard removes dead letters for good. All of keys or none; [ErrNoDeadLetter] if one is not there.
func (o *Outbox) Discard(ctx context.Context, keys ...DeadKey) (int, error) {
	return o.takeDead(ctx, "discard", keys, func(condition string) string {
		return `delete from ` + o.table.dead() + ` where ` + condition
	})
}

// takeDead runs statement for each of keys in one transaction and tells the relay to look again.
func (o *Outbox) takeDead(ctx context.Context, operation string, keys []DeadKey, statement func(condition string) string) (int, error) {
	taken := 0
	err := o.with(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { //nolint:wrapcheck // Explained below.
			for _, key := range keys {
				tag, err := tx.Exec(ctx, statement(key.condition()), key.value())
				if err != nil {
					return err //nolint:wrapcheck // Explained below.
				}
				if tag.RowsAffected() == 0 {
					return fmt.Errorf("%w: %s", ErrNoDeadLetter, key)
				}
				taken += int(tag.RowsAffected())
			}
			return o.table.askForRescan(ctx, tx) // Also since held aggregates are free again.
		})
	})
	if err != nil {
		return 0, o.explain(operation+" dead letters", err)
	}
	return taken, nil
}
