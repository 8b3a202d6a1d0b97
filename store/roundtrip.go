package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Row is one pending event.
type Row struct {
	Seq           int64
	ID            uuid.UUID
	Topic         string
	AggregateType string
	AggregateID   string
	EventType     string
	Data          []byte
	Headers       []byte // JSON; nil for none.
	CreatedAt     time.Time
	Attempts      int // How often the broker refused this row.
	// Unfit says why the row was not read: it can never be published. Only what is small enough of it is here. Empty for
	// a row that can be tried.
	Unfit string
	// Nameless tells that what is not here of an unfit row is also its aggregate's name.
	Nameless bool
	// Unread is how many bytes of an unfit row were not read.
	Unread int64
}

// Size is how many bytes of memory the row's columns take.
func (r *Row) Size() int {
	return len(r.Data) + len(r.Headers) + len(r.Topic) + len(r.AggregateType) + len(r.AggregateID) + len(r.EventType)
}

// Failure is what became of one row that was refused.
type Failure struct {
	Ref

	Attempts int           // Including the one that failed just now.
	Wait     time.Duration // Until the next attempt; not used for a row that is given up.
	Reason   string
	// Size is how large the row is. A large one that is given up stays where it is, as [Kept] rows do: to copy it among the
	// dead letters would hold up everybody else.
	Size int64
}

// largeLetter is from which size on a row that is given up is marked rather than moved.
const largeLetter = 64 << 10

// Fetch asks for a page of rows.
type Fetch struct {
	// Rows and Bytes bound the page; bytes count all columns. A page holds at least one row, however large.
	Rows, Bytes int
	// MaxData is the largest payload that the broker takes. A row with a larger one is not read: it comes back as
	// [Row.Unfit]. 0 means that the limit is not known.
	MaxData int
	// Held are the seqs of the rows that the relay holds. They are not returned again. Highest is the highest seq that it
	// ever held.
	Held    []int64
	Highest int64
	// Passed are seqs that are not to be returned either: their aggregates are blocked.
	Passed []int64
	// BlockedTypes and BlockedIDs are, pairwise, the aggregates whose rows are not wanted now.
	BlockedTypes, BlockedIDs []string
	// Back makes the fetch begin at BackTo at the latest, since rows from there on are wanted again.
	Back   bool
	BackTo int64
	// Stay, with Back, makes only this fetch begin there: the floor stays where it is. The caller must go back by itself for
	// the rows below the floor that are returned, should it let go of them.
	Stay bool
}

// SleepChange says what to do about the lock that tells producers whether the relay is asleep.
type SleepChange int

// The changes that a [Request] may ask for.
const (
	KeepSleep  SleepChange = iota // Leave it as it is.
	FallAsleep                    // Try to take it, before the fetch.
	WakeUp                        // Give it back, before the fetch.
)

// Settled are rows that the stream has stored. They leave the outbox, for the archive if there is one.
type Settled struct {
	Seqs []int64
	// After is a sequence of the stream after which all of them are stored.
	After uint64
	// Unarchived tells that they are not in the stream: it has another event with the id of each.
	Unarchived bool
}

// Request is one round trip: all that is to be recorded, then what is to be fetched, in one transaction.
type Request struct {
	Settled []Settled
	Failed  []Failure // To be tried again.
	Dead    []Failure // To be moved to the dead letters.
	// Checkpoint is the new checkpoint, to be recorded with all of the above; 0 for none. See [Checkpoint].
	Checkpoint uint64
	// ScanFrom is where the rows begin that are passed over now and wanted later, so that the next term does not begin above
	// them; nil for none. It is recorded with a checkpoint.
	ScanFrom *int64
	// MaxPayload is the largest payload that the broker takes, to be recorded for the operator's commands; 0 for no news.
	MaxPayload int
	// AskPause wants to know whether the outbox is paused, which [Outbox.Paused] then says.
	AskPause bool
	Sleep    SleepChange
	Fetch    *Fetch // Nil for none.
}

// Response is the answer to a [Request].
type Response struct {
	// Rows are those visible in one snapshot, in seq order.
	Rows []Row
	// Full reports that the page's bound was reached, so there may be more.
	Full bool
	// Asleep reports that FallAsleep succeeded. If it did and Rows is empty, whatever is inserted from now on
	// causes a notification. If it did not, a producer's transaction is under way.
	Asleep bool
	// Kept are rows for which the database refused what was asked, each for a reason of its own: the rest was done.
	Kept []Kept
	// Floor is a seq below which no row will appear that has not been returned, but for rows of aggregates that were not
	// wanted: a later fetch that goes back to here sees what those had up to now, and what others still commit.
	Floor int64
	// Remaining is an [ErrKept] if some of the Settled rows are still in the outbox although Postgres reported no error, or
	// more than those are gone, and an [ErrUnarchived] if the archive does not have them: something in the database did
	// otherwise. Nothing may be published until it is known what.
	Remaining error
}

// Kept is a row that could not be recorded as asked.
type Kept struct {
	Ref

	// Settle tells that the stream has stored the event and its row could not be removed; otherwise the row was refused,
	// and that could not be recorded.
	Settle bool
	// Marked tells that the row's given_up_at is set: it stays in the outbox, and is never fetched.
	Marked bool
	// Err is what Postgres said.
	Err error
}

// queries are the statements of a round trip with the table's name in them.
type queries struct {
	inBitmap, inList removal // Of rows by seq, close together and not: see keys.
	byID             removal // Of rows by seq and id.
	fail             string
	copyDead         string // Copies given-up rows to the dead letters,
	removeDead       string // removes from the outbox those that are dead letters now,
	notMoved         string // and selects the others.
	giveUp           string // Marks given-up rows that stay in the outbox.
	checkpoint       string
	scanFrom         string // What was recorded last of where a first fetch may begin.
	maxPayload       string
	remaining        string       // How many of some rows are still there,
	stillThere       string       // and of some by their ids.
	prelude          string       // Takes or leaves the sleep lock and observes the transactions, before the fetch takes its snapshot.
	idle             string       // Whether no other transaction that wrote to the outbox is still open.
	noOlderWriter    string       // Whether no open transaction with a number below $1 has drawn a seq.
	fetch            [2][2]string // By whether payloads are measured, and aggregates blocked.
	keys             [2]string    // Only the names of a page's rows, by whether aggregates are blocked.
	one              string       // One row of a page.
}

// removal takes settled rows out of the outbox.
type removal struct {
	archive [archiveParts]string // Copies them to that part of the archive, first; its last parameters are the stream and after.
	remove  string               // Its last parameter, if there is a check, is what the check compares.
}

// removal removes the rows o for which a condition with so many parameters holds, if a check holds, which only the deletion
// makes. It inserts into the archive's part directly: routing through the partitioned table would cost half as much again for
// each row. So would DELETE … RETURNING, which goes through a temporary store.
func (t Table) removal(condition, check string, parameters int) removal {
	r := removal{remove: `delete from only ` + t.outbox() + ` o where ` + condition + check}
	for part := range r.archive {
		r.archive[part] = fmt.Sprintf(`
insert into %s (part, stream, after, %s)
select %d, $%d, $%d, %[2]s from only %[6]s o where %[7]s`, t.part(part), eventColumns, part, parameters+1, parameters+2, t.outbox(), condition)
	}
	return r
}

// eventColumns are those that an event has in every table that it may be in.
const eventColumns = "seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at"

// queries are those of an outbox whose seqs come from a sequence, a quoted name; it is empty if there is none.
func (t Table) queries(holdDead bool, sequence string) queries {
	hold := ""
	if holdDead {
		hold = `
           and not exists (select from only ` + t.dead() + ` d
                            where ` + sameAggregate("d") + `)
           and not exists (select from only ` + t.outbox() + ` g
                            where g.given_up_at is not null and ` + sameAggregate("g") + `)`
	}
	drawn := `null::bigint` // The highest seq that the sequence has given out.
	if sequence != "" {
		drawn = `(select case when is_called then last_value else last_value - 1 end from ` + sequence + `)`
	}
	// A seq names the row that was fetched only as long as the sequence goes on: one that was set back gives the seqs again.
	// Then the statement fails, which undoes the copies in the archive, too. It fails as nothing of an owner's is likely to:
	// see isSetBack. With 1 bucket, width_bucket returns 1; with 0 it is an error.
	goesOn := func(value, known string) string {
		return `(select ` + value + `::bigint * width_bucket(0.5::float8, 0, 1, case when coalesce(` + drawn + ` >= ` + known + `::bigint, true) then 1 else 0 end))`
	}
	q := queries{
		// It is a bound of the scan: as a condition it would be asked of each row.
		inBitmap: t.removal(inBitmap, ` and o.seq <= `+goesOn("$2", "$4"), 3),
		inList:   t.removal(inList, ` and 1 = `+goesOn("1", "$2"), 1),
		byID:     t.removal(byID, "", 2),
		// The parameters are arrays: a row's values have the place in the others that its seq has in $1.
		fail: `
update only ` + t.outbox() + ` o
   set attempts = ($3::int[])[array_position($1::bigint[], o.seq)], last_error = ($5::text[])[array_position($1::bigint[], o.seq)],
       retry_at = clock_timestamp() + ($4::bigint[])[array_position($1::bigint[], o.seq)] * interval '1 microsecond'
 where ` + refused,
		// Two statements: Postgres takes no WITH that writes where a table has rules. A row that a trigger keeps out of the
		// dead letters stays in the outbox.
		copyDead: `
insert into ` + t.dead() + ` (` + eventColumns + `, attempts, last_error)
select ` + eventColumns + `, ($3::int[])[array_position($1::bigint[], seq)], ($4::text[])[array_position($1::bigint[], seq)] from only ` + t.outbox() + ` o where ` + refused + ` order by seq for update`,
		removeDead: `
delete from only ` + t.outbox() + ` o where ` + refused + ` and exists (select from only ` + t.dead() + ` d where d.seq = o.seq and d.id = o.id)`,
		notMoved: `select seq from only ` + t.outbox() + ` o where ` + refused + ` and given_up_at is null`,
		giveUp: `
update only ` + t.outbox() + ` o
   set given_up_at = clock_timestamp(), attempts = ($3::int[])[array_position($1::bigint[], o.seq)], last_error = ($4::text[])[array_position($1::bigint[], o.seq)]
 where ` + refused,
		// Another scan_from than the one recorded last is a command's, which has put rows back. The result is then one below
		// both its value and $4: a result below $4 tells the caller.
		checkpoint: `
update only ` + t.relay() + `
   set checkpoint = $1, checkpoint_before = checkpoint, scan_from = case when scan_from = $5 then $4 else greatest(least(scan_from, $4), -9223372036854775807) - 1 end
 where stream = $2 and term = $3 returning scan_from`,
		scanFrom:   `select scan_from from only ` + t.relay() + ` where stream = $1 and term = $2`,
		maxPayload: `update only ` + t.relay() + ` set max_payload = $1::bigint where stream = $2 and term = $3`,
		remaining:  `select count(*) from only ` + t.outbox() + ` where seq = any($1::bigint[])`,
		stillThere: `select count(*) from only ` + t.outbox() + ` o where ` + byID,
		prelude: `
select case $1::int when 1 then pg_try_advisory_lock($2::bigint) when 2 then pg_advisory_unlock($2::bigint) else false end,
       coalesce(pg_current_xact_id_if_assigned()::text::bigint, 0), pg_snapshot_xmin(pg_current_snapshot())::text::bigint, ` + drawn,
	}
	q.noOlderWriter = `
with locks as materialized (select * from pg_catalog.pg_locks) -- Looked at once: a transaction that is prepared meanwhile changes its name.
select not exists (
    select from locks r left join locks t on t.virtualtransaction = r.virtualtransaction and t.pid is not distinct from r.pid
                                         and t.locktype = 'transactionid' and t.mode = 'ExclusiveLock'
     where r.locktype = 'relation' and r.relation = to_regclass('` + strings.ReplaceAll(t.outbox(), "'", "''") + `') and r.mode = 'RowExclusiveLock'
       and r.database = (select oid from pg_catalog.pg_database where datname = current_database())
       and r.pid is distinct from pg_backend_pid()
       and (t.transactionid is null or age(t.transactionid) > age($1::text::xid)))`
	q.idle = `
select not exists (
    select from pg_catalog.pg_locks
     where locktype = 'relation' and relation = to_regclass('` + strings.ReplaceAll(t.outbox(), "'", "''") + `') and mode = 'RowExclusiveLock'
       and database = (select oid from pg_catalog.pg_database where datname = current_database())
       and pid is distinct from pg_backend_pid())`
	for blocked := range 2 {
		for measured := range 2 {
			q.fetch[measured][blocked] = t.fetch(measured == 1, blocked == 1, hold)
		}
		q.keys[blocked] = `
select seq, id from only ` + t.outbox() + ` o` + wanted(blocked == 1, 8) + hold + ` order by seq limit $7`
	}
	q.one = t.fetchOne()
	return q
}

// RoundTrip records the outcome of publishing and fetches more, in one round trip and one transaction on the
// session. Only the leader calls it, one at a time. If it fails, nothing of the request has happened, or its
// outcome is unknown; repeating what was to be recorded is harmless.
//
// What the database refuses for a reason of one row's own does not fail it: see [Response.Kept]. It may take as long as Postgres
// works on it.
func (t *Term) RoundTrip(ctx context.Context, request Request) (Response, error) {
	if len(request.Settled)+len(request.Failed)+len(request.Dead) == 0 && request.Checkpoint == 0 && request.MaxPayload == 0 && !request.AskPause && request.Sleep == KeepSleep && request.Fetch == nil {
		return Response{}, nil // Nothing is asked, so nothing is learnt about the session.
	}
	var response Response
	err := t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		if err := t.inTerm(); err != nil {
			return err
		}
		if f := request.Fetch; f != nil {
			t.leftOut = t.outbox.held.Load() // Before that: whoever lets an aggregate go on says first where its rows are.
			t.lowered = math.MaxInt64
			t.takeBack()
			if f.Back && !f.Stay {
				t.floor.lower(f.BackTo)
			}
		}
		var err error
		response, err = t.roundTrip(ctx, conn, request)
		for range repeats {
			if !undone(err) || ctx.Err() != nil {
				break
			}
			response, err = t.roundTrip(ctx, conn, request)
		}
		settled := request.Settled
		if isSetBack(err) {
			request.Settled = nil
			response, err = t.roundTrip(ctx, conn, request)
		}
		if ofRow(err) {
			response, err = t.roundTripOneByOne(ctx, conn, request)
		}
		if err == nil && len(settled) > 0 && request.Settled == nil {
			if err = t.countRemaining(ctx, conn, settled, &response); response.Remaining != nil {
				response.Remaining = t.outbox.table.setBack()
			}
		}
		if err == nil {
			response.Floor = t.floor.at
			if request.Fetch != nil {
				response.Floor = min(response.Floor, t.lowered) // What the caller leaves out may be among what was put back.
			}
			t.tendArchive(ctx, conn)
		}
		return err
	})
	if err != nil {
		return Response{}, t.outbox.explain("round trip to outbox "+t.outbox.table.String(), err)
	}
	return response, nil
}

// takeBack lowers the floor to where rows were put back since the last fetch.
func (t *Term) takeBack() {
	if to, ok := t.outbox.back.take(); ok {
		t.floor.lower(to)
		t.lowered = min(t.lowered, to)
	}
}

// repeats is how often a round trip is repeated after somebody else's transaction has undone it.
const repeats = 2

// undone reports whether Postgres has rolled back a transaction because of what others did at the same time, such as an
// ALTER TABLE (deadlock) or a person who cancelled the statement. It can be repeated at once.
func undone(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == codeDeadlock || pg.Code == codeSerialization || pg.Code == codeCancelled) && !inFunction(pg) || stalePlan(err)
}

// isSetBack reports whether a removal by seq was refused, since the sequence has been set back and so the seqs may be those
// of other rows.
func isSetBack(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == codeWidthBucket && !inFunction(pg)
}

// errSessionLost ends a term: the lock that made this relay the leader is gone with the session.
var errSessionLost = errors.New("the session with the leader's lock is gone")

// errTermOver is returned by what is asked of a term after it.
var errTermOver = errors.New("the term is over: it has ended, or another term of this process has begun since")

// inTerm returns an error if the session is no longer that of the term, or another term has begun on it. It is to be called with
// the session, inside Do or DoPatiently.
func (t *Term) inTerm() error {
	switch {
	case t.generation != t.outbox.session.next.Load():
		return errSessionLost
	case t.outbox.term != t:
		return errTermOver
	}
	return nil
}

// reasonLimit bounds what is recorded of a reason.
const reasonLimit = 2000

// text makes of a reason what the database's text can hold.
func (t *Term) text(reason string) string {
	reason = strings.ToValidUTF8(strings.ReplaceAll(reason, "\x00", `\0`), "\uFFFD")
	if t.ascii {
		reason = strings.Map(func(r rune) rune {
			if r > unicode.MaxASCII {
				return '?'
			}
			return r
		}, reason)
	}
	if len(reason) > reasonLimit {
		reason = strings.ToValidUTF8(reason[:reasonLimit], "") + " (cut)"
	}
	return reason
}

// tally counts rows: those that were to leave the outbox and did, for the archive or the dead letters too.
type tally struct{ asked, removed, toArchive, archived, dead, moved int64 }

// differs says how what was done differs from what was asked, if it does in a way that no count of what is left can tell.
func (t Table) differs(n tally) error {
	switch {
	case n.removed > n.asked:
		return fmt.Errorf("%w: %d rows of the outbox %s were removed where %d were named; look for a trigger or rule that removes others (outbox-relay doctor names it) and drop it", ErrKept, n.removed, t, n.asked)
	case n.archived < n.toArchive:
		return fmt.Errorf("%w: of %d rows that left the outbox %s, %d are there; look for a trigger or rule on %s_published and its parts, and drop it, or set relay.retain to 0", ErrUnarchived, n.toArchive, t, n.archived, t)
	}
	return nil
}

// adding adds up the rows of statements.
func adding(into *int64) func(tag pgconn.CommandTag) error {
	return func(tag pgconn.CommandTag) error {
		*into += tag.RowsAffected()
		return nil
	}
}

// remove queues a removal by these keys. The check's parameters are those of the deletion alone.
func (t *Term) remove(batch *pgx.Batch, n *tally, r removal, archive bool, after uint64, keys, check []any) {
	if t.outbox.retain > 0 && archive {
		t.filling.Store(int32(t.archive.part))
		batch.Queue(r.archive[t.archive.part], slices.Concat(keys, []any{t.stream, int64(after)})...).Exec(func(tag pgconn.CommandTag) error {
			n.archived += tag.RowsAffected()
			t.unsummarized.Add(tag.RowsAffected())
			return nil
		})
	}
	batch.Queue(r.remove, slices.Concat(keys, check)...).Exec(func(tag pgconn.CommandTag) error {
		n.removed += tag.RowsAffected()
		if t.outbox.retain > 0 && archive {
			n.toArchive += tag.RowsAffected()
		}
		return nil
	})
}

// removeSettled queues the removal of rows that the stream has stored.
func (t *Term) removeSettled(batch *pgx.Batch, n *tally, s Settled) {
	k := keysOf(s.Seqs)
	n.asked += int64(len(s.Seqs))
	if len(k.bitmap) > 0 {
		t.remove(batch, n, t.queries.inBitmap, !s.Unarchived, s.After, []any{k.from, k.to, k.bitmap}, []any{t.drawn})
	}
	if len(k.list) > 0 {
		t.remove(batch, n, t.queries.inList, !s.Unarchived, s.After, []any{k.list}, []any{t.drawn})
	}
}

// failures are rows that were refused, as the statements take them.
type failures struct {
	seqs     []int64
	ids      [][16]byte
	attempts []int32
	waits    []int64 // In microseconds.
	reasons  []string
}

func (t *Term) failures(of []Failure) failures {
	var f failures
	for _, x := range of {
		f.seqs, f.ids = append(f.seqs, x.Seq), append(f.ids, x.ID)
		f.attempts = append(f.attempts, clampAttempts(x.Attempts))
		f.waits, f.reasons = append(f.waits, x.Wait.Microseconds()), append(f.reasons, t.text(x.Reason))
	}
	return f
}

// mostAttempts is the highest number of attempts that is recorded or believed.
const mostAttempts = 1_000_000

func clampAttempts(n int) int32 { return int32(min(max(n, 0), mostAttempts)) }

// failuresAtOnce is how many failures one statement records: it looks each up in its arrays.
const failuresAtOnce = 500

// recordFailures queues what became of refused rows.
func (t *Term) recordFailures(batch *pgx.Batch, failed, dead []Failure, n *tally) {
	for chunk := range slices.Chunk(failed, failuresAtOnce) {
		f := t.failures(chunk)
		batch.Queue(t.queries.fail, f.seqs, f.ids, f.attempts, f.waits, f.reasons)
	}
	for chunk := range slices.Chunk(dead, failuresAtOnce) {
		large := func(f Failure) bool { return f.Size > largeLetter }
		if f := t.failures(slices.DeleteFunc(slices.Clone(chunk), large)); len(f.seqs) > 0 {
			n.dead += int64(len(f.seqs))
			batch.Queue(t.queries.copyDead, f.seqs, f.ids, f.attempts, f.reasons)
			batch.Queue(t.queries.removeDead, f.seqs, f.ids).Exec(adding(&n.moved))
		}
		if f := t.failures(slices.DeleteFunc(slices.Clone(chunk), func(f Failure) bool { return !large(f) })); len(f.seqs) > 0 {
			n.dead += int64(len(f.seqs))
			t.giveUp(batch, f, &n.moved)
		}
	}
}

// giveUp queues the marking of rows that stay in the outbox although they are given up, and counts them.
func (t *Term) giveUp(batch *pgx.Batch, f failures, marked *int64) {
	batch.Queue(t.queries.giveUp, f.seqs, f.ids, f.attempts, f.reasons).Exec(adding(marked))
}

// recordState queues what concerns no row.
func (t *Term) recordState(batch *pgx.Batch, request Request) {
	t.recordCheckpoint(batch, request)
	if request.MaxPayload > 0 {
		batch.Queue(t.queries.maxPayload, int64(request.MaxPayload), t.stream, t.Number)
	}
}

// recordCheckpoint queues the checkpoint and with it where the next term's first fetch may begin.
func (t *Term) recordCheckpoint(batch *pgx.Batch, request Request) {
	if request.Checkpoint == 0 {
		return
	}
	at := t.floor.at
	if from := request.ScanFrom; from != nil {
		at = min(at, *from)
	}
	batch.Queue(t.queries.checkpoint, int64(request.Checkpoint), t.stream, t.Number, at, t.scanFrom).Query(func(rows pgx.Rows) error {
		var now int64
		tag, err := pgx.ForEachRow(rows, []any{&now}, func() error {
			t.scanFrom = now
			if now < at {
				t.goBack(now) // A command has put rows back.
			}
			return nil
		})
		if err == nil && tag.RowsAffected() == 0 {
			return errDeposed
		}
		return err
	})
}

// observeEvery is how often a round trip observes, unless it changes the sleep lock. A tenth of a small round trip's time is the
// observation, and a floor that rises a little later costs nothing.
const observeEvery = 5 * time.Millisecond

// observation is what a round trip learns of the transactions and of the sequence before it fetches.
type observation struct {
	xid, xmin uint64
	drawn     *int64 // Nil if there is no sequence.
}

// observe queues the change of the sleep lock, and the observation.
func (t *Term) observe(batch *pgx.Batch, sleep SleepChange, asleep *bool, seen *observation) {
	batch.Queue(t.queries.prelude, int(sleep), t.outbox.table.wakeKey()).QueryRow(func(row pgx.Row) error {
		var locked bool
		if err := row.Scan(&locked, &seen.xid, &seen.xmin, &seen.drawn); err != nil {
			return fmt.Errorf("sleep lock: %w", err)
		}
		*asleep = locked && sleep == FallAsleep
		return nil
	})
}

func (t *Term) roundTrip(ctx context.Context, conn *pgx.Conn, request Request) (Response, error) {
	var (
		response      Response
		seen          observation
		read          pageRead
		noOlderWriter bool
		idle          bool
		n             tally
		batch         = &pgx.Batch{}
	)
	for _, s := range request.Settled {
		t.removeSettled(batch, &n, s)
	}
	t.recordFailures(batch, request.Failed, request.Dead, &n)
	t.recordState(batch, request)
	var (
		f       = request.Fetch
		now     = time.Now()
		observe = request.Sleep != KeepSleep || f != nil && now.Sub(t.observed) >= observeEvery
	)
	t.outbox.askPause(batch, request.AskPause, now)
	if observe {
		t.observe(batch, request.Sleep, &response.Asleep, &seen)
	}
	if f != nil {
		if observe && t.floor.stuck(now) {
			batch.Queue(t.queries.noOlderWriter, strconv.FormatUint(t.floor.xid&math.MaxUint32, 10)).QueryRow(func(row pgx.Row) error {
				return row.Scan(&noOlderWriter)
			})
		}
		if observe && t.took > slowFetch && t.complete {
			batch.Queue(t.queries.idle).QueryRow(func(row pgx.Row) error { return row.Scan(&idle) })
		}
		t.queueFetch(batch, f, &read)
	}
	start := time.Now()
	t.overtaken = false
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		if f != nil {
			t.floor.doubt() // Whatever was recorded about it may not have come to pass.
		}
		return Response{}, err
	}
	response.Remaining = t.outbox.table.differs(n)
	if n.removed < n.asked {
		if err := t.countRemaining(ctx, conn, request.Settled, &response); err != nil {
			return Response{}, err
		}
	}
	if n.moved < n.dead {
		if err := t.keepNotMoved(ctx, conn, request.Dead, &response); err != nil {
			return Response{}, err
		}
	}
	if f == nil {
		return response, t.noteHeld(ctx, conn, request)
	}
	t.took = time.Since(start)
	response.Rows, response.Full = read.rows, read.full
	if len(response.Kept) > 0 {
		response.Rows = slices.DeleteFunc(response.Rows, response.keeps)
	}
	unexpected := read.large && !t.large
	t.large = read.large
	if t.overtaken || unexpected && len(response.Rows) == 0 {
		if t.overtaken {
			t.takeBack()
			t.floor.doubt()
			t.complete = false
		}
		again, err := t.roundTrip(ctx, conn, Request{Fetch: f})
		if err != nil {
			return Response{}, err
		}
		again.Asleep, again.Remaining, again.Kept = response.Asleep, response.Remaining, response.Kept
		again.Rows = slices.DeleteFunc(again.Rows, again.keeps)
		return again, t.noteHeld(ctx, conn, request)
	}
	if noOlderWriter {
		seen.xmin = math.MaxUint64
	}
	if observe {
		t.observed = now
		t.passed(seen, f, response, idle)
	} else {
		t.complete = !response.Full && !t.cached
	}
	return response, t.noteHeld(ctx, conn, request)
}

// slowFetch is from when on a fetch is slow: there are many rows that it passes over.
const slowFetch = 100 * time.Millisecond

// noteHeld reads anew which aggregates are held, if there are others now.
func (t *Term) noteHeld(ctx context.Context, conn *pgx.Conn, request Request) error {
	if len(request.Dead) == 0 {
		return nil
	}
	return t.outbox.readHeld(ctx, conn)
}

// passed moves the floor after a fetch.
func (t *Term) passed(seen observation, f *Fetch, response Response, idle bool) {
	if t.cached { // Whoever has numbers in stock may use one below any floor.
		t.complete = false
		return
	}
	before := t.drawn
	if seen.drawn != nil {
		if *seen.drawn < t.drawn {
			t.floor = newFloor() // The sequence was set back: new rows appear below.
		}
		t.drawn = *seen.drawn
	}
	// Of a complete page all that the sequence had given out before is known: it was in it, was passed over, or is held.
	highest := f.Highest
	if seen.drawn != nil {
		if t.complete {
			highest = before
		}
		highest = min(highest, before, t.drawn)
	}
	t.complete = !response.Full
	defer func() { t.floorSeen.Store(t.floor.at) }()
	low, held := lowest(f.Held, response.Rows)
	if !held {
		low = math.MaxInt64
	}
	t.floor.advance(seen.xmin, seen.xid, highest, low)
	if idle && t.complete && seen.drawn != nil {
		t.floor.pass(min(*seen.drawn, math.MaxInt64-1)+1, low)
	}
}

// countRemaining counts the settled rows that are still there, after fewer rows were removed than asked. Rows that somebody else has
// deleted are none of the relay's business.
func (t *Term) countRemaining(ctx context.Context, conn *pgx.Conn, settled []Settled, response *Response) error {
	var seqs []int64
	for _, s := range settled {
		seqs = append(seqs, s.Seqs...)
	}
	var remaining int
	if err := conn.QueryRow(ctx, t.queries.remaining, seqs).Scan(&remaining); err != nil {
		return err
	}
	if remaining > 0 {
		response.Remaining = t.outbox.table.stillThere(remaining)
	}
	return nil
}

// keeps reports whether a row was refused and could not leave the outbox: the fetch has found it there again.
func (r *Response) keeps(row Row) bool {
	return slices.ContainsFunc(r.Kept, func(k Kept) bool { return !k.Settle && k.Seq == row.Seq && k.ID == row.ID })
}

// keepNotMoved marks given-up rows that something in the database, such as a trigger, kept in the outbox. Rows that
// somebody else has deleted are none of the relay's business.
func (t *Term) keepNotMoved(ctx context.Context, conn *pgx.Conn, dead []Failure, response *Response) error {
	left, err := t.notMoved(ctx, conn, dead)
	if err != nil || len(left) == 0 {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, f := range left {
			if err := t.keep(ctx, tx, f, errNotMoved, response); err != nil {
				return err
			}
		}
		return nil
	})
}

// lowest returns the lowest seq that the relay holds after a round trip, if it holds any.
func lowest(held []int64, fetched []Row) (low int64, holds bool) {
	if len(fetched) > 0 {
		low, holds = fetched[0].Seq, true
	}
	for _, seq := range held {
		if !holds || seq < low {
			low, holds = seq, true
		}
	}
	return low, holds
}
