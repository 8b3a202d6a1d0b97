package postgres

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
)

// CreateDatabase creates an empty database with a name of its own on the server that dsn leads to, be it a launched one
// or not, and returns the connection string for it. The role in dsn must be allowed to create databases.
func CreateDatabase(ctx context.Context, dsn string) (string, error) {
	name := "outbox_test_" + strings.ToLower(rand.Text()[:12])
	// Nobody is ever connected to template0, and nobody changes it.
	if err := execute(ctx, dsn, "create database "+pgx.Identifier{name}.Sanitize()+" template template0"); err != nil {
		return "", fmt.Errorf("create database %s: %w", name, err)
	}
	return withDatabase(dsn, name)
}

// DropDatabase drops a database that [CreateDatabase] has made. Sessions that are still open in it are ended. admin is the
// connection string that CreateDatabase was given, dsn the one that it returned.
func DropDatabase(ctx context.Context, admin, dsn string) error {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("drop database: %w", err)
	}
	name := config.Database
	if err := execute(ctx, admin, "drop database if exists "+pgx.Identifier{name}.Sanitize()+" with (force)"); err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

func execute(ctx context.Context, dsn, sql string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql)
	return err
}

// withDatabase returns dsn, a URL or a list of key=value, with another database.
func withDatabase(dsn, name string) (string, error) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		return dsn + " dbname=" + name, nil // of two, the last wins
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return "", fmt.Errorf("connection string: %w", err)
	}
	u.Path, u.RawPath = "/"+name, ""
	return u.String(), nil
}
