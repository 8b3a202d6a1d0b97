package store

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Errors that callers branch on. Those that [Fatal] knows do not heal by waiting.
var (
	// ErrNoTable: the outbox has not been created yet.
	ErrNoTable = errors.New("the outbox table does not exist")
	// ErrForeignTable: a table of that name exists but has another shape, so it is left alone.
	ErrForeignTable = errors.New("a table of another shape has the outbox's name")
	// ErrTableChanged: the table had the right shape when this process began, and somebody has changed it since. It comes with
	// ErrForeignTable.
	ErrTableChanged = errors.New("somebody has changed the outbox's table")
	// ErrOldSchema: the schema is older than this version of the library needs.
	ErrOldSchema = errors.New("the outbox schema is older than this version needs")
	// ErrNewSchema: the schema is newer than this version of the library knows.
	ErrNewSchema = errors.New("the outbox schema is newer than this version knows")
	// ErrPrivilege: the role may not do what is needed; the message names the GRANT.
	ErrPrivilege = errors.New("missing privilege")
	// ErrPooler: a connection pooler stands between the relay and Postgres. In transaction mode locks and notifications
	// silently do not work; which mode it is in, nobody can tell from outside.
	ErrPooler = errors.New("a connection pooler is in between")
	// ErrParameter: Postgres refuses a setting that the DSN asks for.
	ErrParameter = errors.New("the server refuses a setting of the DSN")
	// ErrStandby: the server takes no writes. One that does is looked for at each connection.
	ErrStandby = errors.New("the server is a standby, or read-only, and a relay writes")
	// ErrServerVersion: the server is older than Postgres 14.
	ErrServerVersion = errors.New("PostgreSQL 14 or later is needed")
	// ErrRowSecurity: row-level security would hide rows from the relay, and a hidden row is a lost event.
	ErrRowSecurity = errors.New("row-level security applies to the relay's role")
	// ErrKept: the database keeps rows that were removed, so what was published would be published again.
	ErrKept = errors.New("the database keeps the rows of published events")
	// ErrUnarchived: the archive does not have what was put into it, so it could not be published again.
	ErrUnarchived = errors.New("the archive does not keep what is put into it")
	// ErrOtherStream: the outbox is relayed to another stream than the one that is asked for.
	ErrOtherStream = errors.New("the outbox is relayed to another stream")
	// ErrNoDeadLetter: no dead letter has that seq or id.
	ErrNoDeadLetter = errors.New("no such dead letter")
	// ErrNotArchived: the archive has no event of that id (any more).
	ErrNotArchived = errors.New("not in the archive")
)

// Fatal reports whether err will stay until a person changes something about the program or the database
// schema, so that going on trying would only hide it. Outages, missing tables and missing privileges are
// not fatal: migrations and grants often come a moment after the relay. Nor is a table that was changed under a running
// relay: whoever changed it can change it back.
func Fatal(err error) bool {
	if errors.Is(err, ErrTableChanged) {
		return false
	}
	for _, target := range []error{ErrForeignTable, ErrNewSchema, ErrPooler, ErrServerVersion, ErrParameter, ErrOtherStream} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// SQLSTATE codes, https://www.postgresql.org/docs/current/errcodes-appendix.html.
const (
	codeUndefinedTable        = "42P01"
	codeUndefinedFunction     = "42883"
	codeUndefinedColumn       = "42703"
	codeUndefinedObject       = "42704"
	codeWidthBucket           = "2201G"
	codeInvalidParameter      = "22023"
	codeInvalidPassword       = "28P01"
	codeInvalidDatabase       = "3D000"
	codeTooManyConnections    = "53300"
	codeInvalidSchema         = "3F000"
	codeInsufficientPrivilege = "42501"
	codeProtocolViolation     = "08P01"
	codeReadOnly              = "25006"
	codeLockNotAvailable      = "55P03"
	codeSerialization         = "40001"
	codeCancelled             = "57014"
	codeNotSupported          = "0A000"
	codeDatatypeMismatch      = "42804"
)

// explain is explainTo for where it is not known who was refused.
func (t Table) explain(operation string, err error) error { return t.explainTo("", operation, err) }

// explainTo names what to do about an error that the user can mend; others only get the operation in front. What role lacks
// it is to be granted; an empty one is not known.
func (t Table) explainTo(role, operation string, err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &pg):
		return fmt.Errorf("%s: %w", operation, err)
	}
	switch pg.Code {
	case codeUndefinedTable, codeInvalidSchema, codeUndefinedFunction:
		if inFunction(pg) { // A trigger of somebody else's, say.
			return fmt.Errorf("%s: a function that somebody has put on the table %s uses a name without its schema, and the relay's connections find no names but Postgres' own: change it with ALTER FUNCTION … SET search_path (%w; %s)", operation, t, err, cut(pg.Where))
		}
		if pg.Code == codeUndefinedFunction {
			break
		}
		return fmt.Errorf("%s: %w: %s; create it with `outbox-relay migrate` or (*store.Outbox).Migrate (%w)", operation, ErrNoTable, t, err)
	case codeReadOnly:
		if inFunction(pg) { // Somebody's trigger says so.
			break
		}
		return fmt.Errorf("%s: %w: name the primary in the DSN (%w)", operation, ErrStandby, err)
	case codeUndefinedColumn:
		return fmt.Errorf("%s: %w: %s; compare it with `outbox-relay migrate --print` (%w)", operation, ErrForeignTable, t, err)
	case codeInsufficientPrivilege:
		if pg.Routine == "check_enable_rls" || strings.Contains(pg.Message, "row-level security") { // The message may be in any language.
			return fmt.Errorf("%s: %w: it would hide rows of %s, and a hidden row is a lost event; give the role BYPASSRLS or disable it on this table (%w)", operation, ErrRowSecurity, t, err)
		}
		if inFunction(pg) { // The privilege is one that somebody's trigger lacks.
			break
		}
		return fmt.Errorf("%s: %w: an owner must run `%s` (%w)", operation, ErrPrivilege, t.grants(operation, grantee(role)), err)
	}
	err = located(err)
	return fmt.Errorf("%s: %w", operation, err)
}

// cut shortens what is only to give an idea.
func cut(text string) string {
	const most = 200
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// grants is the statement that the operation lacks: a producer needs far less than the relay.
func (t Table) grants(operation, to string) string {
	if strings.HasPrefix(operation, "insert into outbox") {
		return t.ProducerGrants(to)
	}
	return t.Grants(to)
}

// grantee is whom a GRANT names.
func grantee(role string) string {
	if role == "" {
		return "<role>"
	}
	return quote(role)
}

func isPrivilege(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == codeInsufficientPrivilege
}
