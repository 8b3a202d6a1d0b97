package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// producerColumns are those that a producer fills. All else is Postgres' or the relay's to write.
var producerColumns = []string{"id", "topic", "aggregate_type", "aggregate_id", "event_type", "data", "headers"} //nolint:gochecknoglobals // Immutable.

// ProducerGrants returns the statements that let role insert events, by itself, by store.Insert and by the emit function,
// and do nothing else to the outbox. Role is put in as it is, so quote it where needed.
func (t Table) ProducerGrants(role string) string {
	functions := []string{t.emitted() + "()"}
	for _, p := range payloads {
		functions = append(functions, t.emit()+"(text, text, text, text, "+p.Type+", jsonb, uuid)")
	}
	return fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s; GRANT INSERT (%s) ON %s TO %s; GRANT EXECUTE ON FUNCTION %s TO %s",
		quote(t.orDefault().Schema), role, strings.Join(producerColumns, ", "), t.outbox(), role, strings.Join(functions, ", "), role)
}

// Grants returns the statements that let role run the relay and the operator's commands. Role is put in as it is, so quote it
// where needed.
func (t Table) Grants(role string) string {
	return fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s; GRANT SELECT, INSERT, UPDATE, DELETE ON %s, %s, %s, %s, %s TO %s; GRANT SELECT, UPDATE, DELETE ON %s TO %s; GRANT SELECT, INSERT, DELETE, TRUNCATE ON %s TO %s; GRANT SELECT ON %s TO %s; GRANT SELECT ON SEQUENCE %s TO %s",
		quote(t.orDefault().Schema), role, t.outbox(), t.dead(), t.relay(), t.candidatesTable(), t.pause(), role, t.published(), role, strings.Join(t.parts(), ", "), role, t.migrations(), role, t.sequence(), role)
}

// MigratorGrants returns the statements that let role create the tables, which it then owns; only their owner may upgrade
// them. Role is put in as it is, so quote it where needed.
func (t Table) MigratorGrants(role string) string {
	return fmt.Sprintf("GRANT USAGE, CREATE ON SCHEMA %s TO %s", quote(t.orDefault().Schema), role)
}

// Roles names those that [Table.GrantScript] grants to, unquoted.
type Roles struct{ Producer, Relay, Migrator string }

// GrantScript returns SQL that lets these roles in, with what each is for.
func (t Table) GrantScript(roles Roles) string {
	var b strings.Builder
	fmt.Fprintf(&b, "-- Privileges on the outbox %s, for the owner of the tables to run.\n", t)
	for _, section := range []struct{ comment, grants string }{
		{"The migrator creates and upgrades the tables, and owns them. Run this one before outbox-relay migrate, the others after it.", t.MigratorGrants(quote(roles.Migrator))},
		{"A producer inserts events. It needs no other column: seq, attempts and so on are the relay's.", t.ProducerGrants(quote(roles.Producer))},
		{"The relay, and the commands dead, replay, pause, resume, status, find and doctor.", t.Grants(quote(roles.Relay))},
	} {
		fmt.Fprintf(&b, "\n-- %s\n%s;\n", section.comment, strings.ReplaceAll(section.grants, "; ", ";\n"))
	}
	return b.String()
}

// GrantFinding is a role that may do more to the outbox, or less, than its task needs.
type GrantFinding struct {
	// Role is its name; "public" is everybody.
	Role string
	// Problem says what it may do, or lacks; Remedy is the statement that an owner runs.
	Problem, Remedy string
}

// CheckGrants compares the privileges of producers with those of [Table.ProducerGrants]. A producer is a role that was granted
// INSERT on the outbox and is neither its owner, nor a relay's role (which may delete its rows), nor a superuser. What
// roles inherit from others is found with the others.
func (o *Outbox) CheckGrants(ctx context.Context) (findings []GrantFinding, err error) {
	err = o.with(ctx, func(conn *pgx.Conn) error {
		findings, err = o.table.checkGrants(ctx, conn)
		return err
	})
	return findings, err
}

// granteeRights are what one role may do to the outbox.
type granteeRights struct {
	Role    string
	Quoted  string
	Whole   []string // Privileges on the table,
	Columns []string // columns that it may insert,
	Updates []string // and update.
	Usage   bool     // Of the schema.
	Calls   bool     // All functions of a producer.
}

func (t Table) checkGrants(ctx context.Context, q querier) ([]GrantFinding, error) {
	rows, err := q.Query(ctx, `
with outbox as (select oid, relowner, relacl, relnamespace from pg_catalog.pg_class where oid = pg_catalog.to_regclass($1)),
     granted as (select a.grantee, a.privilege_type, null as attname from outbox, pg_catalog.aclexplode(relacl) a
                 union all
                 select a.grantee, a.privilege_type, c.attname::text from outbox join pg_catalog.pg_attribute c on c.attrelid = outbox.oid, pg_catalog.aclexplode(c.attacl) a)
select case g.grantee when 0 then 'public' else pg_catalog.pg_get_userbyid(g.grantee)::text end,
       case g.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(g.grantee)) end,
       coalesce(array_agg(distinct g.privilege_type order by g.privilege_type) filter (where g.attname is null), '{}'),
       coalesce(array_agg(distinct g.attname order by g.attname) filter (where g.privilege_type = 'INSERT' and g.attname is not null), '{}'),
       coalesce(array_agg(distinct g.attname order by g.attname) filter (where g.privilege_type = 'UPDATE' and g.attname is not null), '{}'),
       g.grantee = 0 or pg_catalog.has_schema_privilege(g.grantee, (select relnamespace from outbox), 'USAGE'),
       g.grantee = 0 or not exists (select from pg_catalog.pg_proc p where p.pronamespace = (select relnamespace from outbox) and p.proname in ($2, $3)
                                       and not pg_catalog.has_function_privilege(g.grantee, p.oid, 'EXECUTE'))
  from granted g left join pg_catalog.pg_roles r on r.oid = g.grantee
 where g.grantee <> (select relowner from outbox) and not coalesce(r.rolsuper, false)
 group by g.grantee order by 1`, t.outbox(), t.orDefault().Name+"_emit", t.orDefault().Name+"_emitted")
	if err != nil {
		return nil, t.explain("read who may insert", err)
	}
	roles, err := pgx.CollectRows(rows, pgx.RowToStructByPos[granteeRights])
	if err != nil {
		return nil, t.explain("read who may insert", err)
	}
	var findings []GrantFinding
	for _, r := range roles {
		findings = append(findings, t.judge(r)...)
	}
	return findings, nil
}

// judge says what is wrong with what one role may do.
func (t Table) judge(r granteeRights) (findings []GrantFinding) {
	whole := slices.Contains(r.Whole, "INSERT")
	relay := slices.Contains(r.Whole, "SELECT") && slices.Contains(r.Whole, "DELETE")
	if relay || (!whole && len(r.Columns) == 0) {
		return nil
	}
	find := func(remedy, problem string, args ...any) {
		findings = append(findings, GrantFinding{Role: r.Role, Problem: fmt.Sprintf(problem, args...), Remedy: remedy})
	}
	restrict := fmt.Sprintf("REVOKE ALL ON %s FROM %s; %s", t.outbox(), r.Quoted, t.ProducerGrants(r.Quoted))
	excess := slices.DeleteFunc(slices.Clone(r.Columns), func(c string) bool { return slices.Contains(producerColumns, c) })
	var lacking []string
	for _, c := range producerColumns {
		if !whole && !slices.Contains(r.Columns, c) {
			lacking = append(lacking, c)
		}
	}
	switch {
	case whole:
		find(restrict, "may insert whole rows, so also seq, attempts and what else is the relay's to write")
	case len(excess) > 0:
		find(restrict, "may insert into %s, which is not a producer's to write", strings.Join(excess, ", "))
	}
	if also := slices.DeleteFunc(slices.Clone(r.Whole), func(p string) bool { return p == "INSERT" || p == "SELECT" || p == "MAINTAIN" || p == "REFERENCES" }); len(also) > 0 {
		find(restrict, "has %s on the table, which no producer needs", strings.Join(also, ", "))
	}
	if len(r.Updates) > 0 {
		find(restrict, "may update %s, which no producer needs", strings.Join(r.Updates, ", "))
	}
	if len(lacking) > 0 {
		find(t.ProducerGrants(r.Quoted), "may not insert into %s, which store.Insert and %s do", strings.Join(lacking, ", "), t.orDefault().Name+"_emit")
	}
	if !r.Usage {
		find(t.ProducerGrants(r.Quoted), "may not use the schema %q", t.orDefault().Schema)
	}
	if !r.Calls {
		find(t.ProducerGrants(r.Quoted), "may not call %s", t.orDefault().Name+"_emit")
	}
	return findings
}
