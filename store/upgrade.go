package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Time budgets of an upgrade of tables that are in use.
const (
	// upgradeLockWait is how long an upgrade waits for an exclusive lock before it lets producers pass, who queue up
	// after its request. No producer waits for longer than that and the statement itself, which changes catalogs only.
	upgradeLockWait = 50 * time.Millisecond
	// upgradePause is the first pause before it asks again; pauses double up to upgradePauseMax.
	upgradePause    = 100 * time.Millisecond
	upgradePauseMax = 2 * time.Second
	// upgradePatience is for how long it asks, and waits for locks that hold up nobody. Then it fails, naming who holds the
	// lock, and another run goes on where it stopped.
	upgradePatience = time.Minute
	// vacuumWait is how long it waits for autovacuum, which gives way after deadlock_timeout, a second unless set otherwise.
	vacuumWait = 5 * time.Second
)

// smallTable is the size in bytes up to which an index is built plainly: that takes milliseconds, and unlike a concurrent
// build does not wait for every transaction in the database.
const smallTable = 8 << 20

// codeDeadlock is of an error after which a step may be tried again.
const codeDeadlock = "40P01"

// upgrade brings tables that are in use to the latest version, step by step. What is done is recorded with each step, so
// that an upgrade that was interrupted goes on where it stopped.
func (m *migration) upgrade(ctx context.Context, from int) error {
	start := time.Now()
	if err := m.mayUpgrade(ctx); err != nil {
		return err
	}
	scripts, err := m.table.scripts(concurrently)
	if err != nil {
		return err
	}
	if _, err := m.conn.Exec(ctx, `set search_path = pg_catalog, pg_temp; set statement_timeout = 0; set transaction_timeout = 0`); err != nil {
		if _, err = m.conn.Exec(ctx, `set search_path = pg_catalog, pg_temp; set statement_timeout = 0`); err != nil { // transaction_timeout is new in 17.
			return fmt.Errorf("migrate %s: %w", m.table, err)
		}
	}
	if err := m.briefly(ctx, step{what: "progress", table: m.table.migrations()}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `alter table `+m.table.migrations()+` add column if not exists steps integer not null default 0`)
		return err
	}); err != nil {
		return m.explain(0, step{what: "progress"}, err)
	}
	for version := from + 1; version <= len(scripts); version++ {
		if err := m.apply(ctx, version, scripts[version-1]); err != nil {
			return err
		}
	}
	m.log.InfoContext(ctx, "tables upgraded", slog.String("table", m.table.String()),
		slog.Int("from", from), slog.Int("to", len(scripts)), slog.Duration("took", time.Since(start).Round(time.Millisecond)))
	return nil
}

// mayUpgrade tells a role that may not upgrade who may, before anything is changed.
func (m *migration) mayUpgrade(ctx context.Context) error {
	var owner string
	var owns, creates bool
	err := m.conn.QueryRow(ctx, `
select r.rolname, pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.has_schema_privilege(c.relnamespace, 'CREATE')
  from pg_catalog.pg_class c join pg_catalog.pg_roles r on r.oid = c.relowner
 where c.oid = pg_catalog.to_regclass($1)`, m.table.outbox()).Scan(&owner, &owns, &creates)
	switch {
	case err != nil:
		return fmt.Errorf("migrate %s: look for the table's owner: %w", m.table, err)
	case !owns:
		return fmt.Errorf("migrate %s: %w: only the owner of the tables, role %q, may upgrade them: run `outbox-relay migrate` as that role, or an owner must run `GRANT %s TO %s`",
			m.table, ErrPrivilege, owner, quote(owner), quote(m.role))
	case !creates:
		return fmt.Errorf("migrate %s: %w: an owner must run `GRANT CREATE, USAGE ON SCHEMA %s TO %s`", m.table, ErrPrivilege, quote(m.table.orDefault().Schema), quote(m.role))
	}
	return nil
}

// apply runs the steps of one version that are still to be done.
func (m *migration) apply(ctx context.Context, version int, script string) error {
	all, err := steps(script, m.table.names())
	if err != nil {
		return fmt.Errorf("version %d: %w", version, err)
	}
	var done int
	if err := m.conn.QueryRow(ctx, `select steps from `+m.table.migrations()+` where version = $1`, version-1).Scan(&done); err != nil {
		return m.explain(version, step{what: "progress"}, err)
	}
	for i := done; i < len(all); i++ {
		m.log.DebugContext(ctx, "upgrade the tables", slog.Int("version", version), slog.String("step", all[i].what))
		record := func(ctx context.Context, q execer) error {
			_, err := q.Exec(ctx, `update `+m.table.migrations()+` set steps = $1 where version = $2`, i+1, version-1)
			return err
		}
		if err := m.run(ctx, all[i], record); err != nil {
			return m.explain(version, all[i], err)
		}
	}
	if _, err := m.conn.Exec(ctx, `insert into `+m.table.migrations()+` (version) values ($1)`, version); err != nil {
		return m.explain(version, step{what: "record"}, err)
	}
	return nil
}

// execer is what a connection and a transaction have in common.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// run does one step and records it.
func (m *migration) run(ctx context.Context, s step, record func(context.Context, execer) error) error {
	transaction := func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, s.sql); err != nil {
			return err
		}
		return record(ctx, tx)
	}
	switch s.kind {
	case lockStep:
		return m.briefly(ctx, s, transaction)
	case concurrentStep:
		if err := m.index(ctx, s); err != nil {
			return err
		}
		return record(ctx, m.conn)
	default:
		return m.patiently(ctx, transaction)
	}
}

// patiently runs a transaction whose locks hold up nobody else.
func (m *migration) patiently(ctx context.Context, task func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, m.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local lock_timeout = `+milliseconds(m.patience)); err != nil {
			return err
		}
		return task(tx)
	})
}

// briefly runs a transaction under an exclusive lock on the step's table, which is asked for until it is free.
func (m *migration) briefly(ctx context.Context, s step, task func(tx pgx.Tx) error) error {
	deadline, told := time.Now().Add(m.patience), false
	for wait := upgradePause; ; wait = min(2*wait, upgradePauseMax) {
		err := m.tryLock(ctx, s, task)
		if !isBusy(err) {
			return err
		}
		holders := m.holders(ctx, s.table)
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is in use by %s for longer than %v: end that transaction, or run this again later; it goes on where it stopped: %w", s.table, holders, m.patience, err)
		}
		if !told && wait > upgradePause {
			told = true
			m.log.WarnContext(ctx, "a table to be altered is in use; trying until it is free, producers do not wait meanwhile",
				slog.String("table", s.table), slog.String("used_by", holders))
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// tryLock runs a transaction under an exclusive lock, unless somebody else has the table.
//
// Of the lock that conflicts with autovacuum and with no producer it waits for longer: autovacuum gives way, but not to a
// request that is withdrawn before deadlock_timeout.
func (m *migration) tryLock(ctx context.Context, s step, task func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, m.conn, func(tx pgx.Tx) error {
		for _, statement := range []string{
			// The lock is not kept until the disk, or a standby, has the commit. The version's own record waits for it.
			`set local synchronous_commit = off`,
			`set local lock_timeout = ` + milliseconds(vacuumWait),
			`lock table only ` + s.table + ` in share update exclusive mode`,
			`set local lock_timeout = ` + milliseconds(upgradeLockWait),
			`lock table only ` + s.table + ` in access exclusive mode`,
		} {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return task(tx)
	})
}

// isBusy reports whether somebody else's lock is in the way.
func isBusy(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == codeLockNotAvailable || pg.Code == codeDeadlock)
}

// index creates an index. What is left of an attempt that was interrupted is invalid, and in the way.
func (m *migration) index(ctx context.Context, s step) error {
	name := m.table.sibling(s.index)
	var exists, valid, small bool
	err := m.conn.QueryRow(ctx, `
select i.indexrelid is not null, coalesce(i.indisvalid, false), pg_catalog.pg_relation_size(pg_catalog.to_regclass($1)) <= $3
  from (values (pg_catalog.to_regclass($2))) as wanted (oid) left join pg_catalog.pg_index i on i.indexrelid = wanted.oid`,
		s.table, name, smallTable).Scan(&exists, &valid, &small)
	switch {
	case err != nil:
		return err
	case valid:
		return nil
	case small && !exists:
		return m.briefly(ctx, s, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, s.plainly())
			return err
		})
	}
	if _, err := m.conn.Exec(ctx, `set lock_timeout = `+milliseconds(m.patience)); err != nil {
		return err
	}
	if exists {
		if _, err := m.conn.Exec(ctx, `drop index concurrently if exists `+name); err != nil {
			return m.explainIndex(ctx, err)
		}
	}
	_, err = m.conn.Exec(ctx, s.sql)
	return m.explainIndex(ctx, err)
}

// explainIndex names whom the building of an index waited for: it waits for all transactions that are older.
func (m *migration) explainIndex(ctx context.Context, err error) error {
	if !isBusy(err) {
		return err
	}
	return fmt.Errorf("creating an index waited for longer than %v for older transactions, of %s: end them, or run this again later; it goes on where it stopped: %w",
		m.patience, m.activity(ctx, `backend_xmin is not null`), err)
}

// holders names the transactions that have a lock on a table, the oldest first.
func (m *migration) holders(ctx context.Context, table string) string {
	return m.activity(ctx, `pid in (select l.pid from pg_catalog.pg_locks l where l.locktype = 'relation' and l.granted and l.relation = pg_catalog.to_regclass($1)
       and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))`, table)
}

// activity names at most three transactions for which a condition holds, the oldest first.
func (m *migration) activity(ctx context.Context, condition string, args ...any) string {
	rows, err := m.conn.Query(ctx, `
select pg_catalog.concat('pid ', pid, ' (', backend_type, ' ', pg_catalog.quote_ident(pg_catalog.left(application_name, 40)), ', ', state, ', for ',
                         pg_catalog.round(extract(epoch from pg_catalog.clock_timestamp() - xact_start), 1), ' s)')
  from pg_catalog.pg_stat_activity where pid <> pg_catalog.pg_backend_pid() and `+condition+` order by xact_start nulls last limit 3`, args...)
	if err != nil {
		return "others"
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(found) == 0 {
		return "transactions that have ended or are prepared (pg_prepared_xacts)"
	}
	return strings.Join(found, ", ")
}

// explain says where an upgrade stopped.
func (m *migration) explain(version int, s step, err error) error {
	return fmt.Errorf("migrate %s: version %d, %s: %w", m.table, version, s, err)
}
