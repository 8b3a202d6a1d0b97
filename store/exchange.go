package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Row is one event that waits to be published.
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
}

// Failure is what the broker said of one row.
type Failure struct {
	Seq      int64
	Attempts int           // Including the one that failed just now.
	Wait     time.Duration // Until the next attempt; not used for a row that is given up.
	Reason   string
}

// Fetch asks for a page of rows.
type Fetch struct {
	// Rows and Bytes bound the page; bytes count payloads. A page holds at least one row, however large.
	Rows, Bytes int
	// Held are the seqs in the relay's hands, which are not to be returned again. Highest is the highest one
	// it ever had.
	Held    []int64
	Highest int64
	// BlockedTypes and BlockedIDs are, pairwise, the aggregates whose rows are not wanted now.
	BlockedTypes, BlockedIDs []string
}

// SleepChange says what to do about the lock that tells producers whether the relay is asleep.
type SleepChange int

// The changes that a [Request] may ask for.
const (
	KeepSleep  SleepChange = iota // Leave it as it is.
	FallAsleep                    // Try to take it, before the fetch.
	WakeUp                        // Give it back, before the fetch.
)

// Settled are rows that the stream has acknowledged. They leave the outbox, for the archive if there is one.
type Settled struct {
	Seqs []int64
	// After is a sequence of the stream which all of them are stored behind.
	After uint64
}

// Request is one round trip: all that is to be recorded, then what is to be fetched, in one transaction.
type Request struct {
	Settled []Settled
	Failed  []Failure // To be tried again.
	Dead    []Failure // To be moved to the dead letters.
	// Checkpoint is the new checkpoint, to be recorded with all of the above; 0 for none. See [Checkpoint].
	Checkpoint uint64
	Sleep      SleepChange
	Fetch      *Fetch // Nil for none.
	// Unblocked is set when rows of a formerly blocked aggregate are wanted again.
	Unblocked bool
}

// Reply is the answer to a [Request].
type Reply struct {
	// Rows are those visible in one snapshot, in seq order.
	Rows []Row
	// Full reports that the page's bound was reached, so there may be more.
	Full bool
	// Asleep reports that FallAsleep succeeded. If it did and Rows is empty, whatever is inserted from now on
	// causes a notification. If it did not, a producer's transaction is under way.
	Asleep bool
}

// queries are the statements of an exchange with the table's name in them.
type queries struct {
	near, far  removal // Of rows that are close together, and of others: see keys.
	found      removal // Of rows by their ids, too.
	fail, bury string
	checkpoint string
	clear      string       // Whether nobody with a number below $1 has drawn a seq and is still at it.
	fetch      [2][2]string // By whether payloads are measured, and aggregates blocked.
}

// removal takes settled rows out of the outbox.
type removal struct {
	archive [archiveParts]string // Copies them to that part of the archive, first; its last parameters are the stream and after.
	remove  string
}

// removal is of the rows o for which a condition holds. To find the archive's part by way of the archive would cost half
// as much again for each row, and so would a deletion that returns what it deletes: that goes through a temporary store.
func (t Table) removal(condition, stream, after string) removal {
	r := removal{remove: `delete from ` + t.outbox() + ` o where ` + condition}
	for part := range r.archive {
		r.archive[part] = `
insert into ` + t.part(part) + ` (part, stream, after, ` + eventColumns + `)
select ` + strconv.Itoa(part) + `, ` + stream + `, ` + after + `, ` + eventColumns + ` from ` + t.outbox() + ` o where ` + condition
	}
	return r
}

// prelude takes or leaves the sleep lock and observes the transactions, before the fetch takes its snapshot.
const prelude = `
select case $1::int when 1 then pg_try_advisory_lock($2) when 2 then pg_advisory_unlock($2) else false end,
       coalesce(pg_current_xact_id_if_assigned()::text::bigint, 0),
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint`

// eventColumns are those that an event has in every table that it may be in.
const eventColumns = "seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers, created_at"

func (t Table) queries(holdDead bool) queries {
	hold := ""
	if holdDead {
		hold = `
           and not exists (select from ` + t.dead() + ` d
                            where d.aggregate_type = o.aggregate_type and d.aggregate_id = o.aggregate_id)`
	}
	q := queries{
		near:  t.removal(near, "$4", "$5"),
		far:   t.removal(far, "$2", "$3"),
		found: t.removal(found, "$3", "$4"),
		fail: `update ` + t.outbox() + `
   set attempts = $2, retry_at = clock_timestamp() + $3::bigint * interval '1 microsecond', last_error = $4
 where seq = $1`,
		bury: `
with gone as (delete from ` + t.outbox() + ` where seq = $1 returning ` + eventColumns + `)
insert into ` + t.dead() + ` (` + eventColumns + `, attempts, last_error) select ` + eventColumns + `, $2, $3 from gone`,
		checkpoint: `
update ` + t.relay() + ` set checkpoint = $1, checkpoint_before = checkpoint where stream = $2 and term = $3`,
	}
	if mutant("delete-by-key") {
		q.near = t.removal(`o.seq <= $2 and $1::bigint <= $2::bigint and $3::bytea is not null`, "$4", "$5")
	}
	q.clear = `
with locks as materialized (select * from pg_catalog.pg_locks) -- Looked at once: a transaction that is prepared meanwhile changes its name.
select not exists (
    select from locks r left join locks t on t.virtualtransaction = r.virtualtransaction and t.pid is not distinct from r.pid
                                         and t.locktype = 'transactionid' and t.mode = 'ExclusiveLock'
     where r.locktype = 'relation' and r.relation = to_regclass('` + strings.ReplaceAll(t.outbox(), "'", "''") + `') and r.mode = 'RowExclusiveLock'
       and r.database = (select oid from pg_catalog.pg_database where datname = current_database())
       and r.pid is distinct from pg_backend_pid()
       and (t.transactionid is null or age(t.transactionid) > age($1::text::xid)))`
	for measured := range q.fetch {
		for blocked := range q.fetch[measured] {
			q.fetch[measured][blocked] = t.fetch(measured == 1, blocked == 1, hold)
		}
	}
	return q
}

// fetch selects a page: one snapshot of all that is visible, in seq order, rows above those in hand and, in the gaps
// between them, rows that were committed late.
//
// What bounds the page's bytes is a running sum where payloads are measured; taking the length of a large value does
// not read it. That costs as much as all the rest, so as long as payloads are small, rows are only counted and a
// large payload is left out, as null: the page then ends before it, and the next one, or if nothing is left of this
// one the same again, is measured.
func (t Table) fetch(measured, blocked bool, hold string) string {
	// Those in hand are keys: a range with bits, and a list.
	where := `
 where seq >= $1 and (seq > $2 or case when seq between $3::bigint and $4::bigint then get_bit($5::bytea, (seq - $3::bigint)::int) = 0 else seq not in (select unnest($6::bigint[])) end)`
	if blocked {
		where += `
   and (aggregate_type, aggregate_id) not in (select * from unnest($9::text[], $10::text[]))`
	}
	if !measured {
		return `
select seq, id, topic, aggregate_type, aggregate_id, event_type, case when octet_length(data) <= $8 then data end, headers::text, created_at, attempts
  from ` + t.outbox() + ` o` + where + hold + `
 order by seq limit $7`
	}
	return `
select seq, id, topic, aggregate_type, aggregate_id, event_type, data, headers::text, created_at, attempts
  from (select page.*, sum(octet_length(data)) over (order by seq rows unbounded preceding) - octet_length(data) as before
          from (select ` + eventColumns + `, attempts from ` + t.outbox() + ` o` + where + hold + ` order by seq limit $7) page) sized
 where before < $8
 order by seq`
}

// Exchange records the outcome of publishing and fetches more, in one round trip and one transaction on the
// session. Only the leader calls it, one at a time. If it fails, nothing of the request has happened, or its
// outcome is unknown; repeating what was to be recorded is harmless.
func (o *Outbox) Exchange(ctx context.Context, request Request) (Reply, error) {
	if len(request.Settled)+len(request.Failed)+len(request.Dead) == 0 && request.Checkpoint == 0 && request.Sleep == KeepSleep && request.Fetch == nil {
		return Reply{}, nil // Nothing is asked, so nothing is learnt about the session.
	}
	var reply Reply
	err := o.session.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		if err := o.inOffice(); err != nil {
			return err
		}
		var err error
		reply, err = o.exchange(ctx, conn, request)
		if err == nil {
			o.tendArchive(ctx, conn)
		}
		return err
	})
	if err != nil {
		return Reply{}, o.explain("exchange with outbox "+o.table.String(), err)
	}
	return reply, nil
}

// errSessionLost ends a term: the lock that it rested on went with the session.
var errSessionLost = errors.New("the session with the leader's lock is gone")

// inOffice reports whether the session is still that of the term, if one has begun. Whoever has the session calls it.
func (o *Outbox) inOffice() error {
	if o.generation != 0 && o.generation != o.session.next.Load() {
		return errSessionLost
	}
	return nil
}

// text makes of a reason what Postgres' text can hold: an exchange that failed for it would fail for ever.
func text(reason string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(reason, "\x00", `\0`), "\uFFFD")
}

// remove queues a removal by these parameters, and returns the query that removes.
func (o *Outbox) remove(batch *pgx.Batch, r removal, after uint64, keys ...any) *pgx.QueuedQuery {
	if o.retain > 0 {
		batch.Queue(r.archive[o.archive.part], append(slices.Clone(keys), o.stream, int64(after))...) //nolint:gosec // A stream ends long before.
	}
	return batch.Queue(r.remove, keys...)
}

func (o *Outbox) exchange(ctx context.Context, conn *pgx.Conn, request Request) (Reply, error) {
	var (
		reply     Reply
		xid, xmin uint64
		large     bool
		unheld    bool
		batch     = &pgx.Batch{}
	)
	for _, s := range request.Settled {
		k := keysOf(s.Seqs)
		if len(k.bits) > 0 {
			o.remove(batch, o.queries.near, s.After, k.from, k.to, k.bits)
		}
		if len(k.rest) > 0 {
			o.remove(batch, o.queries.far, s.After, k.rest)
		}
	}
	for _, f := range request.Failed {
		batch.Queue(o.queries.fail, f.Seq, f.Attempts, f.Wait.Microseconds(), text(f.Reason))
	}
	for _, f := range request.Dead {
		batch.Queue(o.queries.bury, f.Seq, f.Attempts, text(f.Reason))
	}
	if request.Checkpoint > 0 {
		batch.Queue(o.queries.checkpoint, int64(request.Checkpoint), o.stream, o.term) //nolint:gosec // As above.
	}
	if request.Sleep != KeepSleep || request.Fetch != nil {
		batch.Queue(prelude, int(request.Sleep), o.table.wakeKey()).QueryRow(func(row pgx.Row) error {
			var locked bool
			if err := row.Scan(&locked, &xid, &xmin); err != nil {
				return fmt.Errorf("sleep lock: %w", err)
			}
			reply.Asleep = locked && request.Sleep == FallAsleep
			return nil
		})
	}
	if f := request.Fetch; f != nil {
		if o.rescan.Swap(false) || request.Unblocked {
			o.floor = floor{}
		}
		now := time.Now()
		if o.floor.stuck(now) {
			batch.Queue(o.queries.clear, strconv.FormatUint(o.floor.xid&math.MaxUint32, 10)).QueryRow(func(row pgx.Row) error {
				return row.Scan(&unheld) //nolint:wrapcheck // Exchange wraps it.
			})
		}
		measured, bound := 0, f.Bytes/f.Rows // So many rows of so many bytes are within bounds.
		if o.large {
			measured, bound = 1, f.Bytes
		}
		held := keysOf(f.Held)
		args := []any{o.floor.start(now), f.Highest, held.from, held.to, held.bits, held.rest, f.Rows, bound}
		blocked := 0
		if len(f.BlockedIDs) > 0 {
			blocked = 1
			args = append(args, f.BlockedTypes, f.BlockedIDs)
		}
		batch.Queue(o.queries.fetch[measured][blocked], args...).Query(func(rows pgx.Rows) error {
			var err error
			reply.Rows, reply.Full, large, err = o.arena.scan(rows, *f)
			return err
		})
	}
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		if request.Fetch != nil {
			o.floor = floor{} // Whatever was recorded about it may not have come to pass.
		}
		return Reply{}, err //nolint:wrapcheck // Exchange wraps it.
	}
	f := request.Fetch
	if f == nil {
		return reply, nil
	}
	unexpected := large && !o.large
	o.large = large
	if unexpected && len(reply.Rows) == 0 {
		again, err := o.exchange(ctx, conn, Request{Fetch: f})
		again.Asleep = reply.Asleep
		return again, err
	}
	if unheld {
		xmin = math.MaxUint64
	}
	o.floor.advance(xmin, xid, f.Highest, lowest(f.Held, reply.Rows))
	return reply, nil
}

// arena is how much memory the latest page took, which is what the next one of a backlog takes as well.
type arena struct{ rows, texts, data int }

// scan reads a page; large tells that the next one must be measured. The values are taken as they come off the wire and
// copied into two pieces of memory for the whole page, one for texts and one for payloads: a hundred thousand rows a second
// leave no room for an allocation or two for each of their fields.
func (a *arena) scan(rows pgx.Rows, f Fetch) (page []Row, full, large bool, err error) {
	if err := rows.Err(); err != nil {
		return nil, false, false, err //nolint:wrapcheck // Exchange wraps it.
	}
	if err := checkFormats(rows.FieldDescriptions()); err != nil {
		return nil, false, false, err
	}
	var (
		texts = make([]byte, 0, a.texts+a.texts/16)
		data  = make([]byte, 0, a.data+a.data/16)
		spans = make([]span, 0, a.rows)
		cut   bool
	)
	page = make([]Row, 0, a.rows)
	for rows.Next() {
		values := rows.RawValues()
		if values[dataColumn] == nil {
			cut = true // What follows it must not be seen before it.
		}
		if cut {
			continue
		}
		large = large || len(values[dataColumn]) > f.Bytes/f.Rows
		sp := span{text: len(texts), data: len(data)}
		for i, value := range values[topicColumn : eventTypeColumn+1] {
			texts = append(texts, value...)
			sp.texts[i] = len(texts)
		}
		data = append(data, values[dataColumn]...)
		spans = append(spans, sp)
		page = append(page, Row{
			Seq:       int64(binary.BigEndian.Uint64(values[seqColumn])), //nolint:gosec // Two's complement, both ways.
			ID:        uuid.UUID(values[idColumn]),
			Headers:   bytes.Clone(values[headersColumn]), // Nil for null.
			CreatedAt: timestamp(values[createdAtColumn]),
			Attempts:  int(int32(binary.BigEndian.Uint32(values[attemptsColumn]))), //nolint:gosec // As above.
		})
	}
	*a = arena{rows: len(page), texts: len(texts), data: len(data)}
	all := string(texts)
	for i := range page {
		r, sp := &page[i], &spans[i]
		r.Topic = all[sp.text:sp.texts[0]]
		r.AggregateType = all[sp.texts[0]:sp.texts[1]]
		r.AggregateID = all[sp.texts[1]:sp.texts[2]]
		r.EventType = all[sp.texts[2]:sp.texts[3]]
		end := len(data)
		if i+1 < len(spans) {
			end = spans[i+1].data
		}
		r.Data = data[sp.data:end:end]
	}
	return page, cut || len(page) >= f.Rows || len(data) >= f.Bytes, cut || large, rows.Err() //nolint:wrapcheck // Exchange wraps it.
}

// The columns of a fetch, in order.
const (
	seqColumn = iota
	idColumn
	topicColumn
	aggregateTypeColumn
	aggregateIDColumn
	eventTypeColumn
	dataColumn
	headersColumn
	createdAtColumn
	attemptsColumn
)

// span is where a row's values lie in the page's memory.
type span struct {
	text, data int    // Where they begin,
	texts      [4]int // and where each of the texts ends.
}

// checkFormats makes sure that pgx asked for the formats that scan reads.
func checkFormats(fields []pgconn.FieldDescription) error {
	for _, i := range []int{seqColumn, idColumn, dataColumn, createdAtColumn, attemptsColumn} {
		if fields[i].Format != pgx.BinaryFormatCode {
			return fmt.Errorf("column %s comes in text form", fields[i].Name)
		}
	}
	return nil
}

// epoch is Postgres' year zero. Its infinities come out as times far away, which no clock_timestamp() is.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // Immutable.

func timestamp(wire []byte) time.Time {
	micros := int64(binary.BigEndian.Uint64(wire)) //nolint:gosec // Two's complement.
	return time.UnixMicro(epoch.UnixMicro() + micros).UTC()
}

// lowest returns the lowest seq in the relay's hands after an exchange; 0 for none.
func lowest(held []int64, fetched []Row) int64 {
	low := int64(0)
	if len(fetched) > 0 {
		low = fetched[0].Seq
	}
	for _, seq := range held {
		if low == 0 || seq < low {
			low = seq
		}
	}
	return low
}
