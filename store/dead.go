package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/event"
)

// ErrSeveralDeadLetters says that a seq or an id names more than one dead letter, and it matters which is meant.
var ErrSeveralDeadLetters = errors.New("names several dead letters")

// DeadLetter is an event that was given up: the broker refused it as often as allowed.
type DeadLetter struct {
	// Letter is its own number. Seqs and ids are the producers', and two dead letters may have the same.
	Letter int64
	// Kept tells that it is still in the outbox, from which it could not be moved: it has no Letter, and LastError says
	// why it stayed. It is not published any more.
	Kept bool

	Seq           int64
	ID            uuid.UUID
	Topic         string
	AggregateType string
	AggregateID   string
	EventType     string
	Data          []byte
	DataSize      int64
	Headers       []byte // JSON; nil for none.
	CreatedAt     Timestamp
	Attempts      int
	LastError     string
	DiedAt        Timestamp

	// Cut names the columns of which there is more than was read, such as "data".
	Cut []string
}

// Key names it and no other.
func (d *DeadLetter) Key() DeadKey { return deadRow{letter: d.Letter, seq: d.Seq}.key() }

// DeadPlace is where a dead letter stands in a list.
type DeadPlace struct{ Seq, Letter int64 }

// DeadFilter selects dead letters. The zero value selects all.
type DeadFilter struct {
	// Topic and AggregateType select by equality where they are not empty; so does AggregateID.
	Topic, AggregateType, AggregateID, EventType string
	// Error selects those whose last error has this in it, in any case, unless it is empty.
	Error string
	// OlderThan selects those that were given up longer ago than that; 0 selects all.
	OlderThan time.Duration
	// After selects those after the last one of the page before; nil for the first page.
	After *DeadPlace
	// Limit bounds the result; 0 means no bound.
	Limit int
}

// deadEverywhere are the dead letters and, with the number 0, what was given up and is still in the outbox.
func (t Table) deadEverywhere() string {
	return `
select letter, false as kept, seq, id, topic ` + bytewise + ` as topic, aggregate_type ` + bytewise + ` as aggregate_type, aggregate_id ` + bytewise + ` as aggregate_id,
       event_type ` + bytewise + ` as event_type, data, headers, created_at, attempts, last_error ` + bytewise + ` as last_error, died_at
  from only ` + t.dead() + `
 union all
select 0::bigint, true, seq, coalesce(id, '00000000-0000-0000-0000-000000000000'), coalesce(topic, '') ` + bytewise + `, coalesce(aggregate_type, '') ` + bytewise + `,
       coalesce(aggregate_id, '') ` + bytewise + `, coalesce(event_type, '') ` + bytewise + `, coalesce(data, ''), headers, coalesce(created_at, 'epoch'), coalesce(attempts, 0),
       coalesce(last_error, '') ` + bytewise + `, given_up_at
  from only ` + t.outbox() + ` where given_up_at is not null` // For nulls, too, a row may have been given up.
}

// DeadLetters lists dead letters in the order of their seqs. With payload false, which is for long lists, their Data is
// left out, and other long values are cut earlier: see DeadLetter.Cut.
func (o *Outbox) DeadLetters(ctx context.Context, filter DeadFilter, payload bool) ([]DeadLetter, error) {
	b := listBounds
	if payload {
		b = showBounds
	}
	var limit *int
	if filter.Limit > 0 {
		limit = &filter.Limit
	}
	place := DeadPlace{}
	if filter.After != nil {
		place = *filter.After
	}
	var letters []DeadLetter
	err := o.with(ctx, func(conn *pgx.Conn) (err error) {
		letters, err = b.deadLetters(ctx, conn, `
select * from (`+o.table.deadEverywhere()+`) d
 where ($1 = '' or topic = $1) and ($2 = '' or aggregate_type = $2) and ($3 = '' or aggregate_id = $3)
   and ($4 or (seq, letter) > ($5, $6))
   and ($8 = '' or event_type = $8) and ($9 = '' or position(lower($9) in lower(last_error)) > 0)
   and ($10::bigint = 0 or died_at < clock_timestamp() - $10::bigint * interval '1 microsecond')
 order by seq, letter limit $7`, filter.Topic, filter.AggregateType, filter.AggregateID, filter.After == nil, place.Seq, place.Letter, limit,
			filter.EventType, filter.Error, filter.OlderThan.Microseconds())
		return err
	})
	return letters, o.explain("list dead letters", err)
}

// deadLetters reads those that a statement selects from deadEverywhere.
func (b bounds) deadLetters(ctx context.Context, conn *pgx.Conn, statement string, args ...any) ([]DeadLetter, error) {
	rows, err := conn.Query(ctx, `
select letter, kept, seq, id, `+b.textOf("topic")+`, `+b.textOf("aggregate_type")+`, `+b.textOf("aggregate_id")+`, `+b.textOf("event_type")+`,
       `+b.dataOf("data")+`, octet_length(data), `+b.headersOf("headers")+`, created_at, attempts, `+b.textOf("last_error")+`, died_at
  from (`+statement+`) selected order by seq, letter`, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, b.scanDeadLetter)
}

func (b bounds) scanDeadLetter(row pgx.CollectableRow) (DeadLetter, error) {
	var (
		d     DeadLetter
		texts [5][]byte
	)
	err := row.Scan(&d.Letter, &d.Kept, &d.Seq, &d.ID, &texts[0], &texts[1], &texts[2], &texts[3],
		&d.Data, &d.DataSize, &d.Headers, &d.CreatedAt, &d.Attempts, &texts[4], &d.DiedAt)
	if err != nil {
		return d, err
	}
	b.cutTexts(&d.Cut, texts[:], []columnText{
		{"topic", &d.Topic}, {"aggregate_type", &d.AggregateType}, {"aggregate_id", &d.AggregateID}, {"event_type", &d.EventType}, {"last_error", &d.LastError},
	})
	d.Headers = b.cutHeaders(d.Headers, &d.Cut)
	if b.data > 0 && d.DataSize > int64(len(d.Data)) {
		d.Cut = append(d.Cut, "data")
	}
	return d, nil
}

// DeadLetter returns one dead letter with its payload; [ErrNoDeadLetter] if there is none, and [ErrSeveralDeadLetters],
// which tells how to name each of them, if the key is that of more than one.
func (o *Outbox) DeadLetter(ctx context.Context, key DeadKey) (DeadLetter, error) {
	var letter DeadLetter
	err := o.with(ctx, func(conn *pgx.Conn) error {
		found, err := o.table.lookUp(ctx, conn, key)
		switch {
		case err != nil:
			return err
		case len(found) > 1:
			return several(key, found)
		}
		letters, err := showBounds.deadLetters(ctx, conn,
			`select * from (`+o.table.deadEverywhere()+`) d where seq = $1 and letter = $2`, found[0].seq, found[0].letter)
		if err == nil && len(letters) == 0 {
			return fmt.Errorf("%w: %s: it has just been taken away", ErrNoDeadLetter, key)
		}
		if err == nil {
			letter = letters[0]
		}
		return err
	})
	return letter, o.explain("show dead letter", err)
}

// DeadKey names a dead letter: by its Letter unless that is 0, otherwise by its event's ID unless that is nil, otherwise
// by its Seq, which is for sure that of one in the outbox if Kept is set.
type DeadKey struct {
	Letter int64
	ID     uuid.UUID
	Seq    int64
	Kept   bool
}

// String returns the key as a person would type it.
func (k DeadKey) String() string {
	switch {
	case k.Letter != 0:
		return fmt.Sprintf("letter:%d", k.Letter)
	case k.ID != uuid.Nil:
		return "id " + k.ID.String()
	case k.Kept:
		return fmt.Sprintf("outbox:%d", k.Seq)
	}
	return fmt.Sprintf("seq %d", k.Seq)
}

// condition selects it from deadEverywhere, by the argument $1.
func (k DeadKey) condition() (condition string, value any) {
	switch {
	case k.Letter != 0:
		return "letter = $1", k.Letter
	case k.ID != uuid.Nil:
		return "id = $1", k.ID
	case k.Kept:
		return "kept and seq = $1", k.Seq
	}
	return "seq = $1", k.Seq
}

// deadRow is the row of a dead letter: among the dead letters, or marked in the outbox.
type deadRow struct {
	letter, seq int64 // Letter is 0 in the outbox.
	size        int64
}

// key names it and no other.
func (d deadRow) key() DeadKey {
	if d.letter == 0 {
		return DeadKey{Seq: d.seq, Kept: true}
	}
	return DeadKey{Letter: d.letter}
}

// lookUp finds whatever a key names; ErrNoDeadLetter if that is nothing.
func (t Table) lookUp(ctx context.Context, q querier, key DeadKey) ([]deadRow, error) {
	condition, value := key.condition()
	rows, err := q.Query(ctx, `select letter, seq, octet_length(data) from (`+t.deadEverywhere()+`) d where `+condition+` order by letter`, value)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d deadRow, err error) {
		err = row.Scan(&d.letter, &d.seq, &d.size)
		return d, err
	})
	if err == nil && len(found) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoDeadLetter, key)
	}
	return found, err
}

func several(key DeadKey, found []deadRow) error {
	var names []string
	for _, d := range found[:min(len(found), 10)] {
		names = append(names, d.String())
	}
	if more := len(found) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return fmt.Errorf("%s %w: %s; say which", key, ErrSeveralDeadLetters, strings.Join(names, ", "))
}

// String names it as a person would type it.
func (d deadRow) String() string { return d.key().String() }

// TooLargeError says that events would only be given up again, since the broker does not take so large ones.
type TooLargeError struct {
	// Keys are the dead letters; the first of them has a payload of Size bytes, and the broker takes at most Max.
	Keys      []DeadKey
	Size, Max int64
}

// Error implements error.
func (e *TooLargeError) Error() string {
	more := ""
	if n := len(e.Keys) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more are too large)", n)
	}
	return fmt.Sprintf("%s has a payload of %d bytes, and the broker takes at most %d%s: raise max_payload of the NATS server and max_msg_size of the stream, "+
		"and let the relay begin another term; or insist with --force", e.Keys[0], e.Size, e.Max, more)
}

// Requeue puts dead letters back into the outbox, with their seq and no attempts, so that they are published before what
// their aggregate produced later and still waits. One whose seq the outbox has for another event gets a new one, after
// all that waits. All of keys or none: [ErrNoDeadLetter] if one is not there, [ErrSeveralDeadLetters] if a seq names more
// than one. An id stands for all letters that have it. A [TooLargeError] names those that the broker, as a leader last
// saw it, would not take.
//
// They keep their last error, with which the table takes what it would refuse from a producer.
func (o *Outbox) Requeue(ctx context.Context, keys ...DeadKey) (int, error) {
	return o.RequeueWith(ctx, RequeueOptions{}, keys...)
}

// RequeueOptions say what else [Outbox.RequeueWith] does.
type RequeueOptions struct {
	// AnySize requeues events that are larger than what the broker takes, too.
	AnySize bool
	// SetHeaders are set in each event, in place of those of the same names. RequeueWith refuses what [Insert] would.
	SetHeaders map[string]string
}

// RequeueWith is Requeue with options.
func (o *Outbox) RequeueWith(ctx context.Context, options RequeueOptions, keys ...DeadKey) (int, error) {
	for _, name := range slices.Sorted(maps.Keys(options.SetHeaders)) {
		if err := (event.Rules{}).Check(name, options.SetHeaders[name]); err != nil {
			return 0, fmt.Errorf("set header %q: %w", name, err)
		}
	}
	return o.takeDead(ctx, "requeue", keys, func(tx pgx.Tx, rows []deadRow) (lowest int64, err error) {
		if !options.AnySize {
			if err := o.table.checkSizes(ctx, tx, rows); err != nil {
				return 0, err
			}
		}
		return o.table.requeue(ctx, tx, rows, options.SetHeaders)
	})
}

// checkSizes compares payloads with the largest that the broker took when a leader last asked it.
func (t Table) checkSizes(ctx context.Context, tx pgx.Tx, rows []deadRow) error {
	var most *int64
	err := tx.QueryRow(ctx, `select max_payload from only `+t.relay()+` order by leader_since desc limit 1`).Scan(&most)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && (most == nil || *most <= 0) {
		return nil // Nobody knows.
	}
	if err != nil {
		return err
	}
	tooLarge := &TooLargeError{Max: *most}
	for _, d := range rows {
		if d.size <= *most {
			continue
		}
		if len(tooLarge.Keys) == 0 {
			tooLarge.Size = d.size
		}
		tooLarge.Keys = append(tooLarge.Keys, d.key())
	}
	if len(tooLarge.Keys) > 0 {
		return tooLarge
	}
	return nil
}

// changedHeaders are an event's headers with those of $2.
const changedHeaders = `case when $2::jsonb = '{}' then headers when jsonb_typeof(headers) = 'object' then headers || $2::jsonb else $2::jsonb end`

// requeue puts dead letters back into the outbox, and returns the lowest of their seqs.
func (t Table) requeue(ctx context.Context, tx pgx.Tx, rows []deadRow, headers map[string]string) (lowest int64, err error) {
	const columns = `id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at, last_error`
	// Headers that are no object are what the event was given up for: then these take their place.
	const changed = `id, topic, aggregate_type, aggregate_id, event_type, data, ` + changedHeaders + ` as headers, created_at, last_error`
	if headers == nil {
		headers = map[string]string{}
	}
	dead := `
with gone as (delete from only ` + t.dead() + ` where letter = $1 returning seq, ` + changed + `),
     same as (insert into ` + t.outbox() + ` (seq, ` + columns + `) overriding system value select seq, ` + columns + ` from gone
                  on conflict (seq) do nothing returning seq),
     anew as (insert into ` + t.outbox() + ` (` + columns + `) select ` + columns + ` from gone where not exists (select from same) returning seq)
select seq from same union all select seq from anew`
	kept := `
update only ` + t.outbox() + ` set given_up_at = null, attempts = 0, retry_at = null, last_error = coalesce(last_error, 'requeued'), headers = ` + changedHeaders + `
 where seq = $1 and given_up_at is not null returning seq`

	batch := &pgx.Batch{}
	for i, d := range rows {
		statement, key := dead, d.letter
		if d.letter == 0 {
			statement, key = kept, d.seq
		}
		batch.Queue(statement, key, headers).QueryRow(func(row pgx.Row) error {
			var seq int64
			if err := row.Scan(&seq); errors.Is(err, pgx.ErrNoRows) {
				return fmt.Errorf("%w: %s: it has just been taken away", ErrNoDeadLetter, d)
			} else if err != nil {
				return err
			}
			if i == 0 || seq < lowest {
				lowest = seq
			}
			return nil
		})
	}
	return lowest, tx.SendBatch(ctx, batch).Close()
}

// lowerScan makes later terms fetch from this seq on, and changes what is recorded in any case: so the leader sees that it has
// to go back, even before it is notified (Outbox.queueOvertaken). What is recorded is a hint, and may be lower than it has to be.
func (t Table) lowerScan(ctx context.Context, tx pgx.Tx, lowest int64) error {
	_, err := tx.Exec(ctx, `update only `+t.relay()+` set scan_from = greatest(least(scan_from, $1), -9223372036854775807) - 1`, lowest)
	return err
}

// Discard removes dead letters for good. All of keys or none, as with [Outbox.Requeue].
func (o *Outbox) Discard(ctx context.Context, keys ...DeadKey) (int, error) {
	return o.takeDead(ctx, "discard", keys, func(tx pgx.Tx, rows []deadRow) (lowest int64, err error) {
		batch := &pgx.Batch{}
		lowest = rows[0].seq
		for _, d := range rows {
			lowest = min(lowest, d.seq)
			query := batch.Queue(`delete from only `+o.table.dead()+` where letter = $1 returning true`, d.letter)
			if d.letter == 0 {
				query = batch.Queue(`delete from only `+o.table.outbox()+` where seq = $1 and given_up_at is not null returning true`, d.seq)
			}
			query.QueryRow(func(row pgx.Row) error {
				var gone bool
				if err := row.Scan(&gone); errors.Is(err, pgx.ErrNoRows) {
					return fmt.Errorf("%w: %s: it has just been taken away", ErrNoDeadLetter, d)
				} else if err != nil {
					return err
				}
				return nil
			})
		}
		return lowest, tx.SendBatch(ctx, batch).Close()
	})
}

// takeDead finds the dead letters that keys name and calls take with them, in one transaction. Then it makes the relay fetch
// again from the lowest seq of these letters and of the rows that were held back because of them. take returns the lowest
// seq that it puts back or removes.
func (o *Outbox) takeDead(ctx context.Context, operation string, keys []DeadKey, take func(tx pgx.Tx, rows []deadRow) (lowest int64, err error)) (int, error) {
	var (
		rows   []deadRow
		lowest int64
	)
	err := o.with(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, key := range keys {
				found, err := o.table.lookUp(ctx, tx, key)
				switch {
				case err != nil:
					return err
				case len(found) > 1 && key.ID == uuid.Nil:
					return several(key, found)
				}
				for _, d := range found {
					if !slices.Contains(rows, d) { // Two keys may name the same.
						rows = append(rows, d)
					}
				}
			}
			if len(rows) == 0 {
				return nil
			}
			held, err := o.lowestHeld(ctx, tx, rows)
			if err != nil {
				return err
			}
			if lowest, err = take(tx, rows); err != nil {
				return err
			}
			lowest = min(lowest, held)
			if err := o.table.lowerScan(ctx, tx, lowest); err != nil {
				return err
			}
			return o.table.askForRescan(ctx, tx, lowest)
		})
	})
	if err != nil {
		return 0, o.explain(operation+" dead letters", err)
	}
	if len(rows) == 0 {
		return 0, nil
	}
	o.back.lower(lowest) // If this is the relay's own process, it need not wait to be notified.
	o.someMayGoOn()
	return len(rows), nil
}

// lowestHeld returns the lowest seq of the rows that are held back because of dead letters. It is lower than the letters'
// own seqs if a row was committed after a later row of its aggregate had been given up.
func (o *Outbox) lowestHeld(ctx context.Context, tx pgx.Tx, rows []deadRow) (seq int64, err error) {
	if !o.holdDead {
		return math.MaxInt64, nil
	}
	var letters, seqs []int64
	for _, d := range rows {
		if d.letter == 0 {
			seqs = append(seqs, d.seq)
		} else {
			letters = append(letters, d.letter)
		}
	}
	err = tx.QueryRow(ctx, `
select coalesce(min(seq), `+fmt.Sprint(math.MaxInt64)+`) from only `+o.table.outbox()+`
 where (`+aggregateColumns+`) in (select `+aggregateColumns+` from only `+o.table.dead()+` where letter = any($1)
                                          union select `+aggregateColumns+` from only `+o.table.outbox()+` where seq = any($2))`, letters, seqs).Scan(&seq)
	return seq, err
}
