package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// countLimit is up to how many rows are counted. Of more, the planner's estimate is taken.
	countLimit = 10_000
	// inspectTimeout bounds each query: dead rows that vacuum may not remove make any of them slow.
	inspectTimeout = 10 * time.Second
	// inspectLockTimeout bounds how long a query waits for a lock: another query finds out who has it.
	inspectLockTimeout = 2 * time.Second
)

// inspectSettings are for connections that look at the tables and at the server. They switch off the compiler of queries (jit),
// since compiling one of these takes many times as long as running it.
var inspectSettings = fmt.Sprintf(`set statement_timeout = %d; set lock_timeout = %d; set jit = off`, //nolint:gochecknoglobals // Immutable.
	inspectTimeout.Milliseconds(), inspectLockTimeout.Milliseconds())

// Count is how many rows a table has: a count or an estimate.
type Count struct {
	Rows  int64
	Exact bool
}

// TermRecord is what the tables say of the terms of one stream.
type TermRecord struct {
	Stream string
	// Outbox names this outbox in the stream.
	Outbox uuid.UUID
	// Number is that of the latest term. Leader is the name, for people, of the relay that leads or led in it, from Since on.
	Number int64
	Leader string
	Since  time.Time
	// For is how long ago Since was.
	For time.Duration
	// Checkpoint is zero before the first one has been recorded.
	Checkpoint Checkpoint
	// Trouble is why the leader cannot publish.
	Trouble Trouble
}

// Inspection is what the tables say of an outbox, whether or not a relay runs. What could not be read is nil.
type Inspection struct {
	// Terms are those of all streams that were ever published to, the latest first.
	Terms []TermRecord
	// Standby tells that the server repeats the transactions of a primary. It does not have the primary's locks, so it cannot
	// tell whether a relay leads.
	Standby bool
	// Locked tells that a session holds the leader's lock: a relay that was elected through Postgres leads. Nil on a standby.
	Locked *bool
	// LeaderLocks are the sessions that hold such a lock. More than one means that relays compete for different locks, and
	// several lead.
	LeaderLocks []LeaderLock
	// Candidates are the relays that say that they could lead. One of them may lead.
	Candidates []Candidate
	// Unfit are the relays that say that they could not lead, and why; at most some dozens.
	Unfit []UnfitCandidate
	// Pause is the one that a person has ordered; nil for none.
	Pause *Pause
	// LockWaits are the sessions that have been waiting for a lock on one of the tables for a second, and those of relays
	// that have been waiting for any lock for so long.
	LockWaits []LockWait
	// Horizon are those whose transactions keep dead rows from being removed, the oldest first. DeadRows is an estimate of how
	// many dead rows the outbox has.
	Horizon  []Holder
	DeadRows *int64
	// Waiting counts the pending events: those in the outbox, without those that were given up.
	Waiting *Count
	// Oldest is how long ago the first of them was inserted; nil if none is pending.
	Oldest *time.Duration
	// Held and Retrying are how many aggregates wait for a decision about a dead letter, and for another attempt of a refused
	// event. Neither is counted beyond 10,000.
	Held, Retrying *int64
	// Flow is how events leave the outbox; nil, too, if the archive is empty.
	Flow *Flow
	// Dead counts the dead letters, including those that could not be moved out of the outbox.
	Dead *Count
	// Archived counts the events in the archive. ArchivedBytes is the space that they take.
	Archived      *Count
	ArchivedBytes *int64
}

// Inspect reads what the tables say. It counts no large table. Its error has everything that could not be read. The rest is in
// the Inspection, unless there is no connection or no outbox.
func (o *Outbox) Inspect(ctx context.Context) (found Inspection, err error) {
	t := o.table
	err = o.with(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, inspectSettings); err != nil {
			return fmt.Errorf("inspect the outbox: %w", err)
		}
		if version, err := t.version(ctx, conn); err == nil && version > 0 && version < latestVersion() {
			return t.outdated(version)
		}
		switch exists, err := t.checkShape(ctx, conn); {
		case err != nil:
			return err
		case !exists:
			return fmt.Errorf("%w: %s; create it with `outbox-relay migrate` or (*store.Outbox).Migrate", ErrNoTable, t)
		}
		var faults []error
		look := func(what string, read func() error) {
			if err := read(); err != nil {
				faults = append(faults, o.explain("read "+what, err))
			}
		}
		look("who leads", func() error { return t.terms(ctx, conn, &found.Terms) })
		look("whether somebody leads", func() error { return t.locked(ctx, conn, &found) })
		look("who stands by", func() (err error) {
			found.Candidates, err = t.candidates(ctx, conn)
			return err
		})
		look("who could not lead", func() (err error) {
			found.Unfit, err = t.unfit(ctx, conn)
			return err
		})
		look("whether it is paused", func() (err error) {
			found.Pause, err = t.readPause(ctx, conn)
			return err
		})
		look("who waits for locks", func() (err error) {
			found.LockWaits, err = t.lockWaitsOfOutbox(ctx, conn)
			return err
		})
		look("who holds back vacuum", func() error {
			holders, deadRows, err := t.horizon(ctx, conn, 0)
			if err == nil {
				found.Horizon, found.DeadRows = holders, &deadRows
			}
			return err
		})
		look("how much waits", func() error { return count(ctx, conn, `only `+t.outbox()+` where given_up_at is null`, &found.Waiting) })
		look("since when events wait", func() error { return t.oldest(ctx, conn, &found.Oldest) })
		look("how many dead letters there are", func() error {
			return count(ctx, conn, `(select from only `+t.dead()+` union all select from only `+t.outbox()+` where given_up_at is not null) d`, &found.Dead)
		})
		look("the size of the archive", func() error {
			if err := count(ctx, conn, t.published(), &found.Archived); err != nil {
				return err
			}
			return conn.QueryRow(ctx, `select sum(pg_total_relation_size(part::regclass))::bigint from unnest($1::text[]) as part`, t.parts()).Scan(&found.ArchivedBytes)
		})
		look("which aggregates wait", func() error {
			gauges, err := o.readGauges(ctx, conn)
			if err != nil {
				return err
			}
			found.Held, found.Retrying = &gauges.Held, &gauges.Retrying
			if found.Waiting != nil && !found.Waiting.Exact {
				found.Waiting = &gauges.Pending // It follows a backlog that is drained.
			}
			return nil
		})
		look("how fast events are published", func() (err error) {
			found.Flow, err = t.flow(ctx, conn)
			return err
		})
		return errors.Join(faults...)
	})
	return found, err
}

// Standbys returns how many relays say that they could lead and do not, as far as the database knows: if relays are not elected
// through Postgres, the leader may be among them.
func (i *Inspection) Standbys() int {
	n := 0
	for c := range i.Candidates {
		leads := slices.ContainsFunc(i.LeaderLocks, func(l LeaderLock) bool { return l.Holder.PID == i.Candidates[c].Holder.PID })
		if !leads {
			n++
		}
	}
	return n
}

func (t Table) terms(ctx context.Context, conn *pgx.Conn, found *[]TermRecord) error {
	rows, err := conn.Query(ctx, `
select stream, outbox, term, leader, leader_since, clock_timestamp() - leader_since, stream_created, checkpoint, checkpoint_before,
       coalesce(trouble, ''), coalesce(clock_timestamp() - trouble_since, '0'), coalesce(clock_timestamp() - trouble_at, '0')
  from only `+t.relay()+` order by leader_since desc`)
	if err != nil {
		return err
	}
	*found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r TermRecord, err error) {
		var created *time.Time
		var sequence, before int64
		err = row.Scan(&r.Stream, &r.Outbox, &r.Number, &r.Leader, &r.Since, &r.For, &created, &sequence, &before,
			&r.Trouble.Text, &r.Trouble.For, &r.Trouble.Age)
		if created != nil {
			r.Checkpoint = Checkpoint{Created: *created, Sequence: uint64(sequence), Before: uint64(before)}
		}
		return r, err
	})
	return err
}

// LeaderLock is the lock that relays elected through Postgres compete for, while it is held.
type LeaderLock struct {
	// Key is its first half: the setting advisory_lock.
	Key int32
	// Holder is the session.
	Holder Holder
}

// Stranger reports whether the session's application name is not that of a relay.
func (l *LeaderLock) Stranger() bool { return !strings.HasPrefix(l.Holder.Application, sessionName) }

// locked finds out who holds the leader's lock, with any first half: electors choose that.
func (t Table) locked(ctx context.Context, conn *pgx.Conn, found *Inspection) error {
	if err := conn.QueryRow(ctx, `select pg_is_in_recovery()`).Scan(&found.Standby); err != nil || found.Standby {
		return err
	}
	rows, err := conn.Query(ctx, `
select l.classid::bigint, l.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''), coalesce(a.state, '')
  from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.mode = 'ExclusiveLock' and l.objid = $1
   and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
 order by l.classid`, uint32(t.LockKey()))
	if err != nil {
		return err
	}
	found.LeaderLocks, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l LeaderLock, err error) {
		var key int64
		l.Holder.Kind = HolderSession
		err = row.Scan(&key, &l.Holder.PID, &l.Holder.Application, &l.Holder.Role, &l.Holder.State)
		l.Key = int32(key)
		return l, err
	})
	if err != nil {
		return err
	}
	locked := len(found.LeaderLocks) > 0
	found.Locked = &locked
	return nil
}

// lockWaitsOfOutbox returns who waits for locks on the tables, and what relays wait for.
func (t Table) lockWaitsOfOutbox(ctx context.Context, conn *pgx.Conn) ([]LockWait, error) {
	tables := append([]string{t.outbox(), t.dead(), t.relay(), t.published()}, t.parts()...)
	return lockWaits(ctx, conn, `l.waitstart < clock_timestamp() - interval '1 second'
       and (l.relation in (select to_regclass(name)::oid from unnest($1::text[]) as name)
            and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
            or l.pid in (select s.pid from pg_catalog.pg_stat_activity s where s.datname = current_database() and starts_with(s.application_name, $2)))`,
		tables, sessionName)
}

// oldest finds out how long the first event has been pending, of those with a usable time of insertion. It begins where a
// relay's scan would: rows below that have been settled, and millions of them may be there until vacuum removes them.
func (t Table) oldest(ctx context.Context, conn *pgx.Conn, found **time.Duration) error {
	var from int64
	if err := conn.QueryRow(ctx, `select coalesce(min(scan_from), 0) from only `+t.relay()).Scan(&from); err != nil || from <= 0 {
		from = math.MinInt64
	}
	var seconds float64
	err := conn.QueryRow(ctx, `
select extract(epoch from clock_timestamp())::float8 - extract(epoch from created_at)::float8
  from only `+t.outbox()+` where seq >= $1 and given_up_at is null and isfinite(created_at) order by seq limit 1`, from).Scan(&seconds)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	age := duration(&seconds)
	*found = &age
	return nil
}

// count counts the rows of what follows "from", or takes the planner's estimate, which needs no statistics.
func count(ctx context.Context, conn *pgx.Conn, table string, found **Count) error {
	var rows int64
	if err := conn.QueryRow(ctx, `select count(*) from (select from `+table+` limit $1) counted`, countLimit+1).Scan(&rows); err != nil {
		return err
	}
	if rows <= countLimit {
		*found = &Count{rows, true}
		return nil
	}
	var plan []byte
	if err := conn.QueryRow(ctx, `explain (format json) select from `+table).Scan(&plan); err != nil {
		return err
	}
	var plans []struct {
		Plan struct {
			Rows int64 `json:"Plan Rows"`
		}
	}
	if err := json.Unmarshal(plan, &plans); err != nil || len(plans) != 1 {
		return fmt.Errorf("read the planner's estimate of %s: got %d plans: %w", table, len(plans), err)
	}
	*found = &Count{max(rows, plans[0].Plan.Rows), false}
	return nil
}

// Trigger is the state of the trigger that wakes the relay.
type Trigger string

// The states of the trigger.
const (
	TriggerEnabled  Trigger = "enabled"
	TriggerDisabled Trigger = "disabled" // Or it fires for replicated rows only.
	TriggerMissing  Trigger = "missing"
	TriggerForeign  Trigger = "foreign" // One of its name calls another function.
)

// Diagnosis is what to know about the database before relying on an outbox in it.
type Diagnosis struct {
	// Version is the server's, Database and Role are the connection's.
	Version, Database, Role string
	// Standby tells that the server repeats the transactions of a primary, and takes no writes.
	Standby bool
	// SynchronousCommit, Fsync and FullPageWrites are the settings of that name, the first as Role has it in Database.
	SynchronousCommit, Fsync, FullPageWrites string
	// Schema is the version of the tables, 0 if there are none or if it could not be read. SchemaNeeded is the version that
	// this relay needs.
	Schema, SchemaNeeded int
	// Tables is what [Outbox.Check] says.
	Tables error
	// MayCreate tells that Role may create tables in the outbox's schema.
	MayCreate bool
	// Trigger is empty if there is no outbox to have one.
	Trigger Trigger
}

// Diagnose looks at the database. It fails if there is no connection, or none that a relay can use.
func (o *Outbox) Diagnose(ctx context.Context) (found Diagnosis, err error) {
	t := o.table
	err = o.with(ctx, func(conn *pgx.Conn) error {
		if err := checkServer(ctx, conn); err != nil {
			return err
		}
		err := conn.QueryRow(ctx, `
select current_setting('server_version'), current_database(), current_user, pg_is_in_recovery(), current_setting('synchronous_commit'),
       current_setting('fsync'), current_setting('full_page_writes'),
       coalesce((select has_schema_privilege(oid, 'CREATE') and has_schema_privilege(oid, 'USAGE') from pg_catalog.pg_namespace where nspname = $2),
                has_database_privilege(current_database(), 'CREATE'))
  from set_config('statement_timeout', $1, false)`, milliseconds(inspectTimeout), t.orDefault().Schema).
			Scan(&found.Version, &found.Database, &found.Role, &found.Standby, &found.SynchronousCommit, &found.Fsync, &found.FullPageWrites, &found.MayCreate)
		if err != nil {
			return fmt.Errorf("diagnose the database: %w", err)
		}
		found.SchemaNeeded = latestVersion()
		if found.Schema, err = t.version(ctx, conn); err != nil {
			found.Tables = err
			return nil //nolint:nilerr // It is what was to be found out.
		}
		found.Tables = t.check(ctx, conn)
		found.Trigger, err = t.trigger(ctx, conn)
		return err
	})
	return found, err
}

// EnableTrigger returns the SQL that enables the trigger that wakes the relay.
func (t Table) EnableTrigger() string {
	return "ALTER TABLE " + t.outbox() + " ENABLE TRIGGER " + t.unqualified("_wake")
}

func (t Table) trigger(ctx context.Context, conn *pgx.Conn) (state Trigger, err error) {
	err = conn.QueryRow(ctx, `
select case when w.oid is null then $4 when w.tgenabled not in ('O', 'A') then $5
            when w.tgfoid is distinct from to_regprocedure($3) then $6 else $7 end
  from pg_catalog.pg_class c left join pg_catalog.pg_trigger w on w.tgrelid = c.oid and w.tgname = $2 and not w.tgisinternal
 where c.oid = to_regclass($1)`, t.outbox(), t.orDefault().Name+"_wake", t.quoted("_wake")+"()",
		TriggerMissing, TriggerDisabled, TriggerForeign, TriggerEnabled).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return state, t.explain("look at the trigger", err)
}
