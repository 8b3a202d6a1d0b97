package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Blocked is an aggregate whose events wait because one of them was refused.
type Blocked struct {
	AggregateType string
	AggregateID   string
	// For is how long until the refused event is due again.
	For time.Duration
}

// TermStart is what the leader knows at the beginning of its term.
type TermStart struct {
	// OutboxID names this outbox in the stream, for ever: the id was drawn when it was first published there.
	OutboxID uuid.UUID
	// Number counts the terms of all relays that ever published to the stream.
	Number int64
	// Blocked are the aggregates that wait for another attempt.
	Blocked []Blocked
	// Floor is where the first fetch begins: see [Response.Floor].
	Floor int64
	// Checkpoint says how far back the stream has to be read.
	Checkpoint Checkpoint
	// First tells that no checkpoint has been recorded yet, so nothing of this outbox has ever been published to this
	// stream.
	First bool
	// Adopted is the stream that the outbox was relayed to until now, if that is another one: see Options.AdoptStream.
	Adopted string
}

// Term is the leader's side of an outbox, from [Outbox.Begin] until the session is lost, End is called or another term begins:
// after that its methods return an error. Its methods work on the outbox's session unless they say otherwise. RoundTrip, Settle,
// PutBack and Archive are called one at a time; the others may be called beside them.
type Term struct {
	TermStart

	outbox     *Outbox
	generation uint64 // The session's.
	stream     string // That the term publishes to.

	floorSeen    atomic.Int64 // The floor, for those who do not have the session.
	filling      atomic.Int32 // The part of the archive that rows come to.
	unsummarized atomic.Int64 // How many rows came to the archive since its index was brought up to date.

	// Only to be used with the session, inside Do or DoPatiently.
	leftOut       *names // Of Outbox.held, what the present round trip leaves out by name.
	queries       queries
	sequence      string // The quoted name of the one that seqs come from; empty if it may not be read.
	unicode       bool   // The database's encoding has all characters.
	ascii         bool   // Only those of ASCII are recorded: another may have been what the database refused.
	floor         floor
	lowered       int64         // Where rows were put back that the present round trip has to look for; the highest seq for nowhere.
	scanFrom      int64         // What the table says of the floor.
	drawn         int64         // The highest seq that the sequence had given out by the latest observation,
	observed      time.Time     // which was then.
	cached        bool          // The sequence gives each session several numbers at once.
	complete      bool          // The latest page had all rows.
	overtaken     bool          // The latest page may lack rows that a command has put back or let go on.
	took          time.Duration // The latest fetch.
	pageSizes     pageSizes
	large         bool      // The latest page came upon a row that is not small.
	streamCreated time.Time // When the stream was created that the checkpoint is of.
	archive       archive
}

// newTerm returns a term that has not begun.
func (o *Outbox) newTerm(stream string) *Term {
	return &Term{
		outbox:     o,
		generation: o.session.next.Load(),
		stream:     stream,
		queries:    o.table.queries(o.holdDead, ""),
		unicode:    true,
		floor:      newFloor(),
	}
}

// led is what the latest term of this process is recorded as.
type led struct {
	stream   string
	number   int64
	outboxID uuid.UUID
}

// Start returns what the leader knew at the beginning of the term.
func (t *Term) Start() TermStart { return t.TermStart }

// Begin begins a term: it checks the schema, records leader (a name for humans) as publishing to stream, and returns the term
// with what the previous leader left. The term's number is higher than the previous one's, and at least atLeast: the stream may
// know of later terms than an outbox that was restored from a backup. If the outbox is relayed to another stream, Begin returns
// an [ErrOtherStream], unless Options.AdoptStream is set. A term that began before on the same session is over.
func (o *Outbox) Begin(ctx context.Context, stream, leader string, atLeast int64) (*Term, error) {
	var t *Term
	err := o.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		t = o.newTerm(stream)
		o.term = t
		o.back.take()
		o.pauseAsked = time.Time{}
		if err := o.judged(o.table.check(ctx, conn)); err != nil {
			return err
		}
		if err := t.survey(ctx, conn); err != nil {
			return o.explain("survey the outbox", err)
		}
		if o.led.stream == stream {
			atLeast = max(atLeast, o.led.number+1) // Whatever has become of the table: no number is given twice.
		}
		if err := t.recordLeader(ctx, conn, leader, atLeast); err != nil {
			return o.explain("record the leader", err)
		}
		// A term begins awake. The one before it may have ended asleep, and not every elector owns the session.
		if err := o.awake(ctx, conn); err != nil {
			return err
		}
		if err := t.readBlocked(ctx, conn); err != nil {
			return o.explain("read which events are to be tried again", err)
		}
		t.Floor = t.floor.at
		t.floorSeen.Store(t.floor.at)
		return o.explain("read which aggregates are held", o.readHeld(ctx, conn))
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// survey finds out what the statements depend on: the sequence of the seqs, and the database's encoding.
func (t *Term) survey(ctx context.Context, conn *pgx.Conn) error {
	var sequence, heirs *string
	err := conn.QueryRow(ctx, `
select (select format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where c.oid = to_regclass(pg_get_serial_sequence($1, 'seq')) and has_sequence_privilege(c.oid, 'SELECT')),
       current_setting('server_encoding') = 'UTF8',
       coalesce((select seqcache > 1 from pg_catalog.pg_sequence where seqrelid = to_regclass(pg_get_serial_sequence($1, 'seq'))), false),
       (select string_agg(inhrelid::regclass::text, ', ' order by inhrelid) from pg_catalog.pg_inherits where inhparent = to_regclass($1))`, t.outbox.table.outbox()).
		Scan(&sequence, &t.unicode, &t.cached, &heirs)
	if err != nil {
		return err
	}
	if heirs != nil {
		t.outbox.log.LogAttrs(ctx, slog.LevelWarn, "tables inherit from the outbox; what is in them is not published", slog.String("tables", cut(*heirs)))
	}
	t.drawn, t.observed = math.MinInt64, time.Time{} // Until the first round trip says.
	if sequence == nil {
		sequence = new(string)
	}
	t.sequence = *sequence
	t.queries = t.outbox.table.queries(t.outbox.holdDead, *sequence)
	return nil
}

const (
	// blockedMost is how many aggregates a term begins with as blocked, and blockedNameFits how long their names may be. The
	// others' refused rows are tried again early, which spends an attempt.
	blockedMost     = 10_000
	blockedNameFits = 4096
)

// readBlocked reads which aggregates wait for another attempt. Anybody may have written the table's columns: a time that is
// infinite or far away comes back as a day.
func (t *Term) readBlocked(ctx context.Context, conn *pgx.Conn) error {
	var from *int64
	err := conn.QueryRow(ctx, `select min(seq) from only `+t.outbox.table.outbox()+` where retry_at is not null and given_up_at is null`).Scan(&from)
	if err != nil {
		return err
	}
	if from != nil {
		t.floor.lower(*from)
	}
	rows, err := conn.Query(ctx, `
select `+aggregateColumns+`,
       (extract(epoch from least(max(retry_at), clock_timestamp() + interval '1 day') - clock_timestamp()) * 1000000)::bigint
  from only `+t.outbox.table.outbox()+`
 where retry_at > clock_timestamp() and given_up_at is null and octet_length(aggregate_type) <= $1::int and octet_length(aggregate_id) <= $1::int
 group by 1, 2 limit $2::int`, blockedNameFits, blockedMost)
	if err != nil {
		return err
	}
	t.Blocked, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (b Blocked, err error) {
		var micros int64
		err = row.Scan(&b.AggregateType, &b.AggregateID, &micros)
		b.For = max(time.Duration(micros)*time.Microsecond, 0)
		return b, err
	})
	return err
}

// End ends the term while its session is still there: it gives back the lock that tells producers that the relay is asleep. An
// elector whose lock is on the session gives back both. With any other elector the previous leader may stand by, and must not
// go on making producers notify it.
func (t *Term) End(ctx context.Context) error {
	return t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		if err := t.inTerm(); err != nil {
			return err
		}
		t.outbox.term = nil
		return t.outbox.awake(ctx, conn)
	})
}

// awake gives back the sleep lock, if the session has it.
func (o *Outbox) awake(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `
select pg_advisory_unlock($1) from pg_catalog.pg_locks
 where locktype = 'advisory' and pid = pg_backend_pid() and objsubid = 1 and (classid::bigint << 32 | objid::bigint) = $1`, o.table.wakeKey()); err != nil {
		return fmt.Errorf("give back the sleep lock: %w", err)
	}
	return nil
}

// recordLeader records the leader, and reads what the previous leader has recorded. The record is on disk when it returns,
// unlike the session's other writes: no term's number may ever be given twice.
//
// With some electors, relays of one outbox and different streams do not know of each other. So they take turns here, and
// each sees what the previous one has recorded.
func (t *Term) recordLeader(ctx context.Context, conn *pgx.Conn, leader string, atLeast int64) error {
	var (
		created          *time.Time
		sequence, before int64
		partAge          time.Duration
		scanFrom         int64
		former           relayed
		began            bool
		outranked        bool
		batch            = &pgx.Batch{}
	)
	batch.Queue(`select pg_advisory_xact_lock($1) from set_config('synchronous_commit', 'on', true)`, t.outbox.table.recordLeaderKey())
	batch.Queue(t.outbox.table.latest()).Query(former.scan)
	// All streams share the parts of the archive: the latest leader's record says which part is being filled.
	batch.Queue(`
insert into `+t.outbox.table.relay()+` as r (stream, outbox, term, leader, leader_since, part, part_since)
select $1, coalesce($5, gen_random_uuid()), greatest(1, $3::bigint), $2, clock_timestamp(), coalesce(l.part, 0), coalesce(l.part_since, clock_timestamp())
  from (values (1)) one
  left join (select stream, part, part_since from only `+t.outbox.table.relay()+` order by leader_since desc limit 1) l on true
 where coalesce(l.stream = $1, true) or $4::boolean
    on conflict (stream) do update
   set term = greatest(r.term + 1, $3), leader = excluded.leader, leader_since = excluded.leader_since,
       part = excluded.part, part_since = excluded.part_since, trouble = null, trouble_since = null, trouble_at = null
 returning term, outbox, stream_created, checkpoint, checkpoint_before, part, clock_timestamp() - part_since, scan_from,
       exists (select from only `+t.outbox.table.relay()+` x where x.stream <> r.stream and x.leader_since >= r.leader_since)`, t.stream, leader, atLeast, t.outbox.adopt, t.outbox.knownAs(t.stream)).
		Query(func(rows pgx.Rows) error {
			_, err := pgx.ForEachRow(rows, []any{
				&t.Number, &t.OutboxID, &created, &sequence, &before, &t.archive.part, &partAge, &scanFrom, &outranked,
			}, func() error { began = true; return nil })
			return err
		})
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	if !began {
		return t.outbox.otherStream(t.stream, &former)
	}
	if outranked { // The clock was set back.
		if err := t.outbox.outrank(ctx, conn, t.stream); err != nil {
			return err
		}
	}
	if t.archive.part < 0 || t.archive.part >= archiveParts {
		return fmt.Errorf("%s: part %d of the archive is being filled, and there are %d: has a newer outbox-relay run? then use that", t.outbox.table.relay(), t.archive.part, archiveParts)
	}
	if former.stream != t.stream {
		t.Adopted = former.stream
	}
	t.First = created == nil
	if t.First {
		if err := t.examineFirst(ctx, conn, &former); err != nil {
			return err
		}
	}
	if created != nil {
		t.Checkpoint = Checkpoint{Created: *created, Sequence: uint64(sequence), Before: uint64(before)}
	}
	t.streamCreated = t.Checkpoint.Created
	t.outbox.led = led{t.stream, t.Number, t.OutboxID}
	t.floor.at, t.scanFrom = scanFrom, scanFrom
	if t.cached {
		t.floor = newFloor()
	}
	// The server's clock may have been set back since.
	t.archive.filled = time.Now().Add(t.outbox.archiveSpan() - min(max(partAge, 0), t.outbox.archiveSpan()))
	return nil
}

// knownAs returns the outbox's name in the stream if this process has led there before: then it is the same again, even if
// somebody has deleted the record. Nil if it is not known.
func (o *Outbox) knownAs(stream string) *uuid.UUID {
	if o.led.stream != stream || o.led.outboxID == uuid.Nil {
		return nil
	}
	return &o.led.outboxID
}

// examineFirst finds out whether a term for which no checkpoint is recorded is really the first one. Somebody may have
// deleted the record: then there are archived events of the stream, or the sequence has given out seqs of events that wait no
// more. Such a term is not the first, and its checkpoint is zero: all of the stream is read back. It is harmless if that was
// not needed, as after events that were only ever rolled back.
func (t *Term) examineFirst(ctx context.Context, conn *pgx.Conn, former *relayed) error {
	var archived *int
	err := conn.QueryRow(ctx, `select part from `+t.outbox.table.published()+` where stream = $1 order by published_at desc limit 1`, t.stream).Scan(&archived)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	used := archived != nil
	if !used && former.stream == "" && t.sequence != "" {
		err := conn.QueryRow(ctx, `
select s.is_called and s.last_value >= q.seqstart and (select coalesce(min(seq) > q.seqstart, true) from only `+t.outbox.table.outbox()+`)
  from `+t.sequence+` s, pg_catalog.pg_sequence q where q.seqrelid = to_regclass($1)`, t.sequence).Scan(&used)
		if err != nil {
			return err
		}
	}
	if !used {
		return nil
	}
	t.First = false
	if former.stream == "" { // Otherwise the latest leader has said which part is being filled.
		if archived != nil && *archived != t.archive.part {
			t.archive.part = *archived
			if _, err := conn.Exec(ctx, `update only `+t.outbox.table.relay()+` set part = $1 where stream = $2`, *archived, t.stream); err != nil {
				return err
			}
		}
		attrs := []slog.Attr{slog.String("table", t.outbox.table.relay()), slog.String("stream", t.stream)}
		if archived != nil {
			t.outbox.log.LogAttrs(ctx, slog.LevelWarn, "events were published before, and somebody has deleted the record of that; reading back the whole stream", attrs...)
		} else {
			t.outbox.log.LogAttrs(ctx, slog.LevelInfo, "events may have been published before, and nothing is recorded of that; reading back the whole stream", attrs...)
		}
	}
	return nil
}

// outrank makes the leader of this stream the latest of all streams', whatever the clock said before.
func (o *Outbox) outrank(ctx context.Context, conn *pgx.Conn, stream string) error {
	_, err := conn.Exec(ctx, `
update only `+o.table.relay()+` x set leader_since = r.leader_since - interval '1 microsecond'
  from only `+o.table.relay()+` r where r.stream = $1 and x.stream <> r.stream and x.leader_since >= r.leader_since`, stream)
	return err
}
