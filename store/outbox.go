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

// Options of an [Outbox]. The zero value is the default outbox, public.outbox.
type Options struct {
	// Table names the outbox. The default is public.outbox.
	Table Table
	// HoldDead keeps back the later events of an aggregate that has a dead letter, until it is requeued or
	// discarded. The default, false, lets them go on.
	HoldDead bool
	// Retain is how long at least published events stay in the archive. If the broker loses events that it has acknowledged,
	// the relay puts them back from there. While a relay leads, events are gone after one and a half times Retain. 0 turns the
	// archive off, and empties it.
	Retain time.Duration
	// DeadRetain is how long dead letters are kept: a leader removes older ones. The default, 0, keeps them until a person
	// decides. It cannot be set with HoldDead.
	DeadRetain time.Duration
	// AdoptStream lets Begin and Stand go on with another stream than the one that the outbox has been relayed to. The
	// default, false, refuses that with ErrOtherStream: pending events would go to one stream, and those published before are
	// in another.
	AdoptStream bool
	// DSNFile names a file with the DSN; Open is then called without one. PasswordFile names a file with the password, which
	// takes precedence over the DSN's. Both files have one line. They are read at each connection, as is a passfile, so a
	// rotated secret needs no restart. Another server or database in DSNFile does.
	DSNFile, PasswordFile string
	// BeforeConnect may change how the next connection is made, above all the password, such as a token that is made for each
	// connection: Host, Port and User say for which. It is called before each attempt, within the attempt's time. The settings
	// that the outbox relies on are applied after it.
	BeforeConnect func(ctx context.Context, config *pgx.ConnConfig) error
	// Logger receives what happens on connections in the background, and that Migrate has changed something. The default
	// discards it.
	Logger *slog.Logger
}

// Outbox is the relay's and the operator's side of the outbox tables; producers need only [Insert]. It is
// safe for concurrent use, but one process has one leader's session: see [Outbox.Session].
type Outbox struct {
	table              Table
	retain, deadRetain time.Duration
	adopt              bool
	holdDead           bool
	log                *slog.Logger

	connector *connector
	session   *Session

	back      back                  // Where rows may have appeared below the floor.
	floorSeen atomic.Int64          // The floor, for those who do not have the session.
	held      atomic.Pointer[names] // Aggregates held back by a dead letter (Options.HoldDead); nil for none.
	filling   atomic.Int32          // The part of the archive that rows come to.
	paused    atomic.Pointer[Pause] // As it was last found; nil for none.
	pauseTold atomic.Bool           // The pause has changed.
	// listening tells that notifications are heard.
	listening atomic.Bool
	// sound tells that the tables were as they have to be, once.
	sound atomic.Bool
	// unsummarized is how many rows came to the archive since its index was brought up to date.
	unsummarized atomic.Int64

	// Only to be used with the session, inside Do or DoPatiently.
	leftOut    *names // Of held, what the present exchange leaves out by name.
	queries    queries
	sequence   string // The quoted name of the one that seqs come from; empty if it may not be read.
	unicode    bool   // The database's encoding has all characters.
	ascii      bool   // Only those of ASCII are recorded: another may have been what the database refused.
	floor      floor
	lowered    int64         // Where rows were put back that the present exchange has to look for; the highest seq for nowhere.
	scanFrom   int64         // What the table says of the floor.
	drawn      int64         // The highest seq that the sequence had given out by the latest observation,
	observed   time.Time     // which was then.
	cached     bool          // The sequence gives each session several numbers at once.
	complete   bool          // The latest page had all rows.
	overtaken  bool          // The latest page may lack rows that a command has put back or let go on.
	took       time.Duration // The latest fetch.
	pageSizes  pageSizes
	large      bool       // The latest page came upon a row that is not small.
	generation uint64     // The session's, at the last Begin; 0 before.
	checked    uint64     // The session's generation when the tables were found ready by Stand; 0 before.
	said       saidReason // What Stand has recorded.
	pauseAsked time.Time  // When it was last asked whether the outbox is paused.
	stream     string     // That the term publishes to,
	term       int64      // and the term's number,
	outbox     uuid.UUID  // and the outbox's name in the stream.

	streamCreated time.Time // When the stream was created that the checkpoint is of.

	archive archive
}

// Open prepares access to the outbox behind dsn, a Postgres URL or keyword string. It makes no connection
// yet, so it fails only if dsn or options are wrong, and its error quotes nothing of dsn. A DSN that leads through a pooler is
// refused at the first use.
//
// If dsn names several servers, or a server has several addresses, the first that takes writes is used, unless
// target_session_attrs says otherwise. Each has three seconds, or the DSN's connect_timeout.
func Open(dsn string, options Options) (*Outbox, error) {
	connector, err := newConnector(dsn, &options)
	if err != nil {
		return nil, err
	}
	if err := options.Table.validate(); err != nil {
		return nil, err
	}
	if options.Retain < 0 {
		return nil, fmt.Errorf("option Retain: %v is negative", options.Retain)
	}
	if options.DeadRetain < 0 {
		return nil, fmt.Errorf("option DeadRetain: %v is negative", options.DeadRetain)
	}
	if options.DeadRetain > 0 && options.HoldDead {
		return nil, errHoldsDead
	}
	log := options.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	table := options.Table.orDefault()
	return &Outbox{
		table:      table,
		retain:     options.Retain,
		adopt:      options.AdoptStream,
		log:        log,
		holdDead:   options.HoldDead,
		deadRetain: options.DeadRetain,
		connector:  connector,
		session:    newSession(connector),
		queries:    table.queries(options.HoldDead, ""),
		unicode:    true,
		floor:      newFloor(),
	}, nil
}

// Table returns the outbox's name, which also inserts into it.
func (o *Outbox) Table() Table { return o.table }

// Retains reports whether published events are kept in the archive: see Options.Retain.
func (o *Outbox) Retains() bool { return o.retain > 0 }

// Database returns the name of the database that the outbox is in.
func (o *Outbox) Database() string { return o.connector.database }

// Session returns the connection that the relay works on. An elector takes its lock on the same one.
func (o *Outbox) Session() *Session { return o.session }

// Close ends the session, if one is open.
func (o *Outbox) Close(ctx context.Context) error { return o.session.Close(ctx) }

// Migrate creates the outbox's tables or brings them to this version. It is safe to call at every start and
// from many processes at once. A table of that name that is not ours is refused with [ErrForeignTable]
// and never altered.
func (o *Outbox) Migrate(ctx context.Context) error {
	err := o.with(ctx, func(conn *pgx.Conn) error { return o.table.migrate(ctx, conn, o.log) })
	return o.judged(err)
}

// judged notes what a look at the tables has found. If they were all right before, a table of another shape is not one that
// only happens to have the outbox's name.
func (o *Outbox) judged(err error) error {
	switch {
	case err == nil:
		o.sound.Store(true)
	case o.sound.Load() && errors.Is(err, ErrForeignTable):
		return fmt.Errorf("%w: waiting until it is as it was: %w", ErrTableChanged, err)
	}
	return err
}

// Check verifies that the schema has the right version and shape and that the role may do what the relay
// needs. The error says what to do.
func (o *Outbox) Check(ctx context.Context) error {
	return o.judged(o.with(ctx, func(conn *pgx.Conn) error { return o.table.check(ctx, conn) }))
}

// with runs one task on a connection of its own.
func (o *Outbox) with(ctx context.Context, task func(conn *pgx.Conn) error) error {
	conn, err := o.connector.connect(ctx, forAdmin())
	if err != nil {
		return err
	}
	err = task(conn)
	if closeErr := conn.Close(context.WithoutCancel(ctx)); err == nil && closeErr != nil {
		return fmt.Errorf("close connection: %w", closeErr)
	}
	return err
}

// explain is Table.explainTo for errors on the outbox's own connections.
func (o *Outbox) explain(operation string, err error) error {
	return o.table.explainTo(o.connector.user, operation, err)
}

// Blocked is an aggregate whose events wait because one of them was refused.
type Blocked struct {
	AggregateType string
	AggregateID   string
	// For is how long until the refused event is due again.
	For time.Duration
}

// Term is what the leader knows at the beginning of its term.
type Term struct {
	// Outbox names this outbox in the stream, for ever: the id was drawn when it was first published there.
	Outbox uuid.UUID
	// Number counts the terms of all relays that ever published to the stream.
	Number int64
	// Blocked are the aggregates that wait for another attempt.
	Blocked []Blocked
	// Floor is where the first fetch begins: see [Reply.Floor].
	Floor int64
	// Checkpoint says how far back the stream has to be read.
	Checkpoint Checkpoint
	// First tells that no checkpoint has been recorded yet, so nothing of this outbox has ever been published to this
	// stream.
	First bool
	// Adopted is the stream that the outbox was relayed to until now, if that is another one: see Options.AdoptStream.
	Adopted string
}

// Begin begins a term: it checks the schema, records leader (a name for humans) as publishing to stream, and returns what
// the previous leader left. The term's number is higher than the previous one's, and at least atLeast: the stream may know
// of later terms than an outbox that was restored from a backup. If the outbox is relayed to another stream, Begin returns
// an [ErrOtherStream], unless Options.AdoptStream is set.
func (o *Outbox) Begin(ctx context.Context, stream, leader string, atLeast int64) (term Term, err error) {
	err = o.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		o.floor, o.large, o.complete, o.generation = newFloor(), false, false, o.session.next.Load()
		o.back.take()
		o.pauseAsked = time.Time{}
		if err := o.judged(o.table.check(ctx, conn)); err != nil {
			return err
		}
		if err := o.survey(ctx, conn); err != nil {
			return o.explain("survey the outbox", err)
		}
		if o.stream == stream {
			atLeast = max(atLeast, o.term+1) // Whatever has become of the table: no number is given twice.
		}
		if err := o.recordLeader(ctx, conn, stream, leader, atLeast, &term); err != nil {
			return o.explain("record the leader", err)
		}
		// A term begins awake. The one before it may have ended asleep, and not every elector owns the session.
		if err := o.awake(ctx, conn); err != nil {
			return err
		}
		if err := o.readBlocked(ctx, conn, &term); err != nil {
			return o.explain("read which events are to be tried again", err)
		}
		term.Floor = o.floor.at
		o.floorSeen.Store(o.floor.at)
		return o.explain("read which aggregates are held", o.readHeld(ctx, conn))
	})
	return term, err
}

// survey finds out what the statements depend on: the sequence of the seqs, and the database's encoding.
func (o *Outbox) survey(ctx context.Context, conn *pgx.Conn) error {
	var sequence, heirs *string
	err := conn.QueryRow(ctx, `
select (select format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where c.oid = to_regclass(pg_get_serial_sequence($1, 'seq')) and has_sequence_privilege(c.oid, 'SELECT')),
       current_setting('server_encoding') = 'UTF8',
       coalesce((select seqcache > 1 from pg_catalog.pg_sequence where seqrelid = to_regclass(pg_get_serial_sequence($1, 'seq'))), false),
       (select string_agg(inhrelid::regclass::text, ', ' order by inhrelid) from pg_catalog.pg_inherits where inhparent = to_regclass($1))`, o.table.outbox()).
		Scan(&sequence, &o.unicode, &o.cached, &heirs)
	if err != nil {
		return err
	}
	if heirs != nil {
		o.log.LogAttrs(ctx, slog.LevelWarn, "tables inherit from the outbox; what is in them is not published", slog.String("tables", cut(*heirs)))
	}
	o.drawn, o.observed = math.MinInt64, time.Time{} // Until the first exchange says.
	if sequence == nil {
		sequence = new(string)
	}
	o.sequence = *sequence
	o.queries = o.table.queries(o.holdDead, *sequence)
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
func (o *Outbox) readBlocked(ctx context.Context, conn *pgx.Conn, term *Term) error {
	var from *int64
	err := conn.QueryRow(ctx, `select min(seq) from only `+o.table.outbox()+` where retry_at is not null and given_up_at is null`).Scan(&from)
	if err != nil {
		return err
	}
	if from != nil {
		o.floor.lower(*from)
	}
	rows, err := conn.Query(ctx, `
select `+aggregateColumns+`,
       (extract(epoch from least(max(retry_at), clock_timestamp() + interval '1 day') - clock_timestamp()) * 1000000)::bigint
  from only `+o.table.outbox()+`
 where retry_at > clock_timestamp() and given_up_at is null and octet_length(aggregate_type) <= $1::int and octet_length(aggregate_id) <= $1::int
 group by 1, 2 limit $2::int`, blockedNameFits, blockedMost)
	if err != nil {
		return err
	}
	term.Blocked, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (b Blocked, err error) {
		var micros int64
		err = row.Scan(&b.AggregateType, &b.AggregateID, &micros)
		b.For = max(time.Duration(micros)*time.Microsecond, 0)
		return b, err
	})
	return err
}

// End ends a term whose session is still there: it gives back the lock that tells producers that the relay is asleep. An
// elector whose lock is on the session gives back both. With any other elector the previous leader may stand by, and must not
// go on making producers notify it.
func (o *Outbox) End(ctx context.Context) error {
	return o.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		if err := o.inTerm(); err != nil {
			return err
		}
		return o.awake(ctx, conn)
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
func (o *Outbox) recordLeader(ctx context.Context, conn *pgx.Conn, stream, leader string, atLeast int64, term *Term) error {
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
	batch.Queue(`select pg_advisory_xact_lock($1) from set_config('synchronous_commit', 'on', true)`, o.table.recordLeaderKey())
	batch.Queue(o.table.latest()).Query(former.scan)
	// All streams share the parts of the archive: the latest leader's record says which part is being filled.
	batch.Queue(`
insert into `+o.table.relay()+` as r (stream, outbox, term, leader, leader_since, part, part_since)
select $1, coalesce($5, gen_random_uuid()), greatest(1, $3::bigint), $2, clock_timestamp(), coalesce(l.part, 0), coalesce(l.part_since, clock_timestamp())
  from (values (1)) one
  left join (select stream, part, part_since from only `+o.table.relay()+` order by leader_since desc limit 1) l on true
 where coalesce(l.stream = $1, true) or $4::boolean
    on conflict (stream) do update
   set term = greatest(r.term + 1, $3), leader = excluded.leader, leader_since = excluded.leader_since,
       part = excluded.part, part_since = excluded.part_since, trouble = null, trouble_since = null, trouble_at = null
 returning term, outbox, stream_created, checkpoint, checkpoint_before, part, clock_timestamp() - part_since, scan_from,
       exists (select from only `+o.table.relay()+` x where x.stream <> r.stream and x.leader_since >= r.leader_since)`, stream, leader, atLeast, o.adopt, o.knownAs(stream)).
		Query(func(rows pgx.Rows) error {
			_, err := pgx.ForEachRow(rows, []any{
				&term.Number, &term.Outbox, &created, &sequence, &before, &o.archive.part, &partAge, &scanFrom, &outranked,
			}, func() error { began = true; return nil })
			return err
		})
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	if !began {
		return o.otherStream(stream, &former)
	}
	if outranked { // The clock was set back.
		if err := o.outrank(ctx, conn, stream); err != nil {
			return err
		}
	}
	if o.archive.part < 0 || o.archive.part >= archiveParts {
		return fmt.Errorf("%s: part %d of the archive is being filled, and there are %d: has a newer outbox-relay run? then use that", o.table.relay(), o.archive.part, archiveParts)
	}
	if former.stream != stream {
		term.Adopted = former.stream
	}
	term.First = created == nil
	if term.First {
		if err := o.examineFirst(ctx, conn, stream, &former, term); err != nil {
			return err
		}
	}
	if created != nil {
		term.Checkpoint = Checkpoint{Created: *created, Sequence: uint64(sequence), Before: uint64(before)}
	}
	o.stream, o.term, o.streamCreated, o.outbox = stream, term.Number, term.Checkpoint.Created, term.Outbox
	o.floor.at, o.scanFrom = scanFrom, scanFrom
	if o.cached {
		o.floor = newFloor()
	}
	// The server's clock may have been set back since.
	o.archive.filled = time.Now().Add(o.archiveSpan() - min(max(partAge, 0), o.archiveSpan()))
	return nil
}

// knownAs returns the outbox's name in the stream if this process has led there before: then it is the same again, even if
// somebody has deleted the record. Nil if it is not known.
func (o *Outbox) knownAs(stream string) *uuid.UUID {
	if o.stream != stream || o.outbox == uuid.Nil {
		return nil
	}
	return &o.outbox
}

// examineFirst finds out whether a term for which no checkpoint is recorded is really the first one. Somebody may have
// deleted the record: then there are archived events of the stream, or the sequence has given out seqs of events that wait no
// more. Such a term is not the first, and its checkpoint is zero: all of the stream is read back. It is harmless if that was
// not needed, as after events that were only ever rolled back.
func (o *Outbox) examineFirst(ctx context.Context, conn *pgx.Conn, stream string, former *relayed, term *Term) error {
	var archived *int
	err := conn.QueryRow(ctx, `select part from `+o.table.published()+` where stream = $1 order by published_at desc limit 1`, stream).Scan(&archived)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	used := archived != nil
	if !used && former.stream == "" && o.sequence != "" {
		err := conn.QueryRow(ctx, `
select s.is_called and s.last_value >= q.seqstart and (select coalesce(min(seq) > q.seqstart, true) from only `+o.table.outbox()+`)
  from `+o.sequence+` s, pg_catalog.pg_sequence q where q.seqrelid = to_regclass($1)`, o.sequence).Scan(&used)
		if err != nil {
			return err
		}
	}
	if !used {
		return nil
	}
	term.First = false
	if former.stream == "" { // Otherwise the latest leader has said which part is being filled.
		if archived != nil && *archived != o.archive.part {
			o.archive.part = *archived
			if _, err := conn.Exec(ctx, `update only `+o.table.relay()+` set part = $1 where stream = $2`, *archived, stream); err != nil {
				return err
			}
		}
		attrs := []slog.Attr{slog.String("table", o.table.relay()), slog.String("stream", stream)}
		if archived != nil {
			o.log.LogAttrs(ctx, slog.LevelWarn, "events were published before, and somebody has deleted the record of that; reading back the whole stream", attrs...)
		} else {
			o.log.LogAttrs(ctx, slog.LevelInfo, "events may have been published before, and nothing is recorded of that; reading back the whole stream", attrs...)
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
