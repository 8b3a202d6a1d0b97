package config_test

import (
	"go/build"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

// loadSample loads the sample file as it is shipped, after edit.
func loadSample(t *testing.T, edit func(string) string) config.Config {
	t.Helper()
	data, err := os.ReadFile("relay.toml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := loadFile(edit(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// The sample names no database: whoever starts a relay without saying which one means none that happens to be there.
func TestSampleNamesNoDatabase(t *testing.T) {
	data, err := os.ReadFile("relay.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = loadFile(string(data))
	compare(t, faults(t, err), []string{"config/relay.toml: database_dsn: not set, want a postgres:// URL or a connection string in keyword form (host=... dbname=...) (or set OUTBOX_DATABASE_DSN, or name a file that has it in OUTBOX_DATABASE_DSN_FILE)"})
}

// named is the sample with its example of a DSN.
func named(s string) string { return strings.ReplaceAll(s, "\n#database_dsn =", "\ndatabase_dsn =") }

func TestSampleEqualsTheDefaults(t *testing.T) {
	got := loadSample(t, named)
	want := config.Default()
	want.DatabaseDSN = "postgres://app@localhost:5432/shop"
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The one setting the sample leaves out is written there with its default, too.
func TestSampleWithEverythingSet(t *testing.T) {
	got := loadSample(t, func(s string) string { return strings.ReplaceAll(named(s), "\n#http_addr", "\nhttp_addr") })
	want := config.Default()
	want.DatabaseDSN = got.DatabaseDSN
	want.HTTPAddrSet = true
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEveryFieldIsDocumented(t *testing.T) {
	data, err := os.ReadFile("relay.toml")
	if err != nil {
		t.Fatal(err)
	}
	sample, usage, table := string(data), config.Usage(), markdown()
	seen := make(map[string]bool)
	for _, f := range config.Fields() {
		if f.Key == "" || f.Env == "" || f.Want == "" || f.Doc == "" {
			t.Errorf("field %q lacks a part: %+v", f.Key, f)
		}
		if !strings.HasPrefix(f.Env, "OUTBOX_") {
			t.Errorf("%s is set by %s, want a name that begins with OUTBOX_", f.Key, f.Env)
		}
		if seen[f.Key] || seen[f.Env] {
			t.Errorf("%s or %s names two fields", f.Key, f.Env)
		}
		seen[f.Key], seen[f.Env] = true, true

		name := f.Key[strings.LastIndexByte(f.Key, '.')+1:]
		if !regexp.MustCompile(`(?m)^#?` + name + ` *= `).MatchString(sample) {
			t.Errorf("relay.toml does not set %s", f.Key)
		}
		if !strings.Contains(sample, "["+f.Env+"]") {
			t.Errorf("relay.toml does not name %s", f.Env)
		}
		for name, text := range map[string]string{"usage": usage, "markdown": table} {
			for _, part := range []string{f.Key, f.Env, f.Default, f.Doc} {
				if !strings.Contains(text, part) {
					t.Errorf("the %s does not say %q of %s", name, part, f.Key)
				}
			}
		}
	}
}

// Every field of Config is reached by exactly one setting: what Fields prints
// changes with it, and loads again as the same value.
func TestFieldsCoverTheConfig(t *testing.T) {
	values := map[string]string{
		"OUTBOX_DATABASE_DSN": "host=h", "OUTBOX_DATABASE_DSN_FILE": "dsn", "OUTBOX_DATABASE_PASSWORD_FILE": "file", "OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_URL_FILE": "url", "OUTBOX_ADVISORY_LOCK": "7", "OUTBOX_TABLE": "s.t",
		"OUTBOX_MIGRATE": "false", "OUTBOX_STRICT": "true", "OUTBOX_HTTP_ADDR": "off", "OUTBOX_LOGGING_LEVEL": "warn",
		"OUTBOX_LOGGING_FORMAT": "json", "OUTBOX_NATS_CREDS": "file", "OUTBOX_NATS_NKEY": "file", "OUTBOX_NATS_TLS_CA": "file",
		"OUTBOX_NATS_TLS_CERT": "file", "OUTBOX_NATS_TLS_KEY": "file", "OUTBOX_NATS_LISTEN": ":0", "OUTBOX_NATS_STORE_DIR": "dir",
		"OUTBOX_STREAM": "EVENTS", "OUTBOX_ADOPT_STREAM": "true", "OUTBOX_SUBJECT": "events.{topic}", "OUTBOX_DUPLICATE_WINDOW": "3m", "OUTBOX_STREAM_CREATE": "false",
		"OUTBOX_STREAM_REPLICAS": "3", "OUTBOX_STREAM_MAX_AGE": "1h", "OUTBOX_STREAM_STORAGE": "memory",
		"OUTBOX_NATS_TLS_FIRST": "true", "OUTBOX_NATS_DOMAIN": "hub", "OUTBOX_NATS_INBOX_PREFIX": "_INBOX_relay",
		"OUTBOX_STREAM_MAX_BYTES": "1000000", "OUTBOX_STREAM_COMPRESSION": "s2", "OUTBOX_STREAM_PLACEMENT_TAGS": "ssd, eu",
		"OUTBOX_CLOUDEVENTS_SOURCE": "/shop", "OUTBOX_POLL_INTERVAL": "2s", "OUTBOX_BATCH_SIZE": "2", "OUTBOX_BATCH_BYTES": "65536",
		"OUTBOX_MAX_ATTEMPTS": "2", "OUTBOX_ON_DEAD": "hold", "OUTBOX_RETRY_BACKOFF": "2s", "OUTBOX_RETRY_BACKOFF_MAX": "2m",
		"OUTBOX_RETAIN": "1h", "OUTBOX_DEAD_RETAIN": "1h", "OUTBOX_AUDIT_INTERVAL": "1h", "OUTBOX_ACK_TIMEOUT": "2s", "OUTBOX_SHUTDOWN_TIMEOUT": "2s", "OUTBOX_ELECTION": "none", "OUTBOX_ELECTION_KEY": "shop.1",
	}
	fields := config.Fields()
	for _, changed := range fields {
		t.Run(changed.Key, func(t *testing.T) {
			value, ok := values[changed.Env]
			if !ok {
				t.Fatalf("no value to try %s with", changed.Env)
			}
			env := map[string]string{"OUTBOX_DATABASE_DSN": dsn}
			switch changed.Env {
			case "OUTBOX_NATS_TLS_CERT", "OUTBOX_NATS_TLS_KEY":
				env["OUTBOX_NATS_TLS_CERT"], env["OUTBOX_NATS_TLS_KEY"] = "other", "other"
			case "OUTBOX_DATABASE_DSN_FILE":
				env = map[string]string{"OUTBOX_DATABASE_DSN_FILE": "other dsn"}
			default:
			}
			files := map[string]string{"file": "", "other": "", "dsn": dsn + "\n", "other dsn": dsn, "url": "nats://localhost:4222\n"}
			before, err := config.Load(sources(env, files))
			if err != nil {
				t.Fatal(err)
			}
			env[changed.Env] = value
			after, err := config.Load(sources(env, files))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fields {
				got, want := f.Value(after), f.Value(before)
				if f.Key == changed.Key {
					want = value
				}
				if got != want {
					t.Errorf("with %s=%s, %s is %q, want %q", changed.Env, value, f.Key, got, want)
				}
			}
		})
	}
}

// The package is to be understood by itself: it speaks to nobody, and fills in what package relay takes.
func TestImports(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"github.com/go-outbox/go-outbox/relay",  // For its Config, and for what it refuses.
		"github.com/go-outbox/go-outbox/store",  // For its rules for DSNs and names,
		"github.com/go-outbox/go-outbox/stream", // and for those for URLs, subjects and names.
		"github.com/pelletier/go-toml/v2",       // Not for its package unstable.
	}
	for _, path := range pkg.Imports {
		if strings.Contains(path, ".") && !slices.Contains(allowed, path) {
			t.Errorf("config imports %s", path)
		}
	}
}
