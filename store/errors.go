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
	// ErrOldSchema: the schema is older than this version of the library needs.
	ErrOldSchema = errors.New("the outbox schema is older than this version needs")
	// ErrNewSchema: the schema is newer than this version of the library knows.
	ErrNewSchema = errors.New("the outbox schema is newer than this version knows")
	// ErrPrivilege: the role may not do what is needed; the message names the GRANT.
	ErrPrivilege = errors.New("missing privilege")
	// ErrPooler: a connection pooler in transaction mode stands between the relay and Postgres.
	ErrPooler = errors.New("a transaction-mode pooler is in between")
	// ErrServerVersion: the server is older than Postgres 14.
	ErrServerVersion = errors.New("PostgreSQL 14 or later is needed")
	// ErrRowSecurity: row-level security would hide rows from the relay, and a hidden row is a lost event.
	ErrRowSecurity = errors.New("row-level security applies to the relay's role")
	// ErrNoDeadLetter: no dead letter has that seq or id.
	ErrNoDeadLetter = errors.New("no such dead letter")
	// ErrNotArchived: the archive has no event of that id (any more).
	ErrNotArchived = errors.New("not in the archive")
)

// Fatal reports whether err will stay until a person changes something about the program or the database
// schema, so that going on trying would only hide it. Outages, missing tables and missing privileges are
// not fatal: migrations and grants often come a moment after the relay.
func Fatal(err error) bool {
	for _, target := range []error{ErrForeignTable, ErrNewSchema, ErrPooler, ErrServerVersion} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// SQLSTATE codes, https://www.postgresql.org/docs/current/errcodes-appendix.html.
const (
	codeUndefinedTable        = "42P01"
	codeUndefinedColumn       = "42703"
	codeUndefinedObject       = "42704"
	codeInvalidSchema         = "3F000"
	codeInsufficientPrivilege = "42501"
	codeProtocolViolation     = "08P01"
	codeLockNotAvailable      = "55P03"
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
	case codeUndefinedTable, codeInvalidSchema:
		return fmt.Errorf("%s: %w: %s; create it with `outbox-relay migrate` or (*store.Outbox).Migrate (%w)", operation, ErrNoTable, t, err)
	case codeUndefinedColumn:
		return fmt.Errorf("%s: %w: %s; compare it with `outbox-relay migrate --print` (%w)", operation, ErrForeignTable, t, err)
	case codeInsufficientPrivilege:
		return fmt.Errorf("%s: %w: an owner must run `%s` (%w)", operation, ErrPrivilege, t.grants(operation, grantee(role)), err)
	}
	return fmt.Errorf("%s: %w", operation, err)
}

// grants is the statement that the operation lacks: a producer needs far less than the relay.
func (t Table) grants(operation, to string) string {
	if strings.HasPrefix(operation, "insert into outbox") {
		return fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s; GRANT INSERT ON %s TO %s", quote(t.orDefault().Schema), to, t.outbox(), to)
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

// explainConnect tells a pooler and an old server apart from a server that is merely not there.
func explainConnect(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	switch {
	case pg.Code == codeProtocolViolation && strings.Contains(pg.Message, "unsupported startup parameter"),
		pg.Code == codeProtocolViolation && strings.Contains(pg.Message, "options"):
		return fmt.Errorf("connect to Postgres: %w: connect to the server itself, not to the pooler (%w)", ErrPooler, err)
	case pg.Code == codeUndefinedObject && strings.Contains(pg.Message, "client_connection_check_interval"):
		return fmt.Errorf("connect to Postgres: %w (%w)", ErrServerVersion, err)
	}
	return fmt.Errorf("connect to Postgres: %w", err)
}

func isPrivilege(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == codeInsufficientPrivilege
}
