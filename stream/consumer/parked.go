package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
)

// ErrNotParked says that no parked event has that number.
var ErrNotParked = errors.New("no parked event has that number")

// Parked is a message that was given up.
type Parked struct {
	Number   int64 // Names it, for [Consumer.Redo].
	Sequence uint64
	Subject  string
	Headers  nats.Header
	Data     []byte
	Reason   string
	Attempts int
	ParkedAt time.Time
}

// Parked lists what this consumer has parked, oldest first; at most limit, or all if that is 0.
func (c *Consumer) Parked(ctx context.Context, limit int) ([]Parked, error) {
	var most *int
	if limit > 0 {
		most = &limit
	}
	rows, err := c.config.Pool.Query(ctx, c.tables.parked, c.config.Name, most)
	if err == nil {
		var list []Parked
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Parked, err error) {
			var sequence int64
			var headers []byte
			if err := row.Scan(&p.Number, &sequence, &p.Subject, &headers, &p.Data, &p.Reason, &p.Attempts, &p.ParkedAt); err != nil {
				return p, err
			}
			p.Sequence = uint64(sequence)
			return p, json.Unmarshal(headers, &p.Headers)
		})
		if err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list what is parked: %w", err)
}

// Redo calls the handler for a parked event, in one transaction with its removal from outbox_parked: if the handler fails, the
// event stays there. Later events of its aggregate have been handled meanwhile. The error is [ErrNotParked] if there is no such
// event.
func (c *Consumer) Redo(ctx context.Context, number int64) error {
	err := pgx.BeginFunc(ctx, c.config.Pool, func(tx pgx.Tx) error {
		var (
			sequence int64
			subject  string
			doc      []byte
			data     []byte
			headers  nats.Header
		)
		if err := tx.QueryRow(ctx, c.tables.redone, c.config.Name, number).Scan(&sequence, &subject, &doc, &data); errors.Is(err, pgx.ErrNoRows) {
			return ErrNotParked
		} else if err != nil {
			return err
		}
		if err := json.Unmarshal(doc, &headers); err != nil {
			return err
		}
		event, err := stream.Decode(headers, data)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, c.config.HandlerTimeout)
		defer cancel()
		return c.config.Handle(ctx, &transaction{conn: tx.Conn()}, Event{Event: event, Sequence: uint64(sequence), Subject: subject, Attempt: 1})
	})
	if err != nil {
		return fmt.Errorf("parked event %d: %w", number, err)
	}
	return nil
}
