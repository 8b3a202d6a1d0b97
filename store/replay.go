package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// replayPatience is how long a replay waits for the leader's session to end.
const replayPatience = 5 * time.Second

// Moment is a point in time: Time or, if that is zero, Ago before the database's now. The zero value is none.
type Moment struct {
	Time time.Time
	Ago  time.Duration
}

// ReplayFilter selects events of the archive: those that meet all of its conditions. The zero value selects all.
type ReplayFilter struct {
	// Since and Until select by when an event was recorded as published: not before Since, and before Until.
	Since, Until Moment
	// Topic and AggregateType select by equality where they are not empty; so does AggregateID.
	Topic, AggregateType, AggregateID string
	// IDs select events by name, unless there are none. All copies of an id are taken.
	IDs []uuid.UUID
}

// condition returns the filter as SQL on the archive p, and its arguments, which are the statement's first.
func (f *ReplayFilter) condition() (string, []any) {
	conditions := []string{"true"}
	var args []any
	add := func(before string, value any, after string) {
		args = append(args, value)
		conditions = append(conditions, before+"$"+strconv.Itoa(len(args))+after)
	}
	for _, bound := range []struct {
		comparison string
		moment     Moment
	}{{"p.published_at >= ", f.Since}, {"p.published_at < ", f.Until}} {
		switch {
		case !bound.moment.Time.IsZero():
			add(bound.comparison, bound.moment.Time, "::timestamptz")
		case bound.moment.Ago != 0:
			add(bound.comparison+"now() - ", bound.moment.Ago.Microseconds(), "::bigint * interval '1 microsecond'")
		}
	}
	for _, column := range []struct{ name, value string }{
		{"topic", f.Topic}, {"aggregate_type", f.AggregateType}, {"aggregate_id", f.AggregateID},
	} {
		if column.value != "" {
			add("p."+column.name+" = ", column.value, "")
		}
	}
	if len(f.IDs) > 0 {
		add("p.id = any(", f.IDs, "::uuid[])")
	}
	return strings.Join(conditions, " and "), args
}

// PublishedEvent is an event in the archive, without its payload.
type PublishedEvent struct {
	Ref

	Topic         string
	AggregateType string
	AggregateID   string
	EventType     string
	DataSize      int64
	Headers       []byte // JSON; nil for none.
	CreatedAt     Timestamp
	PublishedAt   Timestamp // When it was recorded that it is.
	Stream        string    // To which it was published.

	// Cut names the columns of which there is more than was read.
	Cut []string
}

// Published lists the archived events that filter selects, in seq order: limit at most, unless that is 0. It also
// returns how many there are in all. It reads the whole archive. Long values are cut.
func (o *Outbox) Published(ctx context.Context, filter ReplayFilter, limit int) (events []PublishedEvent, total int, err error) {
	b := listBounds
	condition, args := filter.condition()
	selected := `
select seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at, published_at, stream, count(*) over () as total
  from ` + o.table.published() + ` p where ` + condition + ` order by seq, published_at`
	if limit > 0 {
		selected += ` limit ` + strconv.Itoa(limit)
	}
	err = o.with(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
select seq, id, `+b.textOf("topic")+`, `+b.textOf("aggregate_type")+`, `+b.textOf("aggregate_id")+`, `+b.textOf("event_type")+`,
       octet_length(data), `+b.headersOf("headers")+`, created_at, published_at, `+b.textOf("stream")+`, total
  from (`+selected+`) selected order by seq, published_at`, args...)
		if err != nil {
			return err
		}
		events, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e PublishedEvent, err error) {
			var texts [5][]byte
			err = row.Scan(&e.Seq, &e.ID, &texts[0], &texts[1], &texts[2], &texts[3], &e.DataSize, &e.Headers, &e.CreatedAt, &e.PublishedAt, &texts[4], &total)
			if err != nil {
				return e, err
			}
			b.cutTexts(&e.Cut, texts[:], []columnText{
				{"topic", &e.Topic}, {"aggregate_type", &e.AggregateType}, {"aggregate_id", &e.AggregateID}, {"event_type", &e.EventType}, {"stream", &e.Stream},
			})
			e.Headers = b.cutHeaders(e.Headers, &e.Cut)
			return e, nil
		})
		return err
	})
	return events, total, o.explain("list the archive", err)
}

// Replayed is what became of the events that a replay selects.
type Replayed struct {
	// Back are in the outbox again.
	Back int
	// Left stay in the archive: another event has their seq, or they are pending already, or they are dead letters.
	Left int
}

// Replay puts the archived events that filter selects back into the outbox, in one transaction, and returns how many
// those were. If it names ids, all of them are in the archive, or it is [ErrNotArchived] and nothing happens.
//
// With newIDs they become new events, after all that waits, in their old order: whoever consumes the stream gets them
// again. The archive keeps the old ones.
//
// Without newIDs they keep their seq and their id, and move from the archive to the outbox as if they had never been settled.
// An event stays in the archive if its id is in the outbox or among the dead letters, or if another event in the outbox has
// its seq. An event that the stream still holds is not stored there again, however long ago it was published. For that the
// relay must read the stream back from the oldest of these events on, and it does so only when a term begins. So Replay ends
// the sessions of this outbox's relays in the same transaction: the leader begins another term, and standbys connect anew.
func (o *Outbox) Replay(ctx context.Context, filter ReplayFilter, newIDs bool) (Replayed, error) {
	var replayed Replayed
	err := o.with(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
			replayed, err = o.table.replay(ctx, tx, filter, newIDs)
			return err
		})
	})
	if err != nil {
		return Replayed{}, o.explain("replay", err)
	}
	return replayed, nil
}

func (t Table) replay(ctx context.Context, tx pgx.Tx, filter ReplayFilter, newIDs bool) (replayed Replayed, err error) {
	if err := t.archived(ctx, tx, filter.IDs); err != nil {
		return Replayed{}, err
	}
	var lowest int64
	if newIDs {
		replayed.Back, lowest, err = t.putBackAsNew(ctx, tx, filter)
	} else {
		replayed, lowest, err = t.putBackAsWas(ctx, tx, filter)
	}
	if err != nil || replayed.Back == 0 {
		return replayed, err
	}
	if err := t.lowerScan(ctx, tx, lowest); err != nil {
		return Replayed{}, err
	}
	if !newIDs {
		if err := t.endTerms(ctx, tx); err != nil {
			return Replayed{}, err
		}
	}
	return replayed, t.askForRescan(ctx, tx, lowest)
}

// archived returns ErrNotArchived unless all of these ids are in the archive.
func (t Table) archived(ctx context.Context, tx pgx.Tx, ids []uuid.UUID) error {
	if len(ids) == 0 {
		return nil
	}
	var missing []string
	err := tx.QueryRow(ctx, `
select coalesce(array_agg(distinct wanted.id::text), '{}') from unnest($1::uuid[]) as wanted (id)
 where not exists (select from `+t.published()+` p where p.id = wanted.id)`, ids).Scan(&missing)
	if err != nil || len(missing) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", ErrNotArchived, strings.Join(missing, ", "))
}

// putBackAsNew makes new events of archived ones. Their new seqs are in the order of the old ones. created_at stays: it is
// when the event happened.
func (t Table) putBackAsNew(ctx context.Context, tx pgx.Tx, filter ReplayFilter) (n int, lowest int64, err error) {
	const columns = `topic, aggregate_type, aggregate_id, event_type, data, headers, created_at`
	condition, args := filter.condition()
	// One that was put back before, or published to two streams, has several copies.
	err = tx.QueryRow(ctx, `
with anew as (insert into `+t.outbox()+` (`+columns+`, last_error)
              select `+columns+`, `+lastErrorBack+`
                from (select distinct on (p.seq, p.id) p.* from `+t.published()+` p where `+condition+` order by p.seq, p.id) one order by seq
              returning seq)
select count(*), coalesce(min(seq), 0) from anew`, args...).Scan(&n, &lowest)
	return n, lowest, err
}

// putBackAsWas moves archived events to the outbox: it takes from the archive exactly what it has put into the outbox. It
// compares ids, not only seqs: after the sequence was restarted, the outbox may have another event under the same seq.
//
// It moves the events and does not copy them. A relay puts lost events back from the archive, too, and must not find one
// there that has become a dead letter meanwhile. So all copies of an event leave the archive, also those of other streams.
//
// Invariant. Every event in the outbox that was ever published is stored after the checkpoint, and no leader publishes the
// moved events before it has read the stream from there.
//
// Why.
//
//  1. The checkpoint moves back with the events.
//  2. A leader cannot publish them at once: its session is gone when they become visible.
//  3. No other term can begin in between: it would have to record itself in the row that was locked before the sessions were
//     looked up.
//
// Test. TestReplayEndsATermThatHasJustBegun, TestReplayAfterTheSequenceWasRestarted.
func (t Table) putBackAsWas(ctx context.Context, tx pgx.Tx, filter ReplayFilter) (replayed Replayed, lowest int64, err error) {
	condition, args := filter.condition()
	err = tx.QueryRow(ctx, `
with back as (insert into `+t.outbox()+` (`+eventColumns+`, last_error) overriding system value
              select `+eventColumns+`, `+lastErrorBack+`
                from (select distinct on (p.seq, p.id) `+of("p", eventColumns)+` from `+t.published()+` p where `+condition+`
                         and not exists (select from only `+t.outbox()+` o where o.id = p.id)
                         and not exists (select from only `+t.dead()+` d where d.id = p.id)
                       order by p.seq, p.id) one order by seq
                  on conflict (seq) do nothing returning seq, id),
     gone as (delete from `+t.published()+` p using back where p.seq = back.seq and p.id = back.id returning p.stream, p.after),
     recorded as (update only `+t.relay()+` r set checkpoint_before = least(r.checkpoint_before, oldest.after)
                    from (select stream, min(after) as after from gone group by stream) oldest where r.stream = oldest.stream)
select count(*), coalesce(min(seq), 0) from back`, args...).Scan(&replayed.Back, &lowest)
	if err != nil {
		return Replayed{}, 0, err
	}
	// In another statement, which sees what the first has done.
	err = tx.QueryRow(ctx, `select count(*) from (select distinct p.seq, p.id from `+t.published()+` p where `+condition+`) stays`, args...).Scan(&replayed.Left)
	return replayed, lowest, err
}

// endTerms ends the sessions of all relays in this database but those that lead another outbox. A leader of another outbox
// that is not elected through Postgres looks like a standby: it begins another term, too.
func (t Table) endTerms(ctx context.Context, tx pgx.Tx) error {
	var ended bool
	err := tx.QueryRow(ctx, `
select coalesce(bool_and(pg_terminate_backend(a.pid, $1)), true) from pg_catalog.pg_stat_activity a
 where a.datname = current_database() and a.application_name = $2
   and not exists (select from pg_catalog.pg_locks l
                    where l.pid = a.pid and l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.objid <> $3)`,
		replayPatience.Milliseconds(), sessionName, uint32(t.LockKey())).Scan(&ended)
	switch {
	case isPrivilege(err): // No GRANT on the tables would help.
		return fmt.Errorf("%w: the relay has to begin another term, and its session belongs to another role: replay as that role, or with new ids", ErrPrivilege)
	case err == nil && !ended:
		return fmt.Errorf("a relay's session has not ended within %v: stop the relay, or try again", replayPatience)
	}
	return err
}
