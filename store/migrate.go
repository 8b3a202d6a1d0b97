package store

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// payloads are the types that the emit function takes data in, and how each becomes the bytes that are stored.
var payloads = []struct{ Type, Bytes string }{ //nolint:gochecknoglobals // Immutable.
	{"text", "pg_catalog.convert_to($5, 'UTF8')"},
	{"jsonb", "pg_catalog.convert_to($5::pg_catalog.text, 'UTF8')"},
	{"json", "pg_catalog.convert_to($5::pg_catalog.text, 'UTF8')"},
	{"bytea", "$5"},
}

// names are what the migrations' templates call this table's objects.
func (t Table) names() map[string]any {
	type part struct {
		Number      int
		Name, Index string
		Literal     string // Of the index.
	}
	names := map[string]any{
		"Schema":         quote(t.orDefault().Schema),
		"Outbox":         t.outbox(),
		"Dead":           t.dead(),
		"Relay":          t.relay(),
		"Published":      t.published(),
		"RetryIndex":     t.unqualified("_retry_idx"),
		"DeadIndex":      t.unqualified("_dead_aggregate_idx"),
		"WakeFunction":   t.quoted("_wake"),
		"WakeTrigger":    t.unqualified("_wake"),
		"WakeKey":        strconv.FormatInt(t.wakeKey(), 10),
		"ChannelLiteral": "'" + t.channel() + "'",

		"DeadKey":               t.unqualified("_dead_pkey"),
		"DeadLiteral":           literal(t.dead()),
		"DeadSeqIndex":          t.unqualified("_dead_seq_idx"),
		"DeadHashIndex":         t.unqualified("_dead_id_idx"),
		"LetterIndex":           t.unqualified("_dead_letter_idx"),
		"LetterSequence":        t.quoted("_dead_letters"),
		"LetterSequenceLiteral": literal(t.quoted("_dead_letters")),
		"GivenUpIndex":          t.unqualified("_given_up_idx"),
		"OutboxLiteral":         literal(t.outbox()),
		"EmitFunction":          t.emit(),
		"EmittedFunction":       t.emitted(),
		"CheckFunction":         t.quoted("_check"),
		"CheckTrigger":          t.unqualified("_check"),
		"EmitNameLiteral":       literal(t.orDefault().Name + "_emit"),
		"EmittedNameLiteral":    literal(t.orDefault().Name + "_emitted"),
		"SummarizeFunction":     t.summarize(),
		"RelayLiteral":          literal(t.relay()),
		"Candidates":            t.candidatesTable(),
		"CandidatesLiteral":     literal(t.candidatesTable()),
		"CandidateKey":          t.unqualified("_candidate_pkey"),
		"Pause":                 t.pause(),
		"PauseLiteral":          literal(t.pause()),
		"PauseKey":              t.unqualified("_pause_pkey"),
		"Payloads":              payloads,
	}
	parts := make([]part, archiveParts)
	for i, name := range t.parts() {
		suffix := "_after_" + strconv.Itoa(i)
		parts[i] = part{i, name, t.unqualified(suffix), literal(t.quoted(suffix))}
		names["Part"+strconv.Itoa(i)] = name
		names["AfterIndex"+strconv.Itoa(i)] = t.unqualified(suffix)
	}
	names["Parts"] = parts
	return names
}

// scripts returns the numbered migrations in order, with this table's names in them. The file of version n
// is number n: 0001_outbox.sql is version 1. Concurrently is that constant, or nothing.
func (t Table) scripts(concurrently string) ([]string, error) {
	files, err := fs.Glob(migrationFiles, "migrations/*.sql") // Sorted by name.
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	names := t.names()
	names["Concurrently"] = concurrently
	scripts := make([]string, len(files))
	for i, file := range files {
		number, _, _ := strings.Cut(path.Base(file), "_")
		if n, err := strconv.Atoi(number); err != nil || n != i+1 {
			return nil, fmt.Errorf("migration %s: want number %d", file, i+1)
		}
		parsed, err := template.New(path.Base(file)).Option("missingkey=error").ParseFS(migrationFiles, file)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", file, err)
		}
		var script strings.Builder
		if err := parsed.Execute(&script, names); err != nil {
			return nil, fmt.Errorf("migration %s: %w", file, err)
		}
		scripts[i] = script.String()
	}
	return scripts, nil
}

// latestVersion is the schema version that this code works with.
func latestVersion() int {
	files, _ := fs.Glob(migrationFiles, "migrations/*.sql") // The pattern is constant and valid.
	return len(files)
}

func (t Table) createMigrations() string {
	return "create table if not exists " + t.migrations() + ` (
    version    integer     primary key,
    applied_at timestamptz not null default clock_timestamp()
)`
}

// fixedPath makes a migration mean the same whatever the role's search_path: what it does not qualify is Postgres' own.
const fixedPath = `set local search_path = pg_catalog, pg_temp`

// Script returns the whole schema as SQL for other migration tools: what [Outbox.Migrate] would run on an
// empty database, in one transaction.
func (t Table) Script() (string, error) {
	if err := t.validate(); err != nil {
		return "", err
	}
	scripts, err := t.scripts("")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "-- Schema of the outbox %s, version %d.\nbegin;\n%s;\n\ncreate schema if not exists %s;\n\n%s;\n",
		t, len(scripts), fixedPath, quote(t.orDefault().Schema), t.createMigrations())
	for i, script := range scripts {
		fmt.Fprintf(&b, "\n-- Version %d.\n%s\ninsert into %s (version) values (%d);\n", i+1, script, t.migrations(), i+1)
	}
	b.WriteString("\n-- Let producers and the relay in: see outbox-relay migrate --print-grants.\n\ncommit;\n")
	return b.String(), nil
}

// migrate brings the schema to the latest version. Any number of processes may call it at once: they take
// turns, and all but the first find nothing to do. The log tells who was first.
func (t Table) migrate(ctx context.Context, conn *pgx.Conn, log *slog.Logger) error {
	if err := t.check(ctx, conn); !isSchemaError(err) {
		return err
	}
	if err := checkServer(ctx, conn); err != nil { // The lock is the session's.
		return fmt.Errorf("migrate %s: %w", t, err)
	}
	m := migration{table: t, conn: conn, log: log, patience: upgradePatience}
	return m.migrate(ctx)
}

func (m *migration) migrate(ctx context.Context) error {
	t := m.table
	// CREATE … IF NOT EXISTS races with itself, so the lock comes first and everything else is decided under it.
	if err := m.takeTurn(ctx); err != nil {
		return fmt.Errorf("migrate %s: wait for other migrations: %w", t, err)
	}
	defer m.giveTurn(ctx)
	version, err := t.version(ctx, m.conn)
	switch {
	case err != nil:
		return err
	case version == 0:
		return m.create(ctx)
	case version < latestVersion():
		return m.upgrade(ctx, version)
	}
	return nil
}

// migration is one process' turn at the tables.
type migration struct {
	table Table
	conn  *pgx.Conn
	role  string
	log   *slog.Logger

	patience time.Duration // With locks, in an upgrade.
}

// turnPause is how long a process waits before it asks again for its turn. It does not wait in a statement: an index that
// is created concurrently waits for all statements under way, and so the two would wait for each other.
const turnPause = 50 * time.Millisecond

func (m *migration) takeTurn(ctx context.Context) error {
	for start, told := time.Now(), false; ; {
		var taken bool
		err := m.conn.QueryRow(ctx, `select current_user, pg_catalog.pg_try_advisory_lock($1::bigint)`, m.table.migrateKey()).Scan(&m.role, &taken)
		if err != nil || taken {
			return err
		}
		if !told && time.Since(start) > 5*time.Second {
			told = true
			m.log.InfoContext(ctx, "another process migrates the tables; waiting for it", slog.String("table", m.table.String()))
		}
		if err := pause(ctx, turnPause); err != nil {
			return err
		}
	}
}

// giveTurn gives back the lock, which would end with the session, too.
func (m *migration) giveTurn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	_, _ = m.conn.Exec(ctx, `select pg_catalog.pg_advisory_unlock($1::bigint)`, m.table.migrateKey()) // The session's end does it, too.
}

// pause waits, unless the context ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// create makes all tables in one transaction. Nobody uses them yet.
func (m *migration) create(ctx context.Context) error {
	t := m.table
	scripts, err := t.scripts("")
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, m.conn, func(tx pgx.Tx) error {
		exists, err := t.checkShape(ctx, tx)
		if err != nil {
			return err
		}
		if exists {
			return t.unrecorded()
		}
		if _, err := tx.Exec(ctx, fixedPath); err != nil {
			return t.explainCreate(m.role, err)
		}
		if err := t.createSchema(ctx, tx, m.role); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, t.createMigrations()); err != nil {
			return t.explainCreate(m.role, err)
		}
		for i, script := range scripts {
			if _, err := tx.Exec(ctx, script); err != nil {
				return fmt.Errorf("version %d: %w", i+1, t.explainCreate(m.role, err))
			}
			if _, err := tx.Exec(ctx, `insert into `+t.migrations()+` (version) values ($1)`, i+1); err != nil {
				return t.explainCreate(m.role, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.log.InfoContext(ctx, "tables created", slog.String("table", t.String()))
	return nil
}

// createSchema creates the schema if it is absent. IF NOT EXISTS alone would ask for the right to create
// schemas even where there is nothing to create.
func (t Table) createSchema(ctx context.Context, tx pgx.Tx, role string) error {
	var exists bool
	err := tx.QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace where nspname = $1)`, t.orDefault().Schema).Scan(&exists)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", t, err)
	}
	if exists {
		return nil
	}
	_, err = tx.Exec(ctx, `create schema `+quote(t.orDefault().Schema))
	if isPrivilege(err) { // There is nothing yet to be granted.
		return fmt.Errorf("migrate %s: %w: an owner must run `CREATE SCHEMA %s AUTHORIZATION %s`, or the script of `outbox-relay migrate --print` (%w)",
			t, ErrPrivilege, quote(t.orDefault().Schema), quote(role), err)
	}
	return t.explainCreate(role, err)
}

func (t Table) explainCreate(role string, err error) error {
	if err == nil {
		return nil
	}
	if isPrivilege(err) {
		return fmt.Errorf("migrate %s: %w: an owner must run `GRANT CREATE, USAGE ON SCHEMA %s TO %s`, or the script of `outbox-relay migrate --print` (%w)",
			t, ErrPrivilege, quote(t.orDefault().Schema), quote(role), err)
	}
	return fmt.Errorf("migrate %s: %w", t, err)
}
