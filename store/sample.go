package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Sample is a pending event, without its payload.
type Sample struct {
	Topic, AggregateType, AggregateID, EventType string
}

const (
	// sampleRows is how many of the oldest pending events samples are taken of, and
	// sampleText how long a text of a sample may be.
	sampleRows = 10_000
	sampleText = 1000
)

// Samples returns pending events that differ in their topic, aggregate type or event type, at most so many: one of each
// kind that is among the oldest of them.
func (o *Outbox) Samples(ctx context.Context, most int) (samples []Sample, err error) {
	err = o.with(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, inspectSettings); err != nil {
			return fmt.Errorf("look at pending events: %w", err)
		}
		rows, err := conn.Query(ctx, fmt.Sprintf(`
select distinct on (topic, aggregate_type, event_type) topic, aggregate_type, aggregate_id, event_type
  from (select topic, aggregate_type, aggregate_id, event_type from only %s where given_up_at is null order by seq limit %d) oldest
 where octet_length(topic) <= %[3]d and octet_length(aggregate_type) <= %[3]d and octet_length(aggregate_id) <= %[3]d and octet_length(event_type) <= %[3]d
 limit $1`, o.table.outbox(), sampleRows, sampleText), most)
		if err != nil {
			return o.explain("look at pending events", err)
		}
		if samples, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Sample]); err != nil {
			return o.explain("look at pending events", err)
		}
		return nil
	})
	return samples, err
}
