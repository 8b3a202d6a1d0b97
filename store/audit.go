package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// AuditScope is what of the archive an audit compares with the stream.
type AuditScope struct {
	// Stream is the stream to which the events were published.
	Stream string
	// StreamCreated is when that stream was created, as the latest leader knew it, to the microsecond. If it is another
	// stream by now, the events' After are of the former one. Zero if no leader has recorded it.
	StreamCreated time.Time
	// Since is the time from which on events were recorded as published; zero for all.
	Since time.Time
	// Now is the database's clock.
	Now time.Time
	// Events is how many events there are.
	Events int64
}

// AuditedEvent is an archived event, as an audit compares it with the stream.
type AuditedEvent struct {
	Ref

	// After is a sequence of the stream after which the event was stored.
	After uint64
	// Aggregate is the same for all events of an aggregate, and differs from that of others.
	Aggregate int64
	// PublishedAt is when it was recorded that the event is published, in microseconds since 1970.
	PublishedAt int64
}

// AuditScope returns what of the archive was published to a stream since a moment; the zero Moment stands for all. It counts
// the events: a million take about a tenth of a second.
func (o *Outbox) AuditScope(ctx context.Context, stream string, since Moment) (AuditScope, error) {
	s := AuditScope{Stream: stream}
	err := o.with(ctx, func(conn *pgx.Conn) error {
		var created *time.Time
		err := conn.QueryRow(ctx, `
select clock_timestamp(), (select stream_created from only `+o.table.relay()+` where stream = $1)`, stream).Scan(&s.Now, &created)
		if err != nil {
			return err
		}
		if created != nil {
			s.StreamCreated = *created
		}
		if s.Since = since.Time; since.Ago != 0 {
			s.Since = s.Now.Add(-since.Ago)
		}
		condition, args := s.condition()
		return conn.QueryRow(ctx, `select count(*) from `+o.table.published()+` p where `+condition, args...).Scan(&s.Events)
	})
	return s, o.explain("count the archive", err)
}

// condition selects a scope's events from the archive p.
func (s *AuditScope) condition() (string, []any) {
	since := pgtype.Timestamptz{Valid: true, InfinityModifier: pgtype.NegativeInfinity}
	if !s.Since.IsZero() {
		since = pgtype.Timestamptz{Valid: true, Time: s.Since}
	}
	return `p.stream = $1 and p.published_at >= $2`, []any{s.Stream, since}
}

// Audit passes the scope's archived events to visit, in no particular order: those of one of so many shares, each of which has
// all events of some aggregates. It reads in one snapshot, and what is archived meanwhile is left out. A million events take
// about a second, in which the archive's oldest part cannot be emptied; the relay puts that off.
func (o *Outbox) Audit(ctx context.Context, s AuditScope, share, shares int, visit func(AuditedEvent)) error {
	err := o.with(ctx, func(conn *pgx.Conn) error {
		condition, args := s.condition()
		// The remainder of a negative number is negative.
		rows, err := conn.Query(ctx, `
select seq, id, after, aggregate, published_at
  from (select p.seq, p.id, p.after, p.published_at, coalesce(hashtextextended(p.aggregate_id, hashtextextended(p.aggregate_type, 0)), 0) as aggregate
          from `+o.table.published()+` p where `+condition+`) archived
 where abs(aggregate % $3::bigint) = $4::bigint`, append(args, int64(shares), int64(share))...)
		if err != nil {
			return err
		}
		var (
			e     AuditedEvent
			after int64
			at    pgtype.Timestamptz
		)
		_, err = pgx.ForEachRow(rows, []any{&e.Seq, &e.ID, &after, &e.Aggregate, &at}, func() error {
			e.After, e.PublishedAt = uint64(after), 0
			if at.InfinityModifier == pgtype.Finite {
				e.PublishedAt = at.Time.UnixMicro()
			}
			visit(e)
			return nil
		})
		return err
	})
	return o.explain("read the archive", err)
}

// AuditMoved returns the ids of those events that are not published any more as the archive said: they are in the outbox again
// or among the dead letters, or were published anew since.
func (o *Outbox) AuditMoved(ctx context.Context, s AuditScope, events []AuditedEvent) (map[uuid.UUID]struct{}, error) {
	ids, times := make([][16]byte, len(events)), make([]time.Time, len(events))
	for i := range events {
		ids[i], times[i] = events[i].ID, time.UnixMicro(events[i].PublishedAt)
	}
	moved := make(map[uuid.UUID]struct{})
	err := o.with(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
select o.id from only `+o.table.outbox()+` o where o.id = any($1::uuid[])
union all
select d.id from only `+o.table.dead()+` d where d.id = any($1::uuid[])
union all
select p.id from `+o.table.published()+` p join unnest($1::uuid[], $2::timestamptz[]) as known (id, published_at) on known.id = p.id
 where p.stream = $3 and p.published_at > known.published_at`, ids, times, s.Stream)
		if err != nil {
			return err
		}
		var id uuid.UUID
		_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
			moved[id] = struct{}{}
			return nil
		})
		return err
	})
	return moved, o.explain("look for events in the outbox", err)
}

// AuditCopies returns the ids of those events that may have been replayed with new ids. Such a copy has the created_at of an
// earlier event. That one may be gone if it was published before all that is left, and the archive has been emptied since.
func (o *Outbox) AuditCopies(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]struct{}, error) {
	bare := make([][16]byte, len(ids))
	for i := range ids {
		bare[i] = ids[i]
	}
	copies := make(map[uuid.UUID]struct{})
	err := o.with(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
select p.id from `+o.table.published()+` p
 where p.id = any($1::uuid[])
   and (p.created_at < least((select min(published_at) from `+o.table.published()+`), (select max(part_since) from only `+o.table.relay()+`))
        or exists (select from `+o.table.published()+` former
                    where former.created_at = p.created_at and former.aggregate_id = p.aggregate_id and former.aggregate_type = p.aggregate_type
                      and former.topic = p.topic and former.event_type = p.event_type and former.seq < p.seq and former.id <> p.id))`, bare)
		if err != nil {
			return err
		}
		var id uuid.UUID
		_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
			copies[id] = struct{}{}
			return nil
		})
		return err
	})
	return copies, o.explain("look for replayed events in the archive", err)
}
