package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

// newRole creates a role of the server that may do everything in the database behind dsn, with a password, and returns the
// DSN with it. Roles are the server's, so it is dropped at the end.
func newRole(t *testing.T, dsn string) (role, roleDSN string) {
	t.Helper()
	const password = "secret"
	role = fmt.Sprintf("conn_%d", time.Now().UnixNano())
	admin := connect(t, dsn)
	var database string
	if err := admin.QueryRow(t.Context(), `select current_database()`).Scan(&database); err != nil {
		t.Fatal(err)
	}
	run := func(ctx context.Context, sql string) {
		t.Helper()
		if _, err := admin.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	run(t.Context(), `create role `+role+` login password '`+password+`'`)
	t.Cleanup(func() { run(context.WithoutCancel(t.Context()), `drop owned by `+role+`; drop role `+role) })
	run(t.Context(), `grant create on database `+pgx.Identifier{database}.Sanitize()+` to `+role)
	run(t.Context(), `grant all on schema public to `+role)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return role, u.String()
}

// hostile is what a role may have been given that ends, slows or reinterprets what we say.
var hostile = map[string]string{ //nolint:gochecknoglobals // Immutable.
	"search_path":                         "''",
	"statement_timeout":                   "1",
	"lock_timeout":                        "1",
	"idle_session_timeout":                "200",
	"idle_in_transaction_session_timeout": "1",
	"exit_on_error":                       "on",
	"default_transaction_isolation":       "serializable",
	"default_transaction_read_only":       "on",
	"default_transaction_deferrable":      "on",
	"client_encoding":                     "LATIN1",
	"standard_conforming_strings":         "off",
	"bytea_output":                        "escape",
	"datestyle":                           "'SQL, DMY'",
	"intervalstyle":                       "iso_8601",
	"timezone":                            "'Asia/Kathmandu'",
	"extra_float_digits":                  "-15",
	"array_nulls":                         "off",
	"transform_null_equals":               "on",
	"quote_all_identifiers":               "on",
	"plan_cache_mode":                     "force_generic_plan",
	"jit":                                 "on",
	"enable_indexscan":                    "off",
	"enable_indexonlyscan":                "off",
	"enable_nestloop":                     "off",
	"enable_hashjoin":                     "off",
	"enable_mergejoin":                    "off",
	"enable_sort":                         "off",
	"tcp_user_timeout":                    "1",
	"application_name":                    "disguised",
}

// Whatever a role or a database has been set to, our statements mean the same on every connection.
func TestSettingsOfRolesAndDatabasesDoNotMatter(t *testing.T) {
	for _, of := range []string{"role", "database"} {
		t.Run(of, func(t *testing.T) {
			role, dsn := newRole(t, storetest.NewDatabase(t))
			admin := connect(t, dsn)
			whose := role
			if of == "database" {
				whose = pgx.Identifier{admin.Config().Database}.Sanitize()
				owner := connect(t, withUser(t, dsn, "postgres"))
				if _, err := owner.Exec(t.Context(), `alter database `+whose+` owner to `+role); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if _, err := owner.Exec(context.WithoutCancel(t.Context()), `alter database `+whose+` owner to postgres`); err != nil {
						t.Error(err)
					}
				})
			}
			var settings strings.Builder
			for name, value := range hostile {
				fmt.Fprintf(&settings, "alter %s %s set %s = %s;", of, whose, name, value)
			}
			if _, err := admin.Exec(t.Context(), settings.String()); err != nil {
				t.Fatal(err)
			}
			outbox := open(t, dsn, store.Options{Retain: time.Hour})
			useAll(t, outbox, func(events ...store.Event) { insertPlainly(t, admin, events...) })
			woken := make(chan struct{}, 100)
			hear(t, outbox, woken)
			await(t, "wake-up of the listener", woken)
			time.Sleep(500 * time.Millisecond) // Longer than the role's idle_session_timeout.
			if _, err := admin.Exec(t.Context(), `notify `+channelOf(t, admin)); err != nil {
				t.Fatal(err)
			}
			await(t, "notification after a while", woken)
		})
	}
}

// The settings are those of all connections.
func TestEveryConnectionIsSetUp(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	owner := newFixtureAt(t, dsn, store.Options{})
	role, roleDSN := newRole(t, dsn)
	for _, setting := range []string{"enable_indexscan = off", "enable_nestloop = off", "enable_partitionwise_join = on", "enable_seqscan = on", "row_security = on"} {
		owner.exec(t, `alter role `+role+` set `+setting)
	}
	outbox := open(t, roleDSN, store.Options{})
	want := map[string]string{
		"search_path": "pg_catalog, pg_temp", "client_encoding": "UTF8", "row_security": "off", "default_transaction_read_only": "off",
		"enable_indexscan": "on", "enable_nestloop": "on", "enable_partitionwise_join": "off", "idle_session_timeout": "0",
	}
	err := outbox.Session().Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		for name, value := range want {
			if got := show(t, ctx, conn, name); got != value {
				t.Errorf("the session's %s is %q, want %q", name, got, value)
			}
		}
		for name, value := range map[string]string{"enable_seqscan": "off", "enable_bitmapscan": "off", "synchronous_commit": "off", "idle_in_transaction_session_timeout": "6s"} {
			if got := show(t, ctx, conn, name); got != value {
				t.Errorf("the session's %s is %q, want %q", name, got, value)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func show(t *testing.T, ctx context.Context, conn *pgx.Conn, name string) (value string) { //nolint:revive // The test goes first, as everywhere.
	t.Helper()
	if err := conn.QueryRow(ctx, `select current_setting($1)`, name).Scan(&value); err != nil {
		t.Error(err)
	}
	return value
}

// A server that says nothing takes its own time, not that of the others.
func TestAFrozenServerLeavesTheOthersTheirTime(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	frozen := serve(t, dsn, func(client net.Conn) error {
		_, err := io.Copy(io.Discard, client)
		return err
	})
	outbox := open(t, several(t, frozen, dsn), store.Options{})
	began := time.Now()
	if err := outbox.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the second server was reached after %v, want after the three seconds of the first", took)
	}
	began = time.Now()
	if err := outbox.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it was reached again after %v, want at once", took)
	}

	nobody := open(t, several(t, frozen, "postgres://postgres@127.0.0.1:1/postgres?sslmode=disable"), store.Options{})
	err := nobody.Check(t.Context())
	first, _ := url.Parse(frozen)
	for _, want := range []string{"cannot reach Postgres: " + first.Host + ": no answer within 3s", "; 127.0.0.1:1: ", "connection refused"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

// several is a DSN with the servers of all of them, and what else the last one says.
func several(t *testing.T, dsns ...string) string {
	t.Helper()
	var hosts []string
	var all *url.URL
	for _, dsn := range dsns {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		hosts, all = append(hosts, u.Host), u
	}
	return strings.Replace(all.String(), all.Host, strings.Join(hosts, ","), 1)
}

// A server that takes no writes is passed over, unless the DSN says otherwise.
func TestAServerThatTakesNoWritesIsPassedOver(t *testing.T) {
	launch := func() *postgres.Server {
		t.Helper()
		server, err := postgres.Launch(t.Context(), postgres.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		return server
	}
	server, standby := launch(), launch()
	if err := errors.Join(server.Stop(postgres.Fast), standby.Stop(postgres.Fast)); err != nil {
		t.Fatal(err)
	}
	// A copy of the server that waits for more of its log is a standby.
	data := func(s *postgres.Server) string { return filepath.Join(filepath.Dir(s.LogFile()), "data") }
	signal := filepath.Join(data(standby), "standby.signal")
	script := `rm -rf "$2" && cp -a "$1" "$2" && touch "$3" && chown --reference="$2/PG_VERSION" "$3"`
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", data(server), data(standby), signal).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := errors.Join(server.Start(t.Context()), standby.Start(t.Context())); err != nil {
		t.Fatal(err)
	}

	outbox := open(t, several(t, standby.DSN(), server.DSN()), store.Options{})
	if err := outbox.Migrate(t.Context()); err != nil {
		t.Errorf("with a standby before the primary: %v", err)
	}
	err := open(t, standby.DSN(), store.Options{}).Check(t.Context())
	if !errors.Is(err, store.ErrStandby) || store.Fatal(err) || !strings.Contains(err.Error(), "name the primary") {
		t.Errorf("with a standby only: got %v, want %v, which passes", err, store.ErrStandby)
	}
	if found, err := open(t, standby.DSN()+"&target_session_attrs=any", store.Options{}).Diagnose(t.Context()); err != nil || !found.Standby {
		t.Errorf("with target_session_attrs=any: got %+v, %v, want the standby", found, err)
	}
	if _, err := open(t, standby.DSN()+"&target_session_attrs=any", store.Options{}).Stand(t.Context(), "S", store.Candidacy{}); !errors.Is(err, store.ErrStandby) {
		t.Errorf("a relay with target_session_attrs=any: got %v, want %v", err, store.ErrStandby)
	}
	t.Setenv("PGTARGETSESSIONATTRS", "any")
	if found, err := open(t, standby.DSN(), store.Options{}).Diagnose(t.Context()); err != nil || !found.Standby {
		t.Errorf("with PGTARGETSESSIONATTRS=any: got %+v, %v, want the standby", found, err)
	}
}

func TestDSNsThatCannotWork(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://h/d?target_session_attrs=standby":        "a relay writes",
		"postgres://h/d?target_session_attrs=read-only":      "a relay writes",
		"postgres://h/d?target_session_attrs=prefer-standby": "a relay writes",
		"postgres://h/d?sslmode=on":                          "parameter sslmode: its value is not accepted, want disable",
		"postgres://h/d?sslMode=require":                     "did you mean sslmode?",
		"postgres://h/d?ssl_mode=require":                    "did you mean sslmode?",
		"postgres://h/d?ssl=1":                               "use sslmode=require",
		"postgres://h/d?pool_max_conns=4":                    "parameter pool_max_conns: it belongs to a connection pool",
		"postgres://h/d?schema=shop":                         "OUTBOX_TABLE=shop.outbox",
		"postgres://h/d?pgbouncer=true":                      "connect to the server itself",
		"postgres://h/d?gssencmode=require":                  "use TLS",
		"postgres://h/d?replication=database":                "parameter replication",
		"postgres://h/d?sslmode=disable&nonsense=1":          "its parameter number 2 is not known",
		"host=h hostaddr=127.0.0.1":                          "give the address as the host",
		"host=h port=99999":                                  "parameter port: its value is not accepted, want 1 to 65535",
		"jdbc:postgresql://h/d":                              "leave out jdbc:",
		"postgres://h:1,i:2,j/d?port=1,2":                    "could not match 2 port numbers to 3 hosts",
		"postgres://u:p@x@h/d":                               "percent-encoded",
		"postgres://h/d?sslrootcert=/none&sslmode=verify-ca": "/none",
		"host=h password=a b":                                "single quotes",
	} {
		if err := store.CheckDSN(dsn); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "nonsense") {
			t.Errorf("%s: got %v, want an error with %q", dsn, err, want)
		}
	}
	for _, dsn := range []string{
		"", "postgres://", "postgres:///d?host=/run", "postgres://%2Frun/d", "postgres://u:p%40w@[::1]:5432,h:1/d?sslmode=disable&connect_timeout=2", "host=h user=u password='it\\'s' dbname=d",
		"postgres://h/d?options=-c%20geqo%3Doff&application_name=x&TimeZone=UTC&search_path=x&keepalives=1&gssencmode=disable&ssl=true&role=r&app.user=me&statement_cache_capacity=0",
		"postgresql://h/d?target_session_attrs=primary&fallback_application_name=x&work_mem=8MB",
	} {
		if err := store.CheckDSN(dsn); err != nil {
			t.Errorf("%s: %v, want none", dsn, err)
		}
	}
}

// Nothing of a malformed DSN is in the error, wherever the secret has got to.
func TestNothingOfADSNIsShown(t *testing.T) {
	const secret = "hunter2"
	for _, template := range []string{
		"%s", "%s@h", "postgres://%s", "postgres://u:%s", "postgres://u:p@%s@h/d", "postgres://u:%s@p@h/d", "postgres://u:1/%s@h/d", "postgres://u:1?%s@h/d", "postgres://u:1#%s@h", "postgres://u:p@h:%s/d",
		"postgres://u:p@h/d/%s", "postgres://u:p@h/d?%s", "postgres://u:p@h/d?%s=1", "postgres://u:p@h/d?a=%s=1", "postgres://u:p@h/d?%s=%s", "postgres://u:%s%%zz@h/d", "postgres://u:p %s@h/d",
		"jdbc:postgresql://h/d?password=%s", "mysql://u:%s@h/d", "host=h password=p %s", "host=h password=p %s=1", "host=h password='%s", "host=h port=%s", "host=h %s = 1", "host=h password=%s port=x",
		"host=h sslmode=%s", "host=h target_session_attrs=%s", "postgres://u:%s@h/d?pool_max_conns=1", "postgres://u:%s@h/d?sslmode=x", "host=h sslcertmode=%s", "host=h connect_timeout=%s", "host=h channel_binding=%s",
		"host=h require_auth=%s", "host=h min_protocol_version=%s", "host=h default_query_exec_mode=%s", "host=h statement_cache_capacity=%s", "host=h service=%s",
	} {
		dsn := strings.NewReplacer("%s", secret, "%%", "%").Replace(template)
		_, err := store.Open(dsn, store.Options{})
		if err == nil {
			if strings.HasPrefix(dsn, "postgres://hunter2") {
				continue // That is a host.
			}
			t.Errorf("%s: it was accepted", dsn)
			continue
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), secret) {
			t.Errorf("%s: it shows the secret: %v", dsn, err)
		}
	}
}

// What a rotation replaces is used by the next connection.
func TestSecretsAreReadAtEachConnection(t *testing.T) {
	server, err := postgres.Launch(t.Context(), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	admin := connect(t, server.DSN())
	run := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	run(`create role app login superuser`)
	hba := filepath.Join(filepath.Dir(server.LogFile()), "data", "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(`select pg_reload_conf()`)
	plain := withUser(t, server.DSN(), "app")
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	withPassword := func(password string) string {
		u, _ := url.Parse(plain)
		u.User = url.UserPassword("app", password)
		return u.String()
	}
	var token string
	for name, test := range map[string]struct {
		set  func(password string)
		open func() (*store.Outbox, error)
	}{
		"password file": {
			func(p string) { write("password", p+"\n") },
			func() (*store.Outbox, error) {
				return store.Open(plain, store.Options{PasswordFile: filepath.Join(dir, "password")})
			},
		},
		"DSN file": {
			func(p string) { write("dsn", withPassword(p)+"\r\n") },
			func() (*store.Outbox, error) {
				return store.Open("", store.Options{DSNFile: filepath.Join(dir, "dsn")})
			},
		},
		"passfile": {
			func(p string) { write("passfile", "*:*:*:app:"+p+"\n") },
			func() (*store.Outbox, error) {
				return store.Open(plain+"&passfile="+url.QueryEscape(filepath.Join(dir, "passfile")), store.Options{})
			},
		},
		"hook": {
			func(p string) { token = p },
			func() (*store.Outbox, error) {
				return store.Open(plain, store.Options{BeforeConnect: func(_ context.Context, c *pgx.ConnConfig) error {
					c.Password = token
					return nil
				}})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(`alter role app password 'first%%secret'`)
			test.set("first%%secret")
			outbox, err := test.open()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := outbox.Diagnose(t.Context()); err != nil {
				t.Errorf("with the first password: %v", err)
			}
			run(`alter role app password 'second secret'`)
			if _, err := outbox.Diagnose(t.Context()); err == nil || !strings.Contains(err.Error(), "refused by Postgres: ") || !strings.Contains(err.Error(), "check the user and the password") || strings.Contains(err.Error(), "first") {
				t.Errorf("with a password that has been replaced: got %v, want the refusal, without the password", err)
			}
			test.set("second secret")
			if _, err := outbox.Diagnose(t.Context()); err != nil {
				t.Errorf("with the second password: %v", err)
			}
		})
	}

	// What the rotation must not do: move the relay.
	write("dsn", plain)
	outbox, err := store.Open("", store.Options{DSNFile: filepath.Join(dir, "dsn")})
	if err != nil {
		t.Fatal(err)
	}
	write("dsn", strings.Replace(plain, "/postgres?", "/other?", 1))
	if err := outbox.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "start the relay anew") {
		t.Errorf("with another database: got %v, want a refusal that says what to do", err)
	}
}

func TestSecretFilesThatCannotWork(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for name, test := range map[string]struct {
		file, want string
	}{
		"missing":       {filepath.Join(dir, "none"), "no such file"},
		"directory":     {dir, "not a regular file"},
		"endless":       {"/dev/zero", "not a regular file"},
		"empty":         {write("empty", "\n"), "is empty"},
		"several lines": {write("lines", "s3cret\nhunter2\n"), "several lines"},
		"too long":      {write("long", strings.Repeat("x", 100_000)), "more than 65536 bytes"},
	} {
		_, byPassword := store.Open("postgres://host/db", store.Options{PasswordFile: test.file})
		_, byDSN := store.Open("", store.Options{DSNFile: test.file})
		for _, err := range []error{byPassword, byDSN} {
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.file) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: got %v, want an error with %q and the file's name", name, err, test.want)
			}
		}
	}
	if _, err := store.Open("postgres://host/db", store.Options{DSNFile: write("dsn", "host=h")}); err == nil || !strings.Contains(err.Error(), "want one of them") {
		t.Errorf("a DSN and its file: got %v, want a refusal", err)
	}
}

// With sslmode=prefer, TLS that is not to be had is no news: the answer without it is.
func TestTheRefusalIsToldWithoutNoise(t *testing.T) {
	dsn := strings.Replace(storetest.NewDatabase(t), "sslmode=disable", "sslmode=prefer", 1)
	err := open(t, withUser(t, dsn, "nobody"), store.Options{}).Check(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "refused by Postgres: 127.0.0.1:") || strings.Contains(err.Error(), "TLS") || strings.Contains(err.Error(), "failed to connect") {
		t.Errorf("got %v, want the refusal of the role only", err)
	}
}

func withUser(t *testing.T, dsn, user string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(user)
	return u.String()
}

// Row-level security that is switched on later is an error that names it, and not silently no rows.
func TestRowSecurityIsAnError(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	owner := newFixtureAt(t, dsn, store.Options{})
	role, roleDSN := newRole(t, dsn)
	owner.exec(t, owner.Table().Grants(role))
	term := begin(t, open(t, roleDSN, store.Options{}), "s")
	if _, err := term.RoundTrip(t.Context(), store.Request{Fetch: page(0)}); err != nil {
		t.Fatal(err)
	}
	owner.insert(t, event("1"))
	owner.exec(t, `alter table outbox enable row level security`)
	_, err := term.RoundTrip(t.Context(), store.Request{Fetch: page(0)})
	if !errors.Is(err, store.ErrRowSecurity) || !strings.Contains(err.Error(), "BYPASSRLS") || strings.Contains(err.Error(), "GRANT") {
		t.Errorf("got %v, want %v and what to do about it", err, store.ErrRowSecurity)
	}
}

// How a DSN asks pgx to send statements does not matter.
func TestQueryModesOfTheDSNDoNotMatter(t *testing.T) {
	for _, mode := range []string{
		"default_query_exec_mode=simple_protocol", "default_query_exec_mode=exec", "default_query_exec_mode=describe_exec", "default_query_exec_mode=cache_describe",
		"statement_cache_capacity=0", "description_cache_capacity=0", "statement_timeout=1", "search_path=nowhere", "TimeZone=Asia/Kathmandu", "client_encoding=LATIN1", "target_session_attrs=any",
	} {
		dsn := storetest.NewDatabase(t)
		outbox := open(t, dsn+"&"+mode, store.Options{})
		if err := outbox.Migrate(t.Context()); err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		insertPlainly(t, connect(t, dsn), event("1"), event("2"))
		response, err := begin(t, outbox, "s").RoundTrip(t.Context(), store.Request{Fetch: page(0)})
		if err != nil || len(response.Rows) != 2 {
			t.Errorf("%s: got %d rows, %v, want 2", mode, len(response.Rows), err)
		}
	}
}

// insertPlainly inserts as anybody may who has the names.
func insertPlainly(t *testing.T, conn *pgx.Conn, events ...store.Event) {
	t.Helper()
	for _, e := range events {
		_, err := conn.Exec(t.Context(), `insert into public.outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('`+e.Topic+`', '`+e.AggregateType+`', '`+e.AggregateID+`', '`+e.EventType+`', 'data')`, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func channelOf(t *testing.T, conn *pgx.Conn) (channel string) {
	t.Helper()
	err := conn.QueryRow(t.Context(), `select substring(prosrc from '(outbox_[0-9a-f]{16})') from pg_catalog.pg_proc where proname = 'outbox_wake'`, pgx.QueryExecModeSimpleProtocol).Scan(&channel)
	if err != nil {
		t.Fatal(err)
	}
	return channel
}

// hear listens until the end of the test.
func hear(t *testing.T, outbox *store.Outbox, woken chan<- struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- outbox.Listen(ctx, func() {
			select {
			case woken <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A listener that is refused says so once, and then that it is over.
func TestAListenerIsRefused(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	owner := newFixtureAt(t, dsn, store.Options{})
	role, roleDSN := newRole(t, dsn)
	owner.exec(t, owner.Table().Grants(role))
	owner.exec(t, `alter role `+role+` connection limit 1`)
	var log syncBuffer
	outbox := open(t, roleDSN, store.Options{Logger: textLogger(&log)})
	begin(t, outbox, "s") // It has the one connection.
	woken := make(chan struct{}, 100)
	hear(t, outbox, woken)
	eventually(t, "the refusal is told", func() bool { return strings.Contains(log.String(), "not listening for new events") })
	time.Sleep(2 * time.Second) // Time in which it could warn again: it tries all the while.
	if got := strings.Count(log.String(), "level=WARN"); got != 1 {
		t.Errorf("got %d warnings in two seconds, want 1:\n%s", got, log.String())
	}
	if !strings.Contains(log.String(), "CONNECTION LIMIT") {
		t.Errorf("it does not say what to do:\n%s", log.String())
	}
	owner.exec(t, `alter role `+role+` connection limit 5`)
	await(t, "wake-up once the listener is there", woken)
	eventually(t, "the end is told", func() bool { return strings.Contains(log.String(), "listening for new events again") })
}

// useAll does everything that an outbox can do, once; insert is a producer.
func useAll(t *testing.T, outbox *store.Outbox, insert func(events ...store.Event)) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	must(outbox.Migrate(ctx))
	must(outbox.Check(ctx))
	term, err := outbox.Begin(ctx, "EVENTS", "me", 0)
	must(err)
	created := time.Now().UTC().Truncate(time.Second)
	_, err = term.PutBack(ctx, nil, store.Checkpoint{Created: created, Sequence: 1, Before: 1})
	must(err)
	roundTrip := func(r store.Request) store.Response {
		t.Helper()
		response, err := term.RoundTrip(ctx, r)
		must(err)
		return response
	}
	everything := func() *store.Fetch { return &store.Fetch{Rows: 1000, Bytes: 1 << 20} }
	insert(event("1"), event("2"), event("3"), event("4"), event("5"))
	rows := roundTrip(store.Request{Sleep: store.FallAsleep, Fetch: everything()}).Rows
	if len(rows) != 5 {
		t.Fatalf("got %d rows, want 5", len(rows))
	}
	insert(event("6")) // It finds the relay asleep.
	seq := func(i int) int64 { return rows[i].Seq }
	ref := func(i int) store.Ref { return store.Ref{Seq: rows[i].Seq, ID: rows[i].ID} }
	roundTrip(store.Request{
		Settled:    []store.Settled{{Seqs: []int64{seq(0)}, After: 1}, {Seqs: []int64{seq(1), seq(1) + 1<<30}, After: 2}},
		Failed:     []store.Failure{{Ref: ref(2), Attempts: 1, Wait: time.Hour, Reason: "refused"}},
		Dead:       []store.Failure{{Ref: ref(3), Attempts: 3, Reason: "refused"}},
		Checkpoint: 2, Sleep: store.WakeUp,
		Fetch: &store.Fetch{Rows: 1000, Bytes: 1 << 20, Held: []int64{seq(4), seq(4) + 1<<30}, Highest: seq(4) + 1<<30, BlockedTypes: []string{"User"}, BlockedIDs: []string{"3"}},
	})
	measured := everything()
	measured.Bytes, measured.Rows = 4, 4 // The payload of each is above its share: it is measured.
	roundTrip(store.Request{Fetch: measured})
	roundTrip(store.Request{Fetch: measured})
	settled, _, err := term.Settle(ctx, []store.Ref{{Seq: seq(4), ID: rows[4].ID}}, 3)
	must(err)
	if settled != 1 {
		t.Errorf("settled %d rows, want 1", settled)
	}
	archived, err := term.Archive(ctx, 0)
	must(err)
	if len(archived) != 3 {
		t.Fatalf("the archive has %d events, want 3", len(archived))
	}
	back, err := term.PutBack(ctx, archived[:1], store.Checkpoint{Created: created.Add(time.Second), Sequence: 1, Before: 1})
	must(err)
	if back != 1 {
		t.Errorf("%d events were put back, want 1", back)
	}
	letters, err := outbox.DeadLetters(ctx, store.DeadFilter{Topic: "users", AggregateType: "User", AggregateID: "4", Limit: 10}, true)
	must(err)
	if len(letters) != 1 {
		t.Fatalf("got %d dead letters, want 1", len(letters))
	}
	_, err = outbox.DeadLetters(ctx, store.DeadFilter{}, false)
	must(err)
	_, err = outbox.DeadLetter(ctx, store.DeadKey{ID: letters[0].ID})
	must(err)
	_, err = outbox.Requeue(ctx, store.DeadKey{Seq: letters[0].Seq})
	must(err)
	roundTrip(store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: letters[0].Seq, ID: letters[0].ID}, Attempts: 3, Reason: "refused"}}})
	_, err = outbox.Discard(ctx, store.DeadKey{ID: letters[0].ID})
	must(err)
	all := store.ReplayFilter{Since: store.Moment{Ago: time.Hour}, Until: store.Moment{Time: time.Now().Add(time.Hour)}, Topic: "users", AggregateType: "User"}
	_, _, err = outbox.Published(ctx, all, 10)
	must(err)
	all.IDs = []uuid.UUID{archived[1].ID}
	_, err = outbox.Replay(ctx, all, true)
	must(err)
	inspection, err := outbox.Inspect(ctx)
	must(err)
	if inspection.Waiting == nil || inspection.Waiting.Rows == 0 {
		t.Errorf("inspection: %+v, want events that wait", inspection)
	}
	diagnosis, err := outbox.Diagnose(ctx)
	must(err)
	if diagnosis.Tables != nil || diagnosis.Trigger != store.TriggerEnabled {
		t.Errorf("diagnosis: %+v, want nothing wrong", diagnosis)
	}
	_, err = outbox.Replay(ctx, store.ReplayFilter{}, false) // It ends the session.
	must(err)
	if _, err := term.RoundTrip(ctx, store.Request{Fetch: everything()}); err == nil {
		t.Error("a round trip without the term's session succeeded")
	}
	next, err := outbox.Begin(ctx, "EVENTS", "me", 0)
	must(err)
	must(next.End(ctx))
	if _, err := next.RoundTrip(ctx, store.Request{Fetch: everything()}); err == nil {
		t.Error("a round trip of an ended term succeeded")
	}
	if next.Number != term.Number+1 {
		t.Errorf("the next term is %d, want %d", next.Number, term.Number+1)
	}
	must(outbox.Close(ctx))
}

// What is shown of a DSN is no secret. Of one that is not well formed nothing is shown.
func TestRedactDSN(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://h:5432/d?sslmode=disable":            "postgres://h:5432/d?sslmode=disable",
		"postgres://u@h/d":                               "postgres://u@h/d",
		"postgres://u:pw@h/d":                            "postgres://u:xxxxx@h/d",
		"postgres://u:@h/d":                              "postgres://u:xxxxx@h/d",
		"postgres:///d?host=/run":                        "postgres:///d?host=/run",
		"postgresql://u:pw@h1:1,h2:2/d":                  "postgresql://u:xxxxx@h1:1,h2:2/d",
		"postgres://u:pw@[::1]:5432/d":                   "postgres://u:xxxxx@[::1]:5432/d",
		"postgres://h/d?user=u&password=pw":              "postgres://h/d?user=u&password=xxxxx",
		"postgres://h/d?pass%77ord=pw&ssl%6Dode=disable": "postgres://h/d?password=xxxxx&sslmode=disable",
		"postgres://h/d?oauth_client_secret=pw":          "postgres://h/d?xxxxx",
		"postgres://h/d?password=p&w=x":                  "postgres://h/d?password=xxxxx&xxxxx",
		"host=h user=u password=pw dbname=d":             "host=h user=u password=xxxxx dbname=d",
		`password='it\'s pw' host=h`:                     "password=xxxxx host=h",
		`password=p\ w host=h`:                           "password=xxxxx host=h",
		"dbname=postgres://u:pw@h/d":                     "dbname=xxxxx",
		"host=h dbname='a host=pw'":                      "host=h dbname=xxxxx",
		"host=h gss_secret=pw":                           "host=h xxxxx",
		"postgres://u:p@w@h/d":                           "xxxxx",
		"postgres://u:12/w@h/d":                          "xxxxx",
		"postgres://u:pw":                                "xxxxx",
		"postgres://u:%zz@h/d":                           "xxxxx",
		"password=p w host=h":                            "xxxxx",
		"password='pw":                                   "xxxxx",
		"jdbc:postgresql://h/d?password=pw":              "xxxxx",
		"pw":                                             "xxxxx",
		"":                                               "",
	} {
		if got := store.RedactDSN(dsn); got != want {
			t.Errorf("RedactDSN(%q) = %q, want %q", dsn, got, want)
		}
	}
}
