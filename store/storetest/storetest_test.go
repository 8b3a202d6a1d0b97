package storetest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

func TestNewDatabaseIsEmptyAndGoesWithTheTest(t *testing.T) {
	first, second := storetest.NewDatabase(t), storetest.NewDatabase(t)
	if first == second {
		t.Fatalf("two databases, one connection string: %s", first)
	}
	exec(t, first, "create table only_here ()")
	exec(t, second, "create table only_here ()")

	var inner string
	t.Run("a test that leaves a session open", func(t *testing.T) {
		inner = storetest.NewDatabase(t)
		connect(t, inner)
	})
	conn, err := pgx.Connect(t.Context(), inner)
	if err == nil {
		_ = conn.Close(t.Context())
		t.Errorf("%s is still there after its test", inner)
	}
}

func TestNewDatabaseOnTheServerOfTheEnvironment(t *testing.T) {
	server := storetest.Start(t, "fsync=off")
	url := server.DSN()
	keywords := "host=127.0.0.1 user=postgres dbname=postgres sslmode=disable port=" + portOf(t, url)

	for _, dsn := range []string{url, keywords} {
		t.Run(dsn, func(t *testing.T) {
			t.Setenv(storetest.EnvDSN, dsn)
			if got, want := portOf(t, storetest.NewDatabase(t)), portOf(t, url); got != want {
				t.Errorf("the database is on port %s, want %s", got, want)
			}
		})
	}
}

func TestStartTakesSettings(t *testing.T) {
	server := storetest.Start(t, "fsync=off", "max_connections=20")
	conn := connect(t, server.DSN())
	for name, want := range map[string]string{"fsync": "off", "max_connections": "20", "synchronous_commit": "on"} {
		var got string
		if err := conn.QueryRow(t.Context(), "select current_setting($1)", name).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
}

func portOf(t *testing.T, dsn string) string {
	t.Helper()
	var port string
	if err := connect(t, dsn).QueryRow(t.Context(), "select current_setting('port')").Scan(&port); err != nil {
		t.Fatal(err)
	}
	return port
}

func exec(t *testing.T, dsn, sql string) {
	t.Helper()
	if _, err := connect(t, dsn).Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// connect opens a session that nobody closes: dropping the database has to cope.
func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
