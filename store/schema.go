package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// column is what the relay relies on of a column.
type column struct {
	name, typ string
	notNull   bool
}

// outboxColumns is the shape of the newest schema's outbox table; every column that the migrations add
// must appear here too, which TestShapeMatchesMigrations checks.
var outboxColumns = []column{ //nolint:gochecknoglobals // Immutable.
	{"seq", "bigint", true},
	{"id", "uuid", true},
	{"topic", "text", true},
	{"aggregate_type", "text", true},
	{"aggregate_id", "text", true},
	{"event_type", "text", true},
	{"data", "bytea", true},
	{"headers", "jsonb", false},
	{"created_at", "timestamp with time zone", true},
	{"attempts", "integer", true},
	{"retry_at", "timestamp with time zone", false},
	{"last_error", "text", false},
	{"given_up_at", "timestamp with time zone", false},
}

// querier is what a connection and a transaction have in common.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// check verifies that the relay can work with the tables as they are. It looks at them in one snapshot: between two, a
// migration that ends just now would be seen by halves, as tables of our shape without a version.
func (t Table) check(ctx context.Context, conn *pgx.Conn) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return t.explain("check the tables", err)
	}
	err = t.checkIn(ctx, tx)
	if rollbackErr := tx.Rollback(context.WithoutCancel(ctx)); err == nil && rollbackErr != nil {
		return t.explain("check the tables", rollbackErr)
	}
	return err
}

func (t Table) checkIn(ctx context.Context, q querier) error {
	version, err := t.version(ctx, q)
	if err != nil {
		return err
	}
	exists, err := t.checkShape(ctx, q)
	if err != nil && version == 0 {
		return err // Not ours: whatever else is to be said comes after that.
	}
	latest := latestVersion()
	switch {
	case version == 0 && exists:
		return t.unrecorded()
	case version == 0 || !exists:
		return fmt.Errorf("%w: %s; create it with `outbox-relay migrate` or (*store.Outbox).Migrate", ErrNoTable, t)
	case version < latest:
		return t.outdated(version)
	case version > latest:
		return fmt.Errorf("%w: %s is at version %d, known is %d; use a newer outbox-relay", ErrNewSchema, t, version, latest)
	case err != nil:
		return err
	}
	return t.checkAccess(ctx, q)
}

// version returns the schema's version; 0 if there is none.
func (t Table) version(ctx context.Context, q querier) (int, error) {
	// Not to_regclass, which may answer from a cache that does not know yet what others have just created.
	var exists bool
	var role string
	err := q.QueryRow(ctx, `
select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                where n.nspname = $1 and c.relname = $2), current_user`, t.orDefault().Schema, t.orDefault().Name+"_migrations").Scan(&exists, &role)
	if err != nil || !exists {
		return 0, t.explain("read the schema version", err)
	}
	var version int
	err = q.QueryRow(ctx, `select coalesce(max(version), 0) from `+t.migrations()).Scan(&version)
	return version, t.explainTo(role, "read the schema version", err)
}

// checkShape reports whether there is a table of the outbox's name, and refuses one that is not ours, naming
// the differences. Columns that others added are fine as long as an insert does not have to fill them.
func (t Table) checkShape(ctx context.Context, q querier) (exists bool, err error) {
	kind, found, err := t.columns(ctx, q)
	if err != nil || kind == "" {
		return false, err
	}
	var differences []string
	if kind != ordinaryTable {
		differences = append(differences, fmt.Sprintf("it is %s instead of an ordinary table", relationKinds[kind]))
	}
	for _, want := range outboxColumns {
		i := slices.IndexFunc(found, func(c foundColumn) bool { return c.name == want.name })
		switch {
		case i < 0:
			differences = append(differences, fmt.Sprintf("column %q is missing", want.name))
		case found[i].typ != want.typ && (want.typ != "text" || !isText(found[i].typ)):
			differences = append(differences, fmt.Sprintf("column %q is %s instead of %s", want.name, found[i].typ, want.typ))
		case found[i].notNull && !want.notNull: // The other way round it is no hindrance: a row with a null is given up.
			differences = append(differences, fmt.Sprintf("column %q is not null instead of nullable", want.name))
		}
	}
	for _, c := range found {
		known := slices.ContainsFunc(outboxColumns, func(want column) bool { return want.name == c.name })
		if !known && c.notNull && !c.hasDefault {
			differences = append(differences, fmt.Sprintf("column %q is not known and must be filled", c.name))
		}
	}
	if len(differences) == 0 {
		return true, nil
	}
	return true, fmt.Errorf("%w: %s: %s; it is left as it is: rename it, or choose another name for the outbox (OUTBOX_TABLE)",
		ErrForeignTable, t, strings.Join(differences, ", "))
}

// outdated is of tables that are still to be upgraded.
func (t Table) outdated(version int) error {
	return fmt.Errorf("%w: %s is at version %d, needed is %d; run `outbox-relay migrate`", ErrOldSchema, t, version, latestVersion())
}

// unrecorded is of tables that look like ours, of which nobody knows what version they are.
func (t Table) unrecorded() error {
	return fmt.Errorf("%w: %s has the right columns but no recorded schema version; if it was created from `outbox-relay migrate --print`, run that script's statements about %s too",
		ErrForeignTable, t, t.migrations())
}

// isText reports whether a type's values are as good as text to the relay. Not so char(n), which pads them.
func isText(typ string) bool {
	return typ == "character varying" || strings.HasPrefix(typ, "character varying(")
}

// ordinaryTable is what the outbox has to be. In the others the relay could not see by locks and transaction numbers which
// rows are still to come: rows of a view or foreign table are somewhere else, and those of a partition may come by another name.
const ordinaryTable = "r"

// relationKinds are the values of relkind that have columns.
var relationKinds = map[string]string{ //nolint:gochecknoglobals // Immutable.
	ordinaryTable: "an ordinary table", "p": "a partitioned table", "v": "a view", "m": "a materialized view", "f": "a foreign table",
	"S": "a sequence", "c": "a type", "i": "an index", "I": "an index",
}

type foundColumn struct {
	column
	hasDefault bool
}

// columns lists what a relation of the outbox's name holds, and says of what kind it is; empty if there is none. Domains
// count as the types that they are of.
func (t Table) columns(ctx context.Context, q querier) (kind string, found []foundColumn, err error) {
	rows, err := q.Query(ctx, `
select c.relkind::text, attname, format_type(d.base, d.typmod), attnotnull, atthasdef or attidentity <> '' or attgenerated <> ''
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_attribute a on a.attrelid = c.oid and attnum > 0 and not attisdropped
  left join lateral (
       with recursive of (base, typmod) as (
            select atttypid, atttypmod
            union all
            select p.typbasetype, p.typtypmod from of join pg_catalog.pg_type p on p.oid = of.base where p.typtype = 'd')
       select base, typmod from of join pg_catalog.pg_type p on p.oid = of.base where p.typtype <> 'd') d on true
 where n.nspname = $1 and c.relname = $2
 order by attnum`, t.orDefault().Schema, t.orDefault().Name)
	if err != nil {
		return "", nil, t.explain("read the table's shape", err)
	}
	var (
		name, typ           *string
		notNull, hasDefault *bool
	)
	_, err = pgx.ForEachRow(rows, []any{&kind, &name, &typ, &notNull, &hasDefault}, func() error {
		if name != nil && typ != nil { // A table may have no column at all.
			found = append(found, foundColumn{column{*name, *typ, *notNull}, *hasDefault})
		}
		return nil
	})
	return kind, found, t.explain("read the table's shape", err)
}

// checkAccess looks for what would make the relay fail, or silently see less than there is.
func (t Table) checkAccess(ctx context.Context, q querier) error {
	var role string
	var missing []string
	var hidden bool
	err := q.QueryRow(ctx, `
select current_user,
       array(select p.privilege || ' on ' || p.relation
               from (select * from (values ($1, 'SELECT'), ($1, 'INSERT'), ($1, 'UPDATE'), ($1, 'DELETE'),
                                           ($2, 'SELECT'), ($2, 'INSERT'), ($2, 'DELETE'),
                                           ($3, 'SELECT'), ($3, 'INSERT'), ($3, 'UPDATE'),
                                           ($4, 'SELECT'), ($4, 'UPDATE'), ($4, 'DELETE'),
                                           ($6, 'SELECT'), ($6, 'INSERT'), ($6, 'UPDATE'), ($6, 'DELETE'),
                                           ($7, 'SELECT'), ($7, 'INSERT'), ($7, 'UPDATE'), ($7, 'DELETE')) as v
                     union all select part, privilege from unnest($5::text[]) as part, (values ('SELECT'), ('INSERT'), ('DELETE'), ('TRUNCATE')) as v (privilege)) as p (relation, privilege)
              where to_regclass(p.relation) is null or not has_table_privilege(to_regclass(p.relation), p.privilege))
       || array(select 'SELECT on ' || s.name from pg_get_serial_sequence($1, 'seq') as s (name) where not has_sequence_privilege(s.name, 'SELECT')),
       coalesce(row_security_active(to_regclass($1)), false)`, t.outbox(), t.dead(), t.relay(), t.published(), t.parts(), t.candidatesTable(), t.pause()).Scan(&role, &missing, &hidden)
	switch {
	case err != nil:
		return t.explain("check privileges", err)
	case len(missing) > 0:
		return fmt.Errorf("%w: role %q lacks %s; an owner must run `%s`", ErrPrivilege, role, strings.Join(missing, ", "), t.Grants(quote(role)))
	case hidden:
		return fmt.Errorf("%w: %s: it hides rows from role %q, and a hidden row is a lost event; give the role BYPASSRLS or disable it on this table", ErrRowSecurity, t, role)
	}
	return nil
}

func quote(identifier string) string { return pgx.Identifier{identifier}.Sanitize() }

// isSchemaError reports whether the schema is what is wrong, so that migrating may help.
func isSchemaError(err error) bool {
	return errors.Is(err, ErrNoTable) || errors.Is(err, ErrOldSchema)
}
