package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Place is where an event is.
type Place string

// The places of an event.
const (
	// PlacePending: it waits in the outbox for its turn.
	PlacePending Place = "pending"
	// PlaceRetrying: the broker refused it, and it waits in the outbox for its next attempt.
	PlaceRetrying Place = "retrying"
	// PlaceWaiting: it waits in the outbox for an earlier event of its aggregate, which is being retried.
	PlaceWaiting Place = "waiting"
	// PlaceHeld: it waits in the outbox until somebody decides about a dead letter of its aggregate: see Options.HoldDead.
	PlaceHeld Place = "held"
	// PlaceDead: it was given up, and is a dead letter.
	PlaceDead Place = "dead"
	// PlacePublished: it is in the stream, and still in the archive.
	PlacePublished Place = "published"
)

// FindKey names what to look for: an event by its ID unless that is nil, all events of an aggregate if AggregateType or
// AggregateID is set, and otherwise an event by its Seq.
type FindKey struct {
	ID                         uuid.UUID
	Seq                        int64
	AggregateType, AggregateID string
}

// condition selects what the key names from any table with an event's columns; its arguments are the statement's first two.
func (k FindKey) condition() (condition string, first, second any) {
	switch {
	case k.ID != uuid.Nil:
		return `id = $1::uuid and $2::text is null`, k.ID, nil
	case k.AggregateType != "" || k.AggregateID != "":
		return `aggregate_type ` + bytewise + ` = $1::text and aggregate_id ` + bytewise + ` = $2::text`, k.AggregateType, k.AggregateID
	}
	return `seq = $1::bigint and $2::text is null`, k.Seq, nil
}

// FoundEvent is an event that was found, without its payload.
type FoundEvent struct {
	Ref

	Place         Place
	Topic         string
	AggregateType string
	AggregateID   string
	EventType     string
	DataSize      int64
	CreatedAt     Timestamp
	// Attempts is how often the broker refused it, and Reason why it did so last, or why the event that this one waits for was
	// refused.
	Attempts int
	Reason   string
	// Ahead is how many pending events have a lower seq. Not exact is a lower bound.
	Ahead Count
	// Behind is the seq of the event that this one waits for, while it is waiting or held. RetryAt is when the event is
	// tried again that is being retried.
	Behind  int64
	RetryAt Timestamp
	// Letter is the number of a dead letter, 0 if it could not be moved out of the outbox, and DiedAt is when it was given up.
	Letter int64
	DiedAt Timestamp
	// Stream is where a published event was stored, after the sequence After, and PublishedAt is when that was recorded.
	Stream      string
	After       uint64
	PublishedAt Timestamp

	// Cut names the columns of which there is more than was read.
	Cut []string
}

// Find looks for events in the outbox, among the dead letters and in the archive, and returns at most limit of them, those in
// the outbox first, each place in the order of the seqs. An event that is none of these was never committed, or was published
// so long ago that the archive has let it go (see Options.Retain), or was discarded.
//
// It works whether or not a relay runs. To find an aggregate, or anything in a large archive, takes a scan of the tables.
func (o *Outbox) Find(ctx context.Context, key FindKey, limit int) (found []FoundEvent, err error) {
	t := o.table
	err = o.with(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, inspectSettings); err != nil {
			return err
		}
		condition, first, second := key.condition()
		b := listBounds
		const columns = `seq, id, topic ` + bytewise + ` as topic, aggregate_type ` + bytewise + ` as aggregate_type, aggregate_id ` + bytewise + ` as aggregate_id,
               event_type ` + bytewise + ` as event_type, data, created_at`
		rows, err := conn.Query(ctx, `
select place, seq, coalesce(id, '00000000-0000-0000-0000-000000000000'), `+b.textOf("topic")+`, `+b.textOf("aggregate_type")+`, `+b.textOf("aggregate_id")+`, `+b.textOf("event_type")+`, `+b.textOf("reason")+`, `+b.textOf("stream")+`,
       coalesce(octet_length(data), 0)::bigint, created_at, coalesce(attempts, 0), retry_at, letter, died_at, after, published_at
  from (select case when retry_at > clock_timestamp() then 'retrying' else 'pending' end as place, 1 as nth, `+columns+`,
               last_error `+bytewise+` as reason, attempts, retry_at, null::bigint as letter, null::timestamptz as died_at, null::text as stream, null::bigint as after, null::timestamptz as published_at
          from only `+t.outbox()+` where given_up_at is null and `+condition+`
         union all
        select 'dead', 2, `+columns+`, last_error, attempts, null, letter, died_at, null, null, null
          from (`+t.deadEverywhere()+`) d where `+condition+`
         union all
        select 'published', 3, `+columns+`, null, 0, null, null, null, stream, after, published_at
          from `+t.published()+` where `+condition+`
         order by nth, seq limit $3) found
 order by nth, seq`, first, second, limit)
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e FoundEvent, err error) {
			var (
				texts  [6][]byte
				letter *int64
				after  *int64
			)
			err = row.Scan(&e.Place, &e.Seq, &e.ID, &texts[0], &texts[1], &texts[2], &texts[3], &texts[4], &texts[5],
				&e.DataSize, &e.CreatedAt, &e.Attempts, &e.RetryAt, &letter, &e.DiedAt, &after, &e.PublishedAt)
			if letter != nil {
				e.Letter = *letter
			}
			if after != nil {
				e.After = uint64(*after)
			}
			b.cutTexts(&e.Cut, texts[:], []columnText{
				{"topic", &e.Topic},
				{"aggregate_type", &e.AggregateType},
				{"aggregate_id", &e.AggregateID},
				{"event_type", &e.EventType},
				{"reason", &e.Reason},
				{"stream", &e.Stream},
			})
			return e, err
		})
		if err != nil {
			return err
		}
		for i := range found {
			if e := &found[i]; e.Place == PlacePending || e.Place == PlaceRetrying {
				if err := o.findPending(ctx, conn, e); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return found, o.explain("find events", err)
}

// findPending finds out what a pending event waits for.
func (o *Outbox) findPending(ctx context.Context, conn *pgx.Conn, e *FoundEvent) error {
	t, b := o.table, listBounds
	err := conn.QueryRow(ctx, `
select count(*), count(*) <= $2 from (select from only `+t.outbox()+` where seq < $1 and given_up_at is null limit $2 + 1) counted`, e.Seq, countLimit).
		Scan(&e.Ahead.Rows, &e.Ahead.Exact)
	if err != nil {
		return err
	}
	// The names are read from the row: those in e may be cut.
	var reason []byte
	if o.holdDead {
		err = conn.QueryRow(ctx, `
select d.seq, `+b.textOf("d.last_error")+`
  from only `+t.outbox()+` o join (`+t.deadEverywhere()+`) d on `+sameAggregate("d")+`
 where o.seq = $1 order by d.seq limit 1`, e.Seq).Scan(&e.Behind, &reason)
		if err == nil {
			e.Place = PlaceHeld
			e.Reason, _ = b.cutText(reason)
		}
		if err == nil || !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
	}
	if e.Place == PlaceRetrying {
		return nil
	}
	err = conn.QueryRow(ctx, `
select r.seq, r.retry_at, coalesce(`+b.textOf("r.last_error")+`, '')
  from only `+t.outbox()+` o join only `+t.outbox()+` r on `+sameAggregate("r")+`
 where o.seq = $1 and r.seq < $1 and r.retry_at > clock_timestamp() and r.given_up_at is null order by r.seq limit 1`, e.Seq).
		Scan(&e.Behind, &e.RetryAt, &reason)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	e.Place = PlaceWaiting
	e.Reason, _ = b.cutText(reason)
	return nil
}

// String says where the event is, for a person.
func (e *FoundEvent) String() string {
	ahead := fmt.Sprintf("%d", e.Ahead.Rows)
	if !e.Ahead.Exact {
		ahead = fmt.Sprintf("at least %d", e.Ahead.Rows)
	}
	switch e.Place {
	case PlacePending:
		return "pending: " + ahead + " events are ahead of it"
	case PlaceRetrying:
		return fmt.Sprintf("refused %d times, and tried again at %v: %s", e.Attempts, e.RetryAt, e.Reason)
	case PlaceWaiting:
		return fmt.Sprintf("waiting for the event with seq %d of its aggregate, which is tried again at %v: %s", e.Behind, e.RetryAt, e.Reason)
	case PlaceHeld:
		return fmt.Sprintf("held: the event with seq %d of its aggregate is a dead letter, and somebody has to requeue or discard it: %s", e.Behind, e.Reason)
	case PlaceDead:
		at := "a dead letter"
		if e.Letter != 0 {
			at = fmt.Sprintf("dead letter %d", e.Letter)
		}
		return fmt.Sprintf("%s since %v, refused %d times: %s", at, e.DiedAt, e.Attempts, e.Reason)
	case PlacePublished:
		return fmt.Sprintf("published to stream %q after its sequence %d, recorded at %v", e.Stream, e.After, e.PublishedAt)
	}
	return string(e.Place)
}
