package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// archiveParts is how many parts the archive has. One is being filled. The others are kept until their turn comes to be
// emptied, together for Options.Retain.
const archiveParts = 3

const (
	// archivePatience is how long the relay waits for a part that somebody else is reading, such as a backup, before it
	// goes on filling the one before. Meanwhile it does nothing else.
	archivePatience = 50 * time.Millisecond
	// archiveRetry is when it tries again.
	archiveRetry = 10 * time.Second
	// summarizeFrom is how many rows may be unsummarized, so that a recovery reads them all. It takes it some milliseconds.
	summarizeFrom = 10_000
	// summarizePatience is how long the relay waits until a part can be summarized, such as for vacuum.
	summarizePatience = time.Second
)

// archive is which part is being filled.
type archive struct {
	part   int
	filled time.Time // When it is the next one's turn, or to be tried again.
	due    time.Time // Since when it is; zero if it is not.
}

// archiveSpan is how long one part is filled.
func (o *Outbox) archiveSpan() time.Duration { return o.retain / (archiveParts - 1) }

// of puts a table's name before each of its columns.
func of(table, columns string) string {
	return table + "." + strings.ReplaceAll(columns, ", ", ", "+table+".")
}

// tendArchive empties the next part and goes on to it when that is due. An obstacle does not end the term: the relay goes on
// with the part that it has. It is to be called with the session, inside Do or DoPatiently.
func (t *Term) tendArchive(ctx context.Context, conn *pgx.Conn) {
	now := time.Now()
	if t.stream == "" || now.Before(t.archive.filled) {
		return
	}
	t.archive.filled = now.Add(archiveRetry) // Unless it succeeds.
	if t.archive.due.IsZero() {
		t.archive.due = now
	}
	var err error
	if t.outbox.retain == 0 {
		err = t.emptyArchive(ctx, conn)
	} else {
		err = t.turnArchive(ctx, conn)
	}
	if err == nil {
		return
	}
	level := slog.LevelWarn
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == codeLockNotAvailable && now.Sub(t.archive.due) < t.outbox.archiveSpan() {
		level = slog.LevelDebug // Somebody is reading; for longer than that, the archive grows beyond what is said of it.
	}
	t.outbox.log.LogAttrs(ctx, level, "could not empty the oldest part of the archive; trying again later", slog.Any("error", err))
}

// turnArchive empties the next part and goes on with it.
func (t *Term) turnArchive(ctx context.Context, conn *pgx.Conn) error {
	next := (t.archive.part + 1) % archiveParts
	err := t.outbox.truncate(ctx, conn, []string{t.outbox.table.part(next)}, func(tx pgx.Tx) error {
		// In the rows of all streams: it is all streams' archive.
		tag, err := tx.Exec(ctx, `
update only `+t.outbox.table.relay()+` set part = $1, part_since = clock_timestamp()
 where exists (select from only `+t.outbox.table.relay()+` where stream = $2 and term = $3)`, next, t.stream, t.Number)
		if err == nil && tag.RowsAffected() == 0 {
			return errDeposed
		}
		return err
	})
	if err != nil {
		return err
	}
	t.archive = archive{part: next, filled: time.Now().Add(t.outbox.archiveSpan())}
	return nil
}

// emptyArchive empties all parts, since nothing is to be retained.
func (t *Term) emptyArchive(ctx context.Context, conn *pgx.Conn) error {
	var used bool
	if err := conn.QueryRow(ctx, `select exists (select from `+t.outbox.table.published()+`)`).Scan(&used); err != nil {
		return err
	}
	if used {
		if err := t.outbox.truncate(ctx, conn, t.outbox.table.parts(), nil); err != nil {
			return err
		}
	}
	t.archive.filled = time.Now().Add(24 * time.Hour) // Nothing comes to it.
	return nil
}

// truncate empties parts of the archive and does one thing more in the same transaction.
func (o *Outbox) truncate(ctx context.Context, conn *pgx.Conn, parts []string, more func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local lock_timeout = `+milliseconds(archivePatience)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `truncate only `+strings.Join(parts, ", ")); err != nil || more == nil {
			return err
		}
		return more(tx)
	})
}

// Checkpoint is a lower bound: every row still in the outbox that was ever published has a higher sequence in the
// stream. The zero value is always true.
type Checkpoint struct {
	// Created is when the stream was created that the sequences are of, to the microsecond.
	Created time.Time
	// Sequence is the bound, Before the one that was recorded before it. A Before that is higher says that the leader who
	// recorded it left in order: no row in the outbox has been published.
	Sequence, Before uint64
}

// Ref names an event as its message in the stream does.
type Ref struct {
	Seq int64
	ID  uuid.UUID
}

// Archived is an event in the archive.
type Archived struct {
	Ref

	// After is a sequence of the stream after which the event was stored.
	After uint64
	// Size is that of its payload in bytes.
	Size int
	// Aggregate is the same for all events of an aggregate, and differs from that of others.
	Aggregate int64

	part int        // Where it is:
	at   pgtype.TID // nothing moves in the archive.
}

// errDeposed ends a term: another relay has begun one since, or somebody has emptied the table that says who leads.
var errDeposed = errors.New("the relay's term is not recorded any more: another relay has taken over, or somebody has deleted rows of the table of relays")

// Archive returns the archived events that were published to the term's stream with an After of at least from, in no
// particular order, on a connection of its own, so that the session can go on showing that the leader lives. Besides
// those it reads what was archived in the last few seconds, and all of it if from is 0: a million events take about a
// third of a second.
func (t *Term) Archive(ctx context.Context, from uint64) (events []Archived, err error) {
	if t.outbox.retain == 0 {
		return nil, nil
	}
	err = t.aside(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		if from > 0 { // Statistics of tables that are filled and emptied within minutes mislead the planner.
			if _, err := conn.Exec(ctx, `set enable_seqscan = off; set max_parallel_workers_per_gather = 0`); err != nil {
				return err
			}
		}
		rows, err := conn.Query(ctx, t.outbox.archiveQuery(), t.stream, int64(from))
		if err != nil {
			return err
		}
		events, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (a Archived, err error) {
			var after int64
			err = row.Scan(&a.Seq, &a.ID, &after, &a.Size, &a.Aggregate, &a.part, &a.at)
			a.After = uint64(after)
			return a, err
		})
		return err
	})
	return events, t.outbox.explain("read the archive", err)
}

func (o *Outbox) archiveQuery() string {
	return `
select seq, id, after, octet_length(data), coalesce(hashtextextended(aggregate_id, hashtextextended(aggregate_type, 0)), 0), part, ctid
  from ` + o.table.published() + ` where stream = $1 and after >= $2`
}

// summarize brings the index of the part of the archive up to date that is being filled, if enough has come to it.
func (t *Term) summarize(ctx context.Context) error {
	if t.unsummarized.Load() < summarizeFrom {
		return nil
	}
	t.unsummarized.Store(0)
	return t.outbox.with(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, `set lock_timeout = `+milliseconds(summarizePatience)); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, `select `+t.outbox.table.summarize()+`($1)`, t.filling.Load())
		return err
	})
}

// aside runs one task of the leader on a connection of its own. If Postgres has no connection left, the task runs on the
// session: to postpone it would be to drop it.
func (t *Term) aside(ctx context.Context, task func(ctx context.Context, conn *pgx.Conn) error) error {
	conn, err := t.outbox.connector.connect(ctx, forAdmin())
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == codeTooManyConnections {
		return t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
			if err := t.inTerm(); err != nil {
				return err
			}
			return task(ctx, conn)
		})
	}
	if err != nil {
		return err
	}
	err = task(ctx, conn)
	if closeErr := conn.Close(context.WithoutCancel(ctx)); err == nil && closeErr != nil {
		return fmt.Errorf("close connection: %w", closeErr)
	}
	return err
}

// Settle removes the events that are still in the outbox, for the archive if there is one, and returns how many it removed.
// found are events that the stream has stored after the sequence after. kept are events that the database does not let go,
// each for a reason of its own. Like RoundTrip it works on the session, for the leader only.
//
// Rows that are still there although the database reported no error are an [ErrKept].
func (t *Term) Settle(ctx context.Context, found []Ref, after uint64) (settled int, kept []Ref, err error) {
	err = t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		if err := t.inTerm(); err != nil {
			return err
		}
		var err error
		settled, err = t.settleFound(ctx, conn, found, after)
		if !ofRow(err) {
			return err
		}
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			settled, kept = 0, nil
			if err := atOnce(ctx, tx); err != nil {
				return err
			}
			return t.settleHalves(ctx, tx, found, after, &settled, &kept)
		})
	})
	return settled, kept, t.outbox.explain("settle what the stream holds", err)
}

// settleFound removes events in one round trip.
func (t *Term) settleFound(ctx context.Context, on interface {
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}, found []Ref, after uint64,
) (settled int, err error) {
	var (
		n         tally
		remaining int
		seqs, ids = split(found)
		batch     = &pgx.Batch{}
	)
	t.remove(batch, &n, t.queries.byID, true, after, []any{seqs, ids}, nil)
	batch.Queue(t.queries.stillThere, seqs, ids).QueryRow(func(row pgx.Row) error { return row.Scan(&remaining) })
	if err := on.SendBatch(ctx, batch).Close(); err != nil {
		return 0, err
	}
	if remaining > 0 {
		return 0, t.outbox.table.stillThere(remaining)
	}
	return int(n.removed), nil
}

// settleHalves removes events. Where the database refuses that because of one of them, it halves them, again and again.
func (t *Term) settleHalves(ctx context.Context, tx pgx.Tx, found []Ref, after uint64, settled *int, kept *[]Ref) error {
	n := 0
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) (err error) {
		n, err = t.settleFound(ctx, tx, found, after)
		return err
	})
	switch {
	case err == nil:
		*settled += n
		return nil
	case !ofRow(err):
		return err
	case len(found) == 1:
		*kept = append(*kept, found[0])
		return nil
	}
	half := len(found) / 2
	if err := t.settleHalves(ctx, tx, found[:half], after, settled, kept); err != nil {
		return err
	}
	return t.settleHalves(ctx, tx, found[half:], after, settled, kept)
}

// stillThere says that the database keeps so many rows of events that the stream has stored: an [ErrKept].
func (t Table) stillThere(rows int) error {
	return fmt.Errorf("%w: %d rows of the outbox %s were deleted and are still there; look for a trigger or rule that keeps deleted rows (outbox-relay doctor names it) and drop it", ErrKept, rows, t)
}

// setBack says that rows were not removed since their seqs may be those of other events by now: an [ErrKept].
func (t Table) setBack() error {
	return fmt.Errorf("%w: the sequence of the outbox %s was set back, so rows may have the seqs of others; they are told apart by their ids now. If that goes on, the sequence counts down: outbox-relay doctor names it", ErrKept, t)
}

// PutBack takes lost events out of the archive and puts them back into the outbox, with their ids and seqs, and then
// records the checkpoint; the zero checkpoint records none. It returns how many it put back. An event whose seq another event
// has stays in the archive until that is published again. So do a few events that the database refuses, each for a reason of
// its own, such as a foreign key that somebody gave the outbox: the log names them. Like RoundTrip it works on the session,
// for the leader only.
//
// If the checkpoint is of a stream that was created anew, the sequences in the archive belong to the old stream: they become
// 0, a bound that is always true. That may take long, on a connection of its own.
func (t *Term) PutBack(ctx context.Context, lost []Archived, checkpoint Checkpoint) (back int, err error) {
	if len(lost) > 0 {
		var refused []refusal
		err := t.inTermTx(ctx, func(tx pgx.Tx) error {
			var err error
			back, err = t.outbox.putBack(ctx, tx, lost, &refused)
			return err
		})
		if ofRow(err) {
			err = t.inTermTx(ctx, func(tx pgx.Tx) error {
				back, refused = 0, nil
				if err := atOnce(ctx, tx); err != nil {
					return err
				}
				return t.putBackHalves(ctx, tx, lost, &back, &refused)
			})
		}
		t.outbox.tellRefused(ctx, refused)
		if err != nil {
			return 0, t.outbox.explain("put back what the stream has lost", err)
		}
		lowest := slices.MinFunc(lost, func(a, b Archived) int { return cmp.Compare(a.Seq, b.Seq) })
		t.outbox.back.lower(lowest.Seq) // They may be below the floor.
	}
	if checkpoint == (Checkpoint{}) {
		return back, nil
	}
	if !checkpoint.Created.Equal(t.streamCreated) {
		if err := t.disown(ctx, checkpoint.Created); err != nil {
			return back, t.outbox.explain("adjust the archive to the new stream", err)
		}
	}
	err = t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		if err := t.inTerm(); err != nil {
			return err
		}
		return t.record(ctx, conn, checkpoint)
	})
	if err == nil {
		t.streamCreated = checkpoint.Created
	}
	return back, t.outbox.explain("record the checkpoint", err)
}

// inTermTx runs a transaction on the term's session.
func (t *Term) inTermTx(ctx context.Context, task func(tx pgx.Tx) error) error {
	return t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		if err := t.inTerm(); err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, conn, task)
	})
}

// refusal is an event that the database refuses to take back.
type refusal struct {
	Ref

	err error
}

// refusedMost is how many events may stay in the archive because the database refuses them. If it refuses more, something is
// wrong with the table, and nothing is put back or published until that is mended.
const refusedMost = 100

// putBackHalves puts events back. Where the database refuses that because of one of them, it halves them, again and again.
func (t *Term) putBackHalves(ctx context.Context, tx pgx.Tx, lost []Archived, back *int, refused *[]refusal) error {
	n, taken := 0, []refusal(nil)
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) (err error) {
		n, err = t.outbox.putBack(ctx, tx, lost, &taken)
		return err
	})
	switch {
	case err == nil:
		*back += n
		*refused = append(*refused, taken...)
		return nil
	case !ofRow(err) || len(*refused) >= refusedMost:
		return err
	case len(lost) == 1:
		*refused = append(*refused, refusal{lost[0].Ref, located(err)})
		return nil
	}
	half := len(lost) / 2
	if err := t.putBackHalves(ctx, tx, lost[:half], back, refused); err != nil {
		return err
	}
	return t.putBackHalves(ctx, tx, lost[half:], back, refused)
}

// tellRefused names events that stay in the archive.
func (o *Outbox) tellRefused(ctx context.Context, refused []refusal) {
	const named = 10
	for _, r := range refused[:min(len(refused), named)] {
		o.log.LogAttrs(ctx, slog.LevelError, "the database does not take back an event that the stream has lost; it stays in the archive until that is emptied: see `outbox-relay replay`",
			slog.Int64("seq", r.Seq), slog.String("id", r.ID.String()), slog.Any("error", r.err))
	}
	if more := len(refused) - named; more > 0 {
		o.log.LogAttrs(ctx, slog.LevelError, "the database does not take back more events that the stream has lost", slog.Int("events", more))
	}
}

// lastErrorBack is the last error of a row that comes back from the archive. It was published, so the relay knows what to
// do with it; with a last error the table takes also what it would refuse from a producer (migrations/0002_checks.sql).
const lastErrorBack = `'put back from the archive'`

// errSeqTaken is why an event stays in the archive for now.
var errSeqTaken = errors.New("another event has its seq: it comes back once that is published, perhaps after later ones of its aggregate")

// putBack puts events back at once. Refused are some of those that stay in the archive.
func (o *Outbox) putBack(ctx context.Context, tx pgx.Tx, lost []Archived, refused *[]refusal) (int, error) {
	var (
		seqs [archiveParts][]int64
		ids  [archiveParts][][16]byte
		at   [archiveParts][]pgtype.TID
	)
	for _, a := range lost {
		seqs[a.part], ids[a.part], at[a.part] = append(seqs[a.part], a.Seq), append(ids[a.part], a.ID), append(at[a.part], a.at)
	}
	back := 0
	for part := range archiveParts {
		if len(seqs[part]) == 0 {
			continue
		}
		// What is in the outbox already is to be published anyway. What is not put there, since another event has its seq,
		// stays in the archive: ids decide.
		var (
			put        int
			takenSeqs  []int64
			takenNames [][16]byte
		)
		err := tx.QueryRow(ctx, `
with lost as (select p.ctid as at, `+of("p", eventColumns)+` from `+o.table.part(part)+` p
               where p.ctid = any($1::tid[]) and ((p.seq, p.id) in (select * from unnest($2::bigint[], $3::uuid[]))) is true),
     back as (insert into `+o.table.outbox()+` (`+eventColumns+`, last_error) overriding system value select `+eventColumns+`, `+lastErrorBack+` from lost
                  on conflict (seq) do nothing returning seq, id),
     there as (select seq, id from back
               union select seq, id from only `+o.table.outbox()+` o where o.seq = any($2::bigint[]) and ((o.seq, o.id) in (select seq, id from lost)) is true),
     gone as (delete from `+o.table.part(part)+` p where p.ctid = any($1::tid[]) and ((p.seq, p.id) in (select seq, id from there)) is true),
     lowered as (update only `+o.table.relay()+` set scan_from = least(scan_from, (select min(seq) from back)))
select (select count(*) from there), array_agg(seq), array_agg(id)
  from (select seq, id from lost where ((seq, id) in (select seq, id from there)) is not true order by seq limit `+fmt.Sprint(refusedMost)+`) taken`,
			at[part], seqs[part], ids[part]).Scan(&put, &takenSeqs, &takenNames)
		if err != nil {
			return 0, err
		}
		for i, seq := range takenSeqs {
			*refused = append(*refused, refusal{Ref{Seq: seq, ID: takenNames[i]}, errSeqTaken})
		}
		back += put
	}
	return back, nil
}

// disown makes the sequences in the archive true for another stream, unless they are of that stream.
func (t *Term) disown(ctx context.Context, created time.Time) error {
	return t.aside(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `
update `+t.outbox.table.published()+` set after = 0
 where stream = $1 and after > 0 and exists (select from only `+t.outbox.table.relay()+` where stream = $1 and stream_created <> $2)`, t.stream, created)
		return err
	})
}

// record records a checkpoint, on disk: published events are only looked for after it.
func (t *Term) record(ctx context.Context, conn *pgx.Conn, c Checkpoint) error {
	tag, err := conn.Exec(ctx, `
update only `+t.outbox.table.relay()+` set stream_created = $2, checkpoint = $3, checkpoint_before = $4
  from set_config('synchronous_commit', 'on', true) where stream = $1 and term = $5`,
		t.stream, c.Created, int64(c.Sequence), int64(c.Before), t.Number)
	if err == nil && tag.RowsAffected() == 0 {
		return errDeposed
	}
	return err
}

// split returns the columns. Ids are bare arrays, which pgx encodes many times faster than a uuid.UUID.
func split(refs []Ref) (seqs []int64, ids [][16]byte) {
	seqs, ids = make([]int64, len(refs)), make([][16]byte, len(refs))
	for i, r := range refs {
		seqs[i], ids[i] = r.Seq, r.ID
	}
	return seqs, ids
}
