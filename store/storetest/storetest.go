package storetest

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

// EnvDSN is the environment variable with the connection string of the server on which [NewDatabase] makes databases.
const EnvDSN = postgres.EnvDSN

// Server is a PostgreSQL server that belongs to a test.
type Server = postgres.Server

// NewDatabase creates an empty database for a test and returns its connection string. Sessions still open when the test
// ends are ended, and the database is dropped. Without a PostgreSQL to do so on, the test fails and says how to get one.
func NewDatabase(tb testing.TB) string {
	tb.Helper()
	dsn, drop, err := host.Database(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	cleanUp(tb, drop)
	return dsn
}

// Start launches a server for a test, and removes it when the test ends. Settings are configuration parameters as
// "name=value", such as "fsync=off". Without PostgreSQL binaries the test fails and says how to get them; it is skipped
// if EnvDSN is set, since then nobody has promised any.
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	server, err := postgres.Launch(tb.Context(), postgres.Options{Settings: settings})
	if errors.Is(err, postgres.ErrNotFound) && os.Getenv(EnvDSN) != "" {
		tb.Skipf("needs a server of its own, which %s is not: %v", EnvDSN, err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	cleanUp(tb, server.Close)
	return server
}

// cleanUp undoes something at the end of the test.
func cleanUp(tb testing.TB, undo func() error) {
	tb.Helper()
	tb.Cleanup(func() {
		if err := undo(); err != nil {
			tb.Error(err)
		}
	})
}

// Main is the body of a TestMain: it runs the tests, then closes the server that they shared.
func Main(m *testing.M) {
	code := m.Run()
	if err := host.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code) //nolint:forbidigo // this is the end of TestMain
}

// host has the databases of all [NewDatabase] calls of this test binary.
var host postgres.Host //nolint:gochecknoglobals // what tests share can only be as wide as the test binary
