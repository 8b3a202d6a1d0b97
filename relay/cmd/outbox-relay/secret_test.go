package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// canary is a secret that must not show.
const canary = "hunter2"

// commands are all that read the DSN.
func commands() []string {
	return []string{"run", "migrate", "status", "status --json", "doctor", "doctor --json", "dead list", "dead list --json", "dead show 1", "dead discard 1", "replay --dry-run --all"}
}

// A DSN that cannot work is a fault of the configuration for every command, and none shows anything of it.
func TestNoCommandShowsAMalformedDSN(t *testing.T) {
	for _, dsn := range []string{
		"jdbc:postgresql://h/d?user=u&password=hunter2", "postgres://u:x@hunter2@h/d", "postgres://u:hunter2@x@h/d", "postgres://u:12/hunter2@h/d", "postgres://u:12?hunter2@h/d",
		"postgres://u:12#hunter2@h/d", "postgres://u:hunter2", "postgres://u:p@h:hunter2/d", "postgres://u:p@h/d?hunter2=x", "postgres://h/d?password=p&hunter2=x", "host=h password=p hunter2",
		"host=h password=p hunter2=x", "host=h password=p hunter2 =x", "host=h password='hunter2", "hunter2", "hunter2@h", "mysql://u:hunter2@h/d", " postgres://u:hunter2@h/d", "postgres://u:hunter2%zz@h/d",
		"postgres://u:hunter2@h/d?pool_max_conns=4", "postgres://u:hunter2@h/d?schema=shop", "postgres://u:hunter2@h/d?sslmode=on", "postgres://u:hunter2@h/d?target_session_attrs=standby",
		"postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/none", "user=u password=hunter2 host=h port=many", "postgres://u:p@h/d?x=hunter2=y", "postgres://u:p@h/d/hunter2",
	} {
		file := filepath.Join(t.TempDir(), "dsn")
		if err := os.WriteFile(file, []byte(dsn), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, env := range []environment{{"OUTBOX_DATABASE_DSN": dsn}, {"OUTBOX_DATABASE_DSN_FILE": file}} {
			for _, command := range commands() {
				got := execute(t, env, strings.Fields(command)...)
				want := exitUsage
				if strings.HasPrefix(command, "doctor") {
					want = exitFailure
				}
				if got.code != want || strings.Contains(got.stdout+got.stderr, canary) {
					t.Errorf("%s with %v: exit code %d, want %d and nothing of the secret:\n%s%s", command, env, got.code, want, got.stdout, got.stderr)
				}
				if !strings.Contains(got.stdout+got.stderr, "OUTBOX_DATABASE_DSN") {
					t.Errorf("%s with %v does not name the setting:\n%s%s", command, env, got.stdout, got.stderr)
				}
			}
		}
	}
}

// One that could work is not shown either, while it does not.
func TestNoCommandShowsThePassword(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	const dsn = "postgres://app:hunter2@127.0.0.1:1/shop?sslmode=disable"
	for name, env := range map[string]environment{
		"URL":           {"OUTBOX_DATABASE_DSN": dsn},
		"parameter":     {"OUTBOX_DATABASE_DSN": "postgres://127.0.0.1:1/shop?user=app&password=hunter2&sslpassword=hunter2"},
		"keywords":      {"OUTBOX_DATABASE_DSN": `host=127.0.0.1 port=1 user=app password='it\'s hunter2'`},
		"DSN file":      {"OUTBOX_DATABASE_DSN_FILE": file("dsn", dsn+"\n")},
		"password file": {"OUTBOX_DATABASE_DSN": "postgres://app@127.0.0.1:1/shop?sslmode=disable", "OUTBOX_DATABASE_PASSWORD_FILE": file("password", canary)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, command := range commands()[1:] {
				got := execute(t, env, strings.Fields(command)...)
				if got.code != exitFailure || strings.Contains(got.stdout+got.stderr, canary) || !strings.Contains(got.stdout+got.stderr, "cannot reach Postgres") {
					t.Errorf("%s: exit code %d, want %d, the reason, and nothing of the secret:\n%s%s", command, got.code, exitFailure, got.stdout, got.stderr)
				}
			}
			env["OUTBOX_NATS_URL"] = "nats://127.0.0.1:1"
			relay := start(t, env)
			base := relay.base()
			eventually(t, "the page tells of Postgres", func() bool { return strings.Contains(get(t, base+"/readyz").body, "cannot reach Postgres") })
			for _, page := range []string{"/readyz", "/healthz", "/metrics"} {
				if got := get(t, base+page); strings.Contains(got.body, canary) {
					t.Errorf("%s shows the secret:\n%s", page, got.body)
				}
			}
			if get(t, base+"/readyz").code != http.StatusServiceUnavailable {
				t.Error("it is ready without Postgres")
			}
			relay.stop()
			relay.wait()
			if strings.Contains(relay.stderr.String(), canary) {
				t.Errorf("the log shows the secret:\n%s", relay.stderr)
			}
		})
	}
}

// What only the server can know to be wrong with the DSN is a fault of the configuration all the same.
func TestASettingThatTheServerRefusesIsAWrongConfiguration(t *testing.T) {
	got := execute(t, environment{"OUTBOX_DATABASE_DSN": storetest.NewDatabase(t) + "&options=-c%20shop%3D1"}, "run")
	expectCode(t, got, exitUsage)
	expectText(t, "standard error", got.stderr, "refused by Postgres: ", `"shop"`, "take the setting out of the DSN")
}

// The broker's URL, password and all, may be in a file, and the password may be replaced while the relay runs. No command and
// no page shows it.
func TestNATSURLFile(t *testing.T) {
	password := canary + "1"
	broker := streamtest.Start(t, func(o *server.Options) { o.Users = []*server.User{{Username: "relay", Password: password}} })
	file := filepath.Join(t.TempDir(), "nats_url")
	write := func() {
		t.Helper()
		text := strings.Replace(broker.URL(), "://", "://relay:"+password+"@", 1) + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	dsn := storetest.NewDatabase(t)
	for _, elector := range []string{"postgres", "jetstream"} {
		env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL_FILE": file, "OUTBOX_ELECTION": elector}
		relay := start(t, env)
		relay.logged("leading")
		stored := func() bool { return number(t, dsn, `select count(*) from outbox`) == 0 }
		insert(t, dsn, "users", "User", "1", "UserCreated", "x")
		eventually(t, "the first event is stored", stored)

		password += "2"
		write()
		broker.Restart()
		insert(t, dsn, "users", "User", "1", "UserCreated", "x")
		eventually(t, "the event after the password's replacement is stored", stored)
		eventually(t, "doctor is content", func() bool { return execute(t, env, "doctor").code == 0 })
		for _, command := range []string{"doctor", "doctor --json", "status", "version"} {
			got := execute(t, env, strings.Fields(command)...)
			expectCode(t, got, 0)
			if strings.Contains(got.stdout+got.stderr, canary) {
				t.Errorf("%s shows the secret:\n%s%s", command, got.stdout, got.stderr)
			}
		}

		broker.Stop()
		base := relay.base()
		eventually(t, "the page tells of NATS", func() bool { return strings.Contains(get(t, base+"/readyz").body, "NATS at nats://xxxxx@127.0.0.1") })
		for _, page := range []string{"/readyz", "/healthz", "/metrics"} {
			if got := get(t, base+page); strings.Contains(got.body, canary) {
				t.Errorf("%s shows the secret:\n%s", page, got.body)
			}
		}
		relay.stop()
		relay.wait()
		if strings.Contains(relay.stderr.String(), canary) {
			t.Errorf("the log shows the secret:\n%s", relay.stderr)
		}
		broker.Restart()
	}
}
