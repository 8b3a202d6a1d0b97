//go:build unix

package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

func TestHostLaunchesOneServerForAllItsDatabases(t *testing.T) {
	t.Setenv(postgres.EnvDSN, "")
	var host postgres.Host
	t.Cleanup(func() { _ = host.Close() })
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, _, err := host.Database(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Database for one who gave up: %v, want %v", err, context.Canceled)
	}
	first, drop, err := host.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := host.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first == second || server(first) != server(second) {
		t.Errorf("the databases are %s and %s, want two on one server", first, second)
	}
	if err := drop(); err != nil {
		t.Error(err)
	}
	expectGone(t, first)
	if err := host.Close(); err != nil {
		t.Error(err)
	}
	expectGone(t, second)
	if _, _, err := host.Database(t.Context()); err == nil {
		t.Error("a host that was closed made a database")
	}
}

func TestHostKeepsToTheServerOfTheEnvironment(t *testing.T) {
	t.Setenv(postgres.EnvDSN, "postgres://127.0.0.1:1/postgres?sslmode=disable")
	var host postgres.Host
	if _, _, err := host.Database(t.Context()); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("Database on a server that is not there: %v, want an error that names it", err)
	}
	if err := host.Close(); err != nil {
		t.Errorf("Close of a host that launched nothing: %v", err)
	}
}

// server is what stands before the database's name.
func server(dsn string) string { return dsn[:strings.LastIndex(dsn, "/")] }

func expectGone(t *testing.T, dsn string) {
	t.Helper()
	if conn, err := pgx.Connect(t.Context(), dsn); err == nil {
		_ = conn.Close(t.Context())
		t.Errorf("%s is still there", dsn)
	}
}
