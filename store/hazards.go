package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Severity says how bad a [Hazard] is.
type Severity int

// The severities.
const (
	// Harmless: nothing is wrong.
	Harmless Severity = iota
	// Doubtful: the relay works, without all of its guarantees.
	Doubtful
	// Harmful: events are not published, or are published twice or in another order.
	Harmful
)

// Hazard is the result of one check of something in the database that the relay depends on, and that others may have changed.
type Hazard struct {
	// Check names what was looked at.
	Check    string
	Severity Severity
	// Text says what was found and what to do.
	Text string
}

// Connections is how many connections a relay needs: the session, one that listens, one that watches over the session, and
// one for tasks such as reading the archive.
const Connections = 4

// farAhead is how far a seq is above the sequence's latest if no sequence can have made it: a sequence that was restarted does
// not explain it, and to set the sequence to it would not help.
const farAhead = 1 << 40

// Hazards looks for changes that others may have made to the tables or the server and that harm a relay. It needs tables of
// this version. Its error is that there is no connection.
func (o *Outbox) Hazards(ctx context.Context) (found []Hazard, err error) {
	err = o.with(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, inspectSettings); err != nil {
			return fmt.Errorf("look for hazards: %w", err)
		}
		for _, check := range []struct {
			name string
			look func(ctx context.Context, conn *pgx.Conn) (Severity, string, error)
		}{
			{"sequence", o.table.examineSequence},
			{"triggers", o.table.examineTriggers},
			{"storage", o.table.examineStorage},
			{"foreign keys", o.table.examineForeignKeys},
			{"publications", o.table.examinePublications},
			{"row policies", o.table.examineRowPolicies},
			{"standbys", examineStandbys},
			{"connections", examineConnections},
		} {
			severity, text, err := check.look(ctx, conn)
			if err != nil {
				severity, text = Doubtful, fmt.Sprintf("could not be looked at: %v", o.explain("look at "+check.name, err))
			}
			found = append(found, Hazard{check.name, severity, text})
		}
		return nil
	})
	return found, err
}

// examineSequence compares what the sequence will give out with the seqs that there are.
func (t Table) examineSequence(ctx context.Context, conn *pgx.Conn) (Severity, string, error) {
	var (
		name               *string
		cache, increment   int64
		cycles, readable   bool
		outbox, dead, gone int64
		last               int64
	)
	err := conn.QueryRow(ctx, `
select s.name, coalesce(q.seqcache, 1), coalesce(q.seqincrement, 1), coalesce(q.seqcycle, false), coalesce(has_sequence_privilege(s.name::regclass, 'SELECT'), false),
       (select coalesce(max(seq), 0) from only `+t.outbox()+`), (select coalesce(max(seq), 0) from only `+t.dead()+`), (select coalesce(max(seq), 0) from `+t.published()+`)
  from (select pg_get_serial_sequence($1, 'seq') as name) s left join pg_catalog.pg_sequence q on q.seqrelid = s.name::regclass`, t.outbox()).
		Scan(&name, &cache, &increment, &cycles, &readable, &outbox, &dead, &gone)
	if err != nil {
		return 0, "", err
	}
	if name == nil {
		return Harmful, "the column seq has no sequence of its own: make it an identity column, as `outbox-relay migrate --print` has it", nil
	}
	switch {
	case increment < 1:
		return Harmful, fmt.Sprintf("%s counts down: later events are published before earlier ones: run `alter sequence %s increment by 1`", *name, *name), nil
	case cycles:
		return Doubtful, fmt.Sprintf("%s begins anew when it has reached its end: run `alter sequence %s no cycle`", *name, *name), nil
	case cache > 1:
		return Doubtful, fmt.Sprintf("%s gives each session %d numbers at once, so a later event of an aggregate may have a lower seq, and is published before: run `alter sequence %s cache 1`", *name, cache, *name), nil
	case !readable:
		return Doubtful, fmt.Sprintf("the role may not read %s: an owner must run `grant select on sequence %s to` the relay's role", *name, *name), nil
	}
	if err := conn.QueryRow(ctx, `select last_value - case when is_called then 0 else 1 end from `+*name).Scan(&last); err != nil {
		return 0, "", err
	}
	for _, there := range []struct {
		where string
		seq   int64
	}{{"the outbox", outbox}, {"the dead letters", dead}, {"the archive", gone}} {
		switch ahead := there.seq - last; {
		case ahead <= 0:
		case ahead >= farAhead || ahead < 0:
			return Doubtful, fmt.Sprintf("in %s is seq %d, which %s (now at %d) has not given out: somebody inserts seqs of his own: grant producers INSERT on the columns id, topic, aggregate_type, aggregate_id, event_type, data and headers only",
				there.where, there.seq, *name, last), nil
		default:
			return Harmful, fmt.Sprintf("%s is at %d, and in %s is seq %d: it was restarted or restored, so new events get the seqs of earlier ones and are published before them, or are refused: run `select setval(%s, %d)`",
				*name, last, there.where, there.seq, literal(*name), max(outbox, dead, gone)), nil
		}
	}
	return Harmless, fmt.Sprintf("at %d, not below any seq that there is, one number at a time", last), nil
}

// examineTriggers looks for triggers and rules that keep a row that the relay removes, or that change one.
func (t Table) examineTriggers(ctx context.Context, conn *pgx.Conn) (Severity, string, error) {
	rows, err := conn.Query(ctx, `
select 'trigger ' || quote_ident(g.tgname) || ' on ' || g.tgrelid::regclass::text,
       'drop trigger ' || quote_ident(g.tgname) || ' on ' || g.tgrelid::regclass::text
  from pg_catalog.pg_trigger g
 where not g.tgisinternal and g.tgenabled in ('O', 'A') and g.tgtype & 3 = 3 -- Before each row.
   and (g.tgrelid = to_regclass($1) and g.tgtype & 24 <> 0 -- Deleted or updated.
        or g.tgrelid in (select to_regclass(name)::oid from unnest($3::text[]) as name))
 union all
select 'rule ' || quote_ident(r.rulename) || ' on ' || r.ev_class::regclass::text,
       'drop rule ' || quote_ident(r.rulename) || ' on ' || r.ev_class::regclass::text
  from pg_catalog.pg_rewrite r
 where r.ev_class in (select to_regclass(name)::oid from unnest($2::text[]) as name) and r.is_instead and r.ev_enabled in ('O', 'A')
 order by 1`, t.outbox(), []string{t.outbox(), t.dead(), t.relay()}, append([]string{t.dead(), t.relay()}, t.parts()...))
	if err != nil {
		return 0, "", err
	}
	found, remedies, err := pairs(rows)
	if err != nil || len(found) == 0 {
		return Harmless, "none keeps a row that the relay removes or moves", err
	}
	return Harmful, fmt.Sprintf("%s may keep a row that the relay removes or moves, so that publishing stops, or a dead letter stays in the outbox: run `%s`", strings.Join(found, ", "), strings.Join(remedies, "; ")), nil
}

// examineStorage looks for tables that a crash of the server empties, and for tables whose rows count as the outbox's.
func (t Table) examineStorage(ctx context.Context, conn *pgx.Conn) (Severity, string, error) {
	rows, err := conn.Query(ctx, `
select c.oid::regclass::text || ' is unlogged, so a crash of Postgres empties it', 'alter table ' || c.oid::regclass::text || ' set logged'
  from pg_catalog.pg_class c where c.oid in (select to_regclass(name)::oid from unnest($1::text[]) as name) and c.relpersistence <> 'p'
 union all
select i.inhrelid::regclass::text || ' inherits from the outbox, and its rows are not published, although queries of the outbox show them',
       'alter table ' || i.inhrelid::regclass::text || ' no inherit ' || i.inhparent::regclass::text
  from pg_catalog.pg_inherits i where i.inhparent = to_regclass($2)
 order by 1`, append([]string{t.outbox(), t.dead(), t.relay(), t.migrations()}, t.parts()...), t.outbox())
	if err != nil {
		return 0, "", err
	}
	found, remedies, err := pairs(rows)
	if err != nil || len(found) == 0 {
		return Harmless, "what is committed to the tables stays, and they stand alone", err
	}
	return Harmful, fmt.Sprintf("%s: run `%s`", strings.Join(found, "; "), strings.Join(remedies, "; ")), nil
}

// examineForeignKeys looks for foreign keys that refer to the outbox.
func (t Table) examineForeignKeys(ctx context.Context, conn *pgx.Conn) (Severity, string, error) {
	rows, err := conn.Query(ctx, `
select quote_ident(c.conname) || ' of ' || c.conrelid::regclass::text,
       'alter table ' || c.conrelid::regclass::text || ' drop constraint ' || quote_ident(c.conname)
  from pg_catalog.pg_constraint c where c.contype = 'f' and c.confrelid = to_regclass($1) order by 1`, t.outbox())
	if err != nil {
		return 0, "", err
	}
	found, remedies, err := pairs(rows)
	if err != nil || len(found) == 0 {
		return Harmless, "none refers to the outbox", err
	}
	return Harmful, fmt.Sprintf("%s refers to the outbox: what was published cannot be removed while it is referred to, or takes others' rows with it: run `%s`",
		strings.Join(found, ", "), strings.Join(remedies, "; ")), nil
}

// examinePublications looks for tables in which Postgres refuses updates and deletions, since they are to be replicated and
// have no identity.
func (t Table) examinePublications(ctx context.Context, conn *pgx.Conn) (Severity, string, error) {
	tables := append([]string{t.outbox(), t.dead(), t.relay(), t.candidatesTable(), t.pause(), t.migrations()}, t.parts()...)
	rows, err := conn.Query(ctx, `
select c.oid::regclass::text || ' in publication ' || string_agg(quote_ident(p.pubname), ', ' order by p.pubname),
       'alter table ' || c.oid::regclass::text || ' replica identity full'
  from pg_catalog.pg_class c, pg_catalog.pg_publication p
 where c.oid in (select to_regclass(name)::oid from unnest($1::text[]) as name) and (p.pubdelete or p.pubupdate)
   and (p.puballtables
        or exists (select from pg_catalog.pg_publication_tables x
                    where x.pubname = p.pubname and to_regclass(quote_ident(x.schemaname) || '.' || quote_ident(x.tablename))::oid in (c.oid, to_regclass($2)::oid)
                      and (to_regclass(quote_ident(x.schemaname) || '.' || quote_ident(x.tablename))::oid = c.oid or c.relispartition)))
   and (c.relreplident = 'n'
        or c.relreplident = 'd' and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary))
 group by c.oid order by 1`, tables, t.published())
	if err != nil {
		return 0, "", err
	}
	found, remedies, err := pairs(rows)
	if err != nil || len(found) == 0 {
		return Harmless, "none keeps the relay from updating and deleting rows", err
	}
	return Harmful, fmt.Sprintf("%s: Postgres refuses deletions in tables that are replicated without an identity, so nothing can be settled: run `%s`",
		strings.Join(found, "; "), strings.Join(remedies, "; ")), nil
}

// examineRowPolicies looks at the other tables than the outbox, which Check looks at.
func (t Table) examineRowPolicies(ctx context.Context, conn *pgx.Conn) (Severity, string, error) {
	tables := append([]string{t.outbox(), t.dead(), t.relay(), t.candidatesTable(), t.pause(), t.published()}, t.parts()...)
	rows, err := conn.Query(ctx, `
select name, 'alter table ' || name || ' disable row level security' from unnest($1::text[]) as name
 where to_regclass(name) is not null and row_security_active(to_regclass(name)) order by 1`, tables)
	if err != nil {
		return 0, "", err
	}
	found, remedies, err := pairs(rows)
	if err != nil || len(found) == 0 {
		return Harmless, "none applies to the relay's role", err
	}
	return Harmful, fmt.Sprintf("row-level security of %s hides rows from the relay's role, and refuses others: give it BYPASSRLS, or run `%s`",
		strings.Join(found, ", "), strings.Join(remedies, "; ")), nil
}

// examineStandbys finds out whether commits wait for a standby that is not there. A role that may not see the standbys' states
// sees at least whether its own sessions wait.
func examineStandbys(ctx context.Context, conn *pgx.Conn) (Severity, string, error) {
	var (
		names, commit        string
		visible, synchronous int
		waiting              int
		longest              *float64
	)
	err := conn.QueryRow(ctx, `
select current_setting('synchronous_standby_names'), current_setting('synchronous_commit'),
       (select count(*) from pg_catalog.pg_stat_replication where sync_state is not null) + (select count(*) from (values (1)) as one where pg_has_role(current_user, 'pg_read_all_stats', 'usage')),
       (select count(*) from pg_catalog.pg_stat_replication where sync_state in ('sync', 'quorum')),
       count(*), max(extract(epoch from clock_timestamp() - query_start))::float8
  from pg_catalog.pg_stat_activity where wait_event = 'SyncRep' and query_start < clock_timestamp() - interval '1 second'`).
		Scan(&names, &commit, &visible, &synchronous, &waiting, &longest)
	if err != nil {
		return 0, "", err
	}
	const remedy = "bring it back, or take it out of synchronous_standby_names"
	switch {
	case names == "":
		return Harmless, "commits wait for none", nil
	case waiting > 0:
		return Harmful, fmt.Sprintf("commits wait for a synchronous standby (%s), of %d now and for up to %s: %s", names, waiting, short(duration(longest)), remedy), nil
	case visible > 0 && synchronous == 0:
		return Harmful, fmt.Sprintf("no synchronous standby (%s) is connected, so commits wait for ever: %s", names, remedy), nil
	}
	return Harmless, "commits wait for " + names, nil
}

// examineConnections finds out whether the relay may have as many as it needs.
func examineConnections(ctx context.Context, conn *pgx.Conn) (Severity, string, error) {
	var (
		role, database           string
		ofRole, ofDatabase, most int
	)
	err := conn.QueryRow(ctx, `
select current_user, current_database(), (select rolconnlimit from pg_catalog.pg_roles where rolname = session_user),
       (select datconnlimit from pg_catalog.pg_database where datname = current_database()), current_setting('max_connections')::int`).
		Scan(&role, &database, &ofRole, &ofDatabase, &most)
	if err != nil {
		return 0, "", err
	}
	for _, limit := range []struct {
		most         int
		what, remedy string
	}{
		{ofRole, "role " + quote(role), "alter role " + quote(role) + " connection limit"},
		{ofDatabase, "database " + quote(database), "alter database " + quote(database) + " connection limit"},
	} {
		if limit.most >= 0 && limit.most < Connections {
			severity := Doubtful
			if limit.most < 2 {
				severity = Harmful
			}
			return severity, fmt.Sprintf("%s may have %d, and each relay needs up to %d: it publishes on one, and without the others it hears of new events late and cannot say what it waits for: run `%s %d`, or more for several relays",
				limit.what, limit.most, Connections, limit.remedy, Connections), nil
		}
	}
	return Harmless, fmt.Sprintf("enough may be opened; each relay needs up to %d", Connections), nil
}

// pairs collects rows of what was found and its remedy.
func pairs(rows pgx.Rows) (found, remedies []string, err error) {
	var what, remedy string
	_, err = pgx.ForEachRow(rows, []any{&what, &remedy}, func() error {
		found, remedies = append(found, what), append(remedies, remedy)
		return nil
	})
	return found, remedies, err
}

// Obstacles returns what the inspection has found that keeps a relay from working just now.
func (i *Inspection) Obstacles() []Hazard {
	var found []Hazard
	add := func(check string, severity Severity, text string) {
		found = append(found, Hazard{check, severity, text})
	}
	for n := range i.LockWaits {
		add("locks", Doubtful, i.LockWaits[n].String())
	}
	if len(i.Horizon) > 0 && i.DeadRows != nil && harmful(&i.Horizon[0], *i.DeadRows) {
		f := Finding{Kind: FindingHorizon, DeadRows: *i.DeadRows, Holder: i.Horizon[0]}
		add("old transactions", Doubtful, f.Text())
	}
	for n := range i.LeaderLocks {
		if l := &i.LeaderLocks[n]; l.Stranger() {
			add("leader's lock", Harmful, l.obstacle())
		}
	}
	if len(i.LeaderLocks) > 1 {
		add("leader's lock", Harmful, fmt.Sprintf("%s and %s both lead, since they compete for different locks (%d and %d): set OUTBOX_ADVISORY_LOCK to the same in all relays",
			i.LeaderLocks[0].Holder, i.LeaderLocks[1].Holder, i.LeaderLocks[0].Key, i.LeaderLocks[1].Key))
	}
	return found
}

// obstacle says why no relay can lead.
func (l *LeaderLock) obstacle() string {
	return fmt.Sprintf("it is held by a session that is no relay's, %s, so none can lead: run `select pg_terminate_backend(%d)`", l.Holder, l.Holder.PID)
}
