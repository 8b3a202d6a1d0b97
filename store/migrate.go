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

	"github.com/jackc/pgx/v5"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrationLockTimeout bounds how long a migration waits for a table lock: while it waits, producers queue
// up behind it. A migration that fails so has changed nothing and can be run again.
const migrationLockTimeout = "5s"

// scripts returns the numbered migrations in order, with this table's names in them. The file of version n
// is number n: 0001_outbox.sql is version 1.
func (t Table) scripts(concurrently string) ([]string, error) {
	files, err := fs.Glob(migrationFiles, "migrations/*.sql") // Sorted by name.
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	type part struct {
		Number int
		Name   string
	}
	var parts []part
	for i, name := range t.parts() {
		parts = append(parts, part{i, name})
	}
	names := map[string]any{
		"Schema":         quote(t.orDefault().Schema),
		"Outbox":         t.outbox(),
		"Dead":           t.dead(),
		"Relay":          t.relay(),
		"Published":      t.published(),
		"Parts":          parts,
		"RetryIndex":     t.unqualified("_retry_idx"),
		"DeadIndex":      t.unqualified("_dead_aggregate_idx"),
		"WakeFunction":   t.quoted("_wake"),
		"WakeTrigger":    t.unqualified("_wake"),
		"WakeKey":        strconv.FormatInt(t.wakeKey(), 10),
		"ChannelLiteral": "'" + t.channel() + "'",

		"Concurrently":          concurrently,
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
		"EmitNameLiteral":       literal(t.orDefault().Name + "_emit"),
		"EmittedNameLiteral":    literal(t.orDefault().Name + "_emitted"),
		"Payloads":              payloads,
	}
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

// payloads are the types that the emit function takes data in, and how each becomes the bytes that are stored.
var payloads = []struct{ Type, Bytes string }{ //nolint:gochecknoglobals // Immutable.
	{"text", "pg_catalog.convert_to($5, 'UTF8')"},
	{"jsonb", "pg_catalog.convert_to($5::pg_catalog.text, 'UTF8')"},
	{"json", "pg_catalog.convert_to($5::pg_catalog.text, 'UTF8')"},
	{"bytea", "$5"},
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
	fmt.Fprintf(&b, "-- Schema of the outbox %s, version %d.\nbegin;\n\ncreate schema if not exists %s;\n\n%s;\n",
		t, len(scripts), quote(t.orDefault().Schema), t.createMigrations())
	for i, script := range scripts {
		fmt.Fprintf(&b, "\n-- Version %d.\n%s\ninsert into %s (version) values (%d);\n", i+1, script, t.migrations(), i+1)
	}
	fmt.Fprintf(&b, "\n-- Let the relay and the producers in:\n--   %s;\n--   GRANT USAGE ON SCHEMA %s TO <producer>; GRANT INSERT ON %s TO <producer>;\n\ncommit;\n",
		t.Grants("<relay>"), quote(t.orDefault().Schema), t.outbox())
	return b.String(), nil
}

// migrate brings the schema to the latest version. Any number of processes may call it at once: they take
// turns, and all but the first find nothing to do. The log tells who was first.
func (t Table) migrate(ctx context.Context, conn *pgx.Conn, log *slog.Logger) error {
	err := t.check(ctx, conn)
	if !isSchemaError(err) {
		return err
	}
	scripts, err := t.scripts("")
	if err != nil {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", t, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // After a commit it does nothing.

	// CREATE … IF NOT EXISTS races with itself, so the lock comes first and everything else is decided under it.
	var role string
	if err := tx.QueryRow(ctx, `select current_user from pg_advisory_xact_lock($1)`, t.migrateKey()).Scan(&role); err != nil {
		return fmt.Errorf("migrate %s: wait for other migrations: %w", t, err)
	}
	version, err := t.version(ctx, tx)
	if err != nil {
		return err
	}
	if version >= len(scripts) {
		return nil
	}
	if version == 0 {
		exists, err := t.checkShape(ctx, tx)
		if err != nil {
			return err
		}
		if exists {
			return t.unrecorded()
		}
		if err := t.createSchema(ctx, tx, role); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, t.createMigrations()); err != nil {
			return t.explainCreate(role, err)
		}
	}
	if _, err := tx.Exec(ctx, `set local lock_timeout = '`+migrationLockTimeout+`'`); err != nil {
		return fmt.Errorf("migrate %s: %w", t, err)
	}
	for i := version; i < len(scripts); i++ {
		if _, err := tx.Exec(ctx, scripts[i]); err != nil {
			return fmt.Errorf("version %d: %w", i+1, t.explainCreate(role, err))
		}
		if _, err := tx.Exec(ctx, `insert into `+t.migrations()+` (version) values ($1)`, i+1); err != nil {
			return t.explainCreate(role, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return t.explainCreate(role, err)
	}
	if version == 0 {
		log.InfoContext(ctx, "tables created", slog.String("table", t.String()))
	} else {
		log.InfoContext(ctx, "tables upgraded", slog.String("table", t.String()), slog.Int("from", version), slog.Int("to", len(scripts)))
	}
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
