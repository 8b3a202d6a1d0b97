package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
)

// LockWait is a session that waits for a lock.
type LockWait struct {
	// PID and Application are those of the session that waits; Waited is for how long it has.
	PID         uint32
	Application string
	Waited      time.Duration
	Lock        Lock
	// Holders are those that it waits for. Those that do not wait themselves come first.
	Holders []Holder
}

// String names who waits, for what and for whom, and says what to do.
func (w *LockWait) String() string {
	text := fmt.Sprintf("pid %d (application %q) has been waiting for %s for a lock (%s)", w.PID, w.Application, short(w.Waited), w.Lock)
	if len(w.Holders) == 0 {
		return text
	}
	f := Finding{Others: w.Holders[1:]}
	return text + " of " + w.Holders[0].String() + f.others() + ": " + w.Holders[0].Remedy()
}

// mostHolders bounds how many are named.
const mostHolders = 5

// lockWaits returns which sessions wait for which lock, and for whom; condition selects rows l of pg_locks. A session that is
// waited for may wait itself, as a migration does for an idle transaction; so lockWaits goes on to those that do not wait. The
// views show locks and applications of all sessions to any role, but states and times only to roles that may see them.
func lockWaits(ctx context.Context, conn *pgx.Conn, condition string, args ...any) ([]LockWait, error) {
	rows, err := conn.Query(ctx, `
with recursive waiting as materialized (
    select l.* from pg_catalog.pg_locks l where not l.granted and l.pid is not null and `+condition+`
), chain (waiter, pid) as (
    select w.pid, b.pid from waiting w cross join lateral unnest(pg_blocking_pids(w.pid)) as b (pid)
     union
    select c.waiter, b.pid from chain c cross join lateral unnest(pg_blocking_pids(c.pid)) as b (pid)
)
select w.pid, coalesce(wa.application_name, ''), extract(epoch from clock_timestamp() - w.waitstart)::float8, w.mode, w.locktype,
       coalesce((select format('%I.%I', n.nspname, r.relname) from pg_catalog.pg_class r join pg_catalog.pg_namespace n on n.oid = r.relnamespace
                  where r.oid = w.relation), ''),
       c.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''), coalesce(a.state, ''),
       extract(epoch from clock_timestamp() - a.xact_start)::float8, extract(epoch from clock_timestamp() - a.query_start)::float8,
       cardinality(pg_blocking_pids(c.pid)) > 0 as waits,
       case when c.pid = 0 then coalesce((
           select p.gid from pg_catalog.pg_prepared_xacts p
             join pg_catalog.pg_locks x on x.pid is null and x.locktype = 'transactionid' and x.transactionid = p.transaction
             join pg_catalog.pg_locks h on h.pid is null and h.virtualtransaction = x.virtualtransaction and h.granted and h.locktype = w.locktype
              and h.database is not distinct from w.database and h.relation is not distinct from w.relation
              and h.transactionid is not distinct from w.transactionid
            order by p.prepared limit 1), '') else '' end
  from waiting w join chain c on c.waiter = w.pid and c.pid <> w.pid
       left join pg_catalog.pg_stat_activity wa on wa.pid = w.pid
       left join pg_catalog.pg_stat_activity a on a.pid = c.pid
 order by w.waitstart, w.pid, waits, a.xact_start, c.pid`, args...)
	if err != nil {
		return nil, err
	}
	var waits []LockWait
	var (
		w                      LockWait
		h                      Holder
		waited, age, statement *float64
	)
	_, err = pgx.ForEachRow(rows, []any{
		&w.PID, &w.Application, &waited, &w.Lock.Mode, &w.Lock.Type, &w.Lock.Relation,
		&h.PID, &h.Application, &h.Role, &h.State, &age, &statement, &h.Waits, &h.Name,
	}, func() error {
		w.Waited = duration(waited)
		h.Kind, h.Age, h.Statement = HolderSession, duration(age), duration(statement)
		if h.PID == 0 {
			h.Kind = HolderPrepared
		}
		if n := len(waits); n == 0 || waits[n-1].PID != w.PID {
			waits = append(waits, w)
		}
		latest := &waits[len(waits)-1]
		if len(latest.Holders) < mostHolders {
			latest.Holders = append(latest.Holders, h)
		}
		return nil
	})
	return waits, err
}

// horizon returns who keeps dead rows of this database from being removed, the oldest first, and an estimate of how many dead
// rows the outbox has. The session with the pid except, the relay's own, is left out.
//
// Of a slot only xmin counts: catalog_xmin keeps rows of the system's tables only. A running vacuum has a snapshot, but holds
// back nothing.
func (t Table) horizon(ctx context.Context, conn *pgx.Conn, except uint32) (holders []Holder, deadRows int64, err error) {
	rows, err := conn.Query(ctx, `
with holders (kind, pid, name, application, role, state, age, statement, xids, oldest) as (
    select case when exists (select from pg_catalog.pg_stat_replication r where r.pid = a.pid) then $3 else $2 end,
           a.pid, '', coalesce(a.application_name, ''), coalesce(a.usename::text, ''), coalesce(a.state, ''),
           extract(epoch from clock_timestamp() - a.xact_start)::float8, extract(epoch from clock_timestamp() - a.query_start)::float8,
           greatest(age(a.backend_xmin), age(a.backend_xid)), coalesce(a.backend_xmin, a.backend_xid)::text
      from pg_catalog.pg_stat_activity a
     where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid not in (pg_backend_pid(), $1)
       and (coalesce(a.datid, 0) = 0 or a.datname = current_database())
       and a.pid not in (select v.pid from pg_catalog.pg_stat_progress_vacuum v)
     union all
    select $4, 0, p.gid, '', coalesce(p.owner::text, ''), '', extract(epoch from clock_timestamp() - p.prepared)::float8, null, age(p.transaction), p.transaction::text
      from pg_catalog.pg_prepared_xacts p where p.database = current_database()
     union all
    select $5, coalesce(s.active_pid, 0), s.slot_name::text, '', '', '', null, null, age(s.xmin), s.xmin::text
      from pg_catalog.pg_replication_slots s where s.xmin is not null
)
select kind, pid, name, application, role, state, age, statement, xids::bigint, oldest,
       coalesce((select n_dead_tup from pg_catalog.pg_stat_all_tables where relid = to_regclass($6)), 0)
  from holders right join (values (1)) as one on true order by xids desc nulls last, age desc nulls last limit $7`,
		except, HolderSession, HolderStandby, HolderPrepared, HolderSlot, t.outbox(), mostHolders)
	if err != nil {
		return nil, 0, err
	}
	var (
		kind, name, application, role, state, oldest *string
		pid                                          *uint32
		xids                                         *int64
		age, statement                               *float64
	)
	_, err = pgx.ForEachRow(rows, []any{&kind, &pid, &name, &application, &role, &state, &age, &statement, &xids, &oldest, &deadRows}, func() error {
		if kind != nil { // Nobody holds it otherwise.
			holders = append(holders, Holder{
				Kind: HolderKind(*kind), PID: *pid, Name: *name, Application: *application, Role: *role, State: *state,
				Age: duration(age), Statement: duration(statement), XIDs: *xids, oldest: *oldest,
			})
		}
		return nil
	})
	return holders, deadRows, err
}

// duration converts seconds: null, and a clock that went back, give 0.
func duration(seconds *float64) time.Duration {
	if seconds == nil || *seconds <= 0 {
		return 0
	}
	if most := time.Duration(math.MaxInt64); *seconds >= most.Seconds() {
		return most
	}
	return time.Duration(*seconds * float64(time.Second))
}
