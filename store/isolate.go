package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ofRow reports whether Postgres refused a statement because of a row's values, or because of somebody's trigger, rule or
// constraint on the row. Then the other rows of the statement may be all right. A fault of the connection, the server, locks
// or privileges concerns all rows alike.
func ofRow(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(pg.Code) != 5 || pg.SeverityUnlocalized != "ERROR" { // Others end the session.
		return false
	}
	if stalePlan(err) || staleFunction(err) {
		return false
	}
	if inFunction(pg) {
		return true
	}
	switch pg.Code {
	case "53200", // out of memory: also for a value of more than a gigabyte
		"XX000", // internal error: "invalid memory alloc request size", "compressed data is corrupt"
		"XX001": // data corrupted: "missing chunk number 0 for toast value"
		return true
	}
	// A trigger may raise any code, also one that Postgres does not know.
	switch pg.Code[:2] {
	case "08", "25", "26", "28", "34", "3B", "3D", "3F", "40", "42", "53", "55", "57", "58", "72", "F0", "XX":
		return false
	}
	return true
}

// stalePlan reports whether a statement was prepared before somebody changed the type of a column. It is prepared anew at the
// next use.
func stalePlan(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Routine == "RevalidateCachedQuery" && pg.Code == codeNotSupported && !inFunction(pg)
}

// staleFunction reports whether a function in PL/pgSQL was compiled in this session before somebody changed the type of a
// column that it uses, such as the outbox's own check. It stays so until the session ends.
func staleFunction(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == codeDatatypeMismatch && strings.HasPrefix(pg.Routine, "plpgsql_")
}

// inFunction reports whether an error arose inside a function. No function that our statements call reports itself so, hence
// it is a trigger's. A trigger may fail for one row, such as by writing to a table that does not exist, and not for another.
func inFunction(pg *pgconn.PgError) bool {
	return strings.Contains(pg.Where, "function ") || strings.Contains(pg.Where, "PL/")
}

// located adds the function in which an error arose: a trigger's own message often does not say.
func located(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || !inFunction(pg) {
		return err
	}
	where, _, _ := strings.Cut(pg.Where, "\n")
	if strings.HasPrefix(where, "SQL statement") { // The function is what ran it.
		_, rest, _ := strings.Cut(pg.Where, "\n")
		for line := range strings.SplitSeq(rest, "\n") {
			if strings.Contains(line, "function ") {
				where = line
				break
			}
		}
	}
	return fmt.Errorf("in %s: %w", cut(where), err)
}

// atOnce has deferred constraints and triggers checked after each statement. Otherwise they fail at the commit, and then
// nobody can tell which row is to blame.
func atOnce(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `set constraints all immediate`)
	return err
}

// roundTripOneByOne repeats a round trip that the database refused because of a row. In one transaction it does what can be
// done and finds the rows that cannot be recorded. It takes a savepoint for each step, so it is slow.
func (t *Term) roundTripOneByOne(ctx context.Context, conn *pgx.Conn, request Request) (response Response, err error) {
	t.ascii = !t.unicode
	defer func() { t.ascii = false }()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		response, t.overtaken = Response{}, false
		if err := atOnce(ctx, tx); err != nil {
			return err
		}
		for _, s := range request.Settled {
			if err := t.settleOneByOne(ctx, tx, s, &response); err != nil {
				return err
			}
		}
		for _, f := range request.Failed {
			err := t.try(ctx, tx, func(batch *pgx.Batch) { t.recordFailures(batch, []Failure{f}, nil, new(tally)) })
			if err := t.keep(ctx, tx, f, err, &response); err != nil {
				return err
			}
		}
		for _, f := range request.Dead {
			err := t.recordDead(ctx, tx, f)
			if err := t.keep(ctx, tx, f, err, &response); err != nil {
				return err
			}
		}
		if f := request.Fetch; f != nil {
			if err := t.fetchOneByOne(ctx, tx, without(*f, response.Kept), request.Sleep, &response); err != nil {
				return err
			}
		} else if request.Sleep != KeepSleep {
			if err := t.try(ctx, tx, func(batch *pgx.Batch) { t.observe(batch, request.Sleep, &response.Asleep, &observation{}) }); err != nil {
				return err
			}
		}
		if len(response.Kept) > 0 {
			return nil // The checkpoint relies on all of the above, so it is not recorded this time.
		}
		// No row was to blame, so this may be: nobody else would tell.
		return t.try(ctx, tx, func(batch *pgx.Batch) { t.recordState(batch, request) })
	})
	t.floor.doubt()
	t.complete = false
	return response, err
}

// without excludes from a page the rows that have just been kept: the relay still holds them.
func without(f Fetch, kept []Kept) *Fetch {
	f.Held = slices.Clone(f.Held)
	for _, k := range kept {
		f.Held = append(f.Held, k.Seq)
		f.Highest = max(f.Highest, k.Seq)
	}
	return &f
}

// try runs statements in a savepoint. If they fail because of a row, they are undone and the transaction goes on.
//
// Many of them, one after the other, may take longer than a statement that is without a sign of life may. Each is a sign.
func (t *Term) try(ctx context.Context, tx pgx.Tx, queue func(batch *pgx.Batch)) error {
	start := time.Now()
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		queue(batch)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err == nil || ofRow(err) {
		t.outbox.session.lived(start, t.outbox.session.next.Load())
	}
	return err
}

// settleOneByOne removes settled rows. Where that fails it halves them, again and again.
func (t *Term) settleOneByOne(ctx context.Context, tx pgx.Tx, s Settled, response *Response) error {
	if len(s.Seqs) == 0 {
		return nil
	}
	var n tally
	err := t.try(ctx, tx, func(batch *pgx.Batch) {
		n = tally{}
		t.removeSettled(batch, &n, s)
	})
	switch {
	case isSetBack(err):
		response.Remaining = t.outbox.table.setBack()
		return nil
	case err == nil && n.removed < n.asked:
		var remaining int
		if err := tx.QueryRow(ctx, t.queries.remaining, s.Seqs).Scan(&remaining); err != nil {
			return err
		}
		if remaining > 0 {
			response.Remaining = t.outbox.table.stillThere(remaining)
		}
		return nil
	case err == nil:
		return nil
	case !ofRow(err):
		return err
	case len(s.Seqs) == 1:
		response.Kept = append(response.Kept, Kept{Ref: Ref{Seq: s.Seqs[0]}, Settle: true, Err: located(err)})
		return nil
	}
	half := len(s.Seqs) / 2
	if err := t.settleOneByOne(ctx, tx, Settled{Seqs: s.Seqs[:half], After: s.After, Unarchived: s.Unarchived}, response); err != nil {
		return err
	}
	return t.settleOneByOne(ctx, tx, Settled{Seqs: s.Seqs[half:], After: s.After, Unarchived: s.Unarchived}, response)
}

// keep handles the error of recording one refused row. If the database does not take the record, keep marks the row, so that
// it is not fetched again.
func (t *Term) keep(ctx context.Context, tx pgx.Tx, f Failure, err error, response *Response) error {
	if err == nil || !ofRow(err) && !errors.Is(err, errNotMoved) {
		return err
	}
	err = located(err)
	f.Reason = fmt.Sprintf("%s; and the database did not take the row's dead letter: %v", f.Reason, err)
	var marked int64
	marking := t.try(ctx, tx, func(batch *pgx.Batch) {
		t.giveUp(batch, t.failures([]Failure{f}), &marked)
	})
	if marking != nil && !ofRow(marking) {
		return marking
	}
	response.Kept = append(response.Kept, Kept{Ref: f.Ref, Marked: marking == nil && marked > 0, Err: err})
	return nil
}

// errNotMoved says that a row is no dead letter although Postgres reported no error.
var errNotMoved = errors.New("a trigger or rule on the outbox or its dead letters kept the row from being moved")

// recordDead moves one given-up row to the dead letters.
func (t *Term) recordDead(ctx context.Context, tx pgx.Tx, f Failure) error {
	var n tally
	err := t.try(ctx, tx, func(batch *pgx.Batch) {
		n = tally{}
		t.recordFailures(batch, nil, []Failure{f}, &n)
	})
	if err != nil || n.moved == n.dead {
		return err
	}
	left, err := t.notMoved(ctx, tx, []Failure{f})
	if err == nil && len(left) > 0 {
		return errNotMoved
	}
	return err
}

// notMoved returns the given-up rows that are still in the outbox, unmarked.
func (t *Term) notMoved(ctx context.Context, on querier, dead []Failure) (left []Failure, err error) {
	seqs, ids := make([]int64, len(dead)), make([][16]byte, len(dead))
	for i, f := range dead {
		seqs[i], ids[i] = f.Seq, f.ID
	}
	rows, err := on.Query(ctx, t.queries.notMoved, seqs, ids)
	if err != nil {
		return nil, err
	}
	there, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	return slices.DeleteFunc(slices.Clone(dead), func(f Failure) bool { return !slices.Contains(there, f.Seq) }), err
}

// fetchOneByOne reads a page's rows one by one. A row that cannot be read comes back with the reason.
func (t *Term) fetchOneByOne(ctx context.Context, tx pgx.Tx, f *Fetch, sleep SleepChange, response *Response) error {
	var (
		keys    []Ref
		blocked = 0
		names   = t.excluded(f)
		args    = t.pageArgs(f)
	)
	if len(names.ids) > 0 {
		blocked = 1
		args = append(args, names.types, names.ids)
	}
	err := t.try(ctx, tx, func(batch *pgx.Batch) {
		t.observe(batch, sleep, &response.Asleep, &observation{})
		batch.Queue(t.queries.keys[blocked], args...).Query(func(rows pgx.Rows) (err error) {
			keys, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (k Ref, err error) {
				var id *uuid.UUID
				if err = row.Scan(&k.Seq, &id); id != nil {
					k.ID = *id
				}
				return k, err
			})
			return err
		})
		t.queueOvertaken(batch)
	})
	if err != nil {
		return err
	}
	if t.overtaken {
		response.Full = true // The next fetch begins further back.
		return nil
	}
	size, started := 0, time.Now()
	for _, key := range keys {
		if size >= f.Bytes || time.Since(started) > oneByOneShare {
			break
		}
		row, err := t.fetchOne(ctx, tx, f, key)
		switch {
		case ofRow(err):
			row = Row{Seq: key.Seq, ID: key.ID, Unfit: "not readable: " + err.Error(), Nameless: true}
		case err != nil:
			return err
		}
		size += row.Size()
		response.Rows = append(response.Rows, row)
	}
	response.Full = len(keys) > 0
	return nil
}

// oneByOneShare is how long one round trip goes on reading rows one by one.
const oneByOneShare = 200 * time.Millisecond

func (t *Term) fetchOne(ctx context.Context, tx pgx.Tx, f *Fetch, key Ref) (row Row, err error) {
	var read pageRead
	err = t.try(ctx, tx, func(batch *pgx.Batch) {
		batch.Queue(t.queries.one, key.Seq, [16]byte(key.ID), f.maxData()).Query(func(rows pgx.Rows) (err error) {
			read, err = new(pageSizes).scan(rows, *f)
			return err
		})
	})
	switch {
	case err != nil:
		return Row{}, err
	case len(read.rows) == 0: // Gone since its key was read, in another snapshot.
		return Row{Seq: key.Seq, ID: key.ID}, errGone
	}
	return read.rows[0], nil
}

var errGone = errors.New("a row was removed by somebody else while it was read")
