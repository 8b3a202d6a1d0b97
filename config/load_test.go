package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay"
)

// dsn is a connection string that passes.
const dsn = "postgres://app:s3cr3t@db:5432/shop?sslmode=disable"

// sources is an environment and a file system of its own, so that nothing of
// the machine a test runs on shows through.
func sources(env, files map[string]string) config.Sources {
	return config.Sources{
		LookupEnv: func(name string) (string, bool) {
			value, ok := env[name]
			return value, ok
		},
		Environ: func() []string {
			var list []string
			for name, value := range env {
				list = append(list, name+"="+value)
			}
			return list
		},
		ReadFile: func(name string) ([]byte, error) {
			data, ok := files[name]
			if !ok {
				return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
			}
			return []byte(data), nil
		},
	}
}

// loadFile loads a configuration from a file alone.
func loadFile(text string) (config.Config, error) {
	return config.Load(sources(nil, map[string]string{config.DefaultPath: text}))
}

// faults returns the lines of a fault list, without its headline.
func faults(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	list, ok := errors.AsType[config.Errors](err)
	if !ok {
		t.Fatalf("error is a %T, want config.Errors: %v", err, err)
	}
	var lines []string
	for _, fault := range list {
		if fault.Place == "" || fault.Problem == "" {
			t.Errorf("fault %#v has no place or no problem", fault)
		}
		lines = append(lines, fault.Error())
	}
	return lines
}

// compare compares two lists of faults line by line.
func compare(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("fault %d:\n got %s\nwant %s", i+1, g, w)
		}
	}
}

// The predecessor's sample has the logging keys below the header of [relay].
func TestPredecessorsFile(t *testing.T) {
	got, err := loadFile(`
database_dsn = "postgres://admin:admin123456@localhost:5432/outbox?sslmode=disable"
nats_url = "nats://localhost:4222"
advisory_lock = 42
[relay]
poll_interval = "3000ms"
batch_size = 100
max_attempts = 3
logging_level = "debug"
logging_format = "text"
`)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.DatabaseDSN = "postgres://admin:admin123456@localhost:5432/outbox?sslmode=disable"
	want.Relay.PollInterval = 3 * time.Second
	want.Relay.BatchSize = 100
	want.Logging.Level = slog.LevelDebug
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestPrecedence(t *testing.T) {
	const file = `
database_dsn = "` + dsn + `"
relay.batch_size = 10
relay.max_attempts = 11
`
	tests := []struct {
		name                string
		env                 map[string]string
		files               map[string]string
		batchSize, attempts int
		httpAddr            string
		httpAddrSet         bool
	}{
		{
			name:      "defaults",
			env:       map[string]string{"OUTBOX_DATABASE_DSN": dsn},
			batchSize: 1000, attempts: 3, httpAddr: "127.0.0.1:8080",
		},
		{
			name:      "file over defaults",
			files:     map[string]string{config.DefaultPath: file},
			batchSize: 10, attempts: 11, httpAddr: "127.0.0.1:8080",
		},
		{
			name:      "environment over file",
			env:       map[string]string{"OUTBOX_BATCH_SIZE": "20"},
			files:     map[string]string{config.DefaultPath: file},
			batchSize: 20, attempts: 11, httpAddr: "127.0.0.1:8080",
		},
		{
			name:      "an empty variable is not set",
			env:       map[string]string{"OUTBOX_BATCH_SIZE": "", "OUTBOX_NO_SUCH": "", "CONFIG_PATH": ""},
			files:     map[string]string{config.DefaultPath: file},
			batchSize: 10, attempts: 11, httpAddr: "127.0.0.1:8080",
		},
		{
			name:      "a named file instead of the default one",
			env:       map[string]string{"CONFIG_PATH": "other.toml"},
			files:     map[string]string{config.DefaultPath: "broken", "other.toml": file},
			batchSize: 10, attempts: 11, httpAddr: "127.0.0.1:8080",
		},
		{
			name:      "the default address, asked for",
			env:       map[string]string{"OUTBOX_HTTP_ADDR": "127.0.0.1:8080"},
			files:     map[string]string{config.DefaultPath: file},
			batchSize: 10, attempts: 11, httpAddr: "127.0.0.1:8080", httpAddrSet: true,
		},
		{
			name:      "an address in the file",
			files:     map[string]string{config.DefaultPath: `http_addr = ":0"` + file},
			batchSize: 10, attempts: 11, httpAddr: ":0", httpAddrSet: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config.Load(sources(tt.env, tt.files))
			if err != nil {
				t.Fatal(err)
			}
			want := config.Default()
			want.DatabaseDSN = dsn
			want.Relay.BatchSize = tt.batchSize
			want.Relay.MaxAttempts = tt.attempts
			want.HTTPAddr = tt.httpAddr
			want.HTTPAddrSet = tt.httpAddrSet
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	tests := []struct {
		name  string
		env   map[string]string
		file  string
		files map[string]string
		want  []string
	}{
		{
			name: "nothing set",
			want: []string{
				"environment: OUTBOX_DATABASE_DSN: not set, want a postgres:// URL or a connection string in keyword form (host=... dbname=...) (or name a file that has it in OUTBOX_DATABASE_DSN_FILE)",
			},
		},
		{
			name: "the required setting is missing in a file",
			file: `migrate = false`,
			want: []string{
				"config/relay.toml: database_dsn: not set, want a postgres:// URL or a connection string in keyword form (host=... dbname=...) (or set OUTBOX_DATABASE_DSN, or name a file that has it in OUTBOX_DATABASE_DSN_FILE)",
			},
		},
		{
			name: "all at once, in the order of the file, then the environment",
			file: `database_dsn = "` + dsn + `"
advisory_lock = "42"
batchsize = 1

[relay]
  batch_size = 0
poll_interval = 1000
ack_timeout = "5 parsecs"
max_attempts = 3.0
`,
			env: map[string]string{"OUTBOX_BATCH_BYTES": "-1", "OUTBOX_MIGRATE": "perhaps", "OUTBOX_ON_DEED": "hold"},
			want: []string{
				`config/relay.toml:2:1: advisory_lock: got "42", want an integer of 64 bits`,
				`config/relay.toml:3:1: batchsize: unknown key (did you mean relay.batch_size?)`,
				`config/relay.toml:6:3: relay.batch_size: got 0, want an integer from 1 to 100000`,
				`config/relay.toml:7:1: relay.poll_interval: got 1000, want a duration from 10ms to 1h (give a unit, for example "1000ms")`,
				`config/relay.toml:8:1: relay.ack_timeout: got "5 parsecs", want a duration from 100ms to 1m`,
				`config/relay.toml:9:1: relay.max_attempts: got the float 3, want an integer from 1 to 1000`,
				`environment: OUTBOX_MIGRATE: got "perhaps", want true or false`,
				`environment: OUTBOX_BATCH_BYTES: got "-1", want an integer from 65536 to 1073741824`,
				`environment: OUTBOX_ON_DEED: unknown variable (did you mean OUTBOX_ON_DEAD?)`,
			},
		},
		{
			name: "a variable without a unit",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_ACK_TIMEOUT": "1000"},
			want: []string{`environment: OUTBOX_ACK_TIMEOUT: got "1000", want a duration from 100ms to 1m (give a unit, for example "1000ms")`},
		},
		{
			name: "the wrong file value is reported though the environment overrides it",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_TABLE": "events"},
			file: `table = ""`,
			want: []string{`config/relay.toml:1:1: table: table "": want "table" or "schema.table"`},
		},
		{
			name: "every type where another is wanted",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn},
			file: `nats_url = 4222
advisory_lock = [1]
migrate = "yes"
strict = 2026-01-02
stream = { name = "OUTBOX" }
subject = true
relay = "fast"
`,
			want: []string{
				`config/relay.toml:1:1: nats_url: got 4222, want comma separated URLs of the schemes nats, tls, ws or wss, or "embedded"`,
				`config/relay.toml:2:1: advisory_lock: got an array, want an integer of 64 bits`,
				`config/relay.toml:3:1: migrate: got "yes", want true or false`,
				`config/relay.toml:4:1: strict: got a date or time, want true or false`,
				`config/relay.toml:5:1: [stream]: unknown table, want [relay] or [election] (stream is a key, not a table)`,
				`config/relay.toml:6:1: subject: got true, want a subject without spaces, of words and at least one of the placeholders {topic}, {aggregate_type}, {aggregate_id}, {event_type}`,
				`config/relay.toml:7:1: relay: not a table, want [relay]`,
			},
		},
		{
			name: "keys in the wrong place",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn},
			file: `poll_interval = "1s"
"relay.batch_size" = 1
nonsense = 1
[relay]
advisory_lock = 1
kind = "none"
nats_ulr = "nats://x"
`,
			want: []string{
				`config/relay.toml:1:1: poll_interval: unknown key (it belongs in the table [relay])`,
				`config/relay.toml:2:1: "relay.batch_size": unknown key (did you mean relay.batch_size?)`,
				`config/relay.toml:3:1: nonsense: unknown key`,
				`config/relay.toml:5:1: relay.advisory_lock: unknown key (it belongs at the top of the file, above the first table)`,
				`config/relay.toml:6:1: relay.kind: unknown key (it belongs in the table [election])`,
				`config/relay.toml:7:1: relay.nats_ulr: unknown key (did you mean nats_url?)`,
			},
		},
		{
			name: "tables that do not exist are one fault each",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn},
			file: `[relai]
batch_size = 0
max_attempts = 0
[stream]
name = "X"
[[election]]
kind = "postgres"
[relay]
batch_size = 0
`,
			want: []string{
				`config/relay.toml:1:2: [relai]: unknown table, want [relay] or [election] (did you mean [relay]?)`,
				`config/relay.toml:4:2: [stream]: unknown table, want [relay] or [election] (stream is a key, not a table)`,
				`config/relay.toml:6:3: election: not a table, want [election]`,
				`config/relay.toml:9:1: relay.batch_size: got 0, want an integer from 1 to 100000`,
			},
		},
		{
			name: "logging set differently in both places",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn},
			file: `logging_level = "info"
logging_format = "json"
[relay]
logging_level = "debug"
logging_format = "json"
`,
			want: []string{`config/relay.toml:4:1: relay.logging_level: got "debug" (logging_level at config/relay.toml:1:1 says "info"; set it once)`},
		},
		{
			name: "not TOML: the environment is checked all the same",
			env:  map[string]string{"OUTBOX_BATCH_SIZE": "many"},
			file: "migrate = true\nstrict = maybe\n",
			want: []string{
				`config/relay.toml:2:10: toml: unexpected character U+006D 'm' at start of value`,
				`environment: OUTBOX_BATCH_SIZE: got "many", want an integer from 1 to 100000`,
			},
		},
		{
			name: "a named file that does not exist",
			env:  map[string]string{"CONFIG_PATH": "/etc/relay.toml"},
			want: []string{`environment: CONFIG_PATH: got "/etc/relay.toml", want the path of a readable file (file does not exist)`},
		},
		{
			name: "names cut short in the file",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn},
			file: "log_level = \"debug\"\n",
			want: []string{`config/relay.toml:1:1: log_level: unknown key (did you mean logging_level?)`},
		},
		{
			name: "names guessed from the file's keys",
			env: map[string]string{
				"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_RELAY_BATCH_SIZE": "1",
				"OUTBOX_ELECTION_KIND": "none", "OUTBOX_COLOUR": "red", "OUTBOX_LOG_LEVEL": "debug", "OUTBOX_LOG_FMT": "json",
				"OUTBOX_DSN": dsn, "OUTBOX_CREDS": "x", "OUTBOX_TLS": "1", "OUTBOX_": "1", "OUTBOX_STORE": "x",
			},
			want: []string{
				`environment: OUTBOX_: unknown variable`,
				`environment: OUTBOX_COLOUR: unknown variable`,
				`environment: OUTBOX_CREDS: unknown variable (did you mean OUTBOX_NATS_CREDS?)`,
				`environment: OUTBOX_DSN: unknown variable (did you mean OUTBOX_DATABASE_DSN?)`,
				`environment: OUTBOX_ELECTION_KIND: unknown variable (did you mean OUTBOX_ELECTION?)`,
				`environment: OUTBOX_LOG_FMT: unknown variable`,
				`environment: OUTBOX_LOG_LEVEL: unknown variable (did you mean OUTBOX_LOGGING_LEVEL?)`,
				`environment: OUTBOX_RELAY_BATCH_SIZE: unknown variable (did you mean OUTBOX_BATCH_SIZE?)`,
				`environment: OUTBOX_STORE: unknown variable (did you mean OUTBOX_NATS_STORE_DIR?)`,
				`environment: OUTBOX_TLS: unknown variable`,
			},
		},
		{
			name: "durations in the wrong order",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_STREAM_MAX_AGE": "1m"},
			file: "[relay]\nretry_backoff = \"5m\"\n",
			want: []string{
				`environment: OUTBOX_STREAM_MAX_AGE: DuplicateWindow: 10m0s exceeds MaxAge, 1m0s: what is gone is not recognised`,
				`config/relay.toml:2:1: relay.retry_backoff: relay option RetryBackoffMax is 1m0s, it must not be below RetryBackoff, 5m0s`,
			},
		},
		{
			name: "durations in the wrong order, both set",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_RETRY_BACKOFF_MAX": "1s"},
			file: "[relay]\nretry_backoff = \"2s\"\n",
			want: []string{
				`environment: OUTBOX_RETRY_BACKOFF_MAX: relay option RetryBackoffMax is 1s, it must not be below RetryBackoff, 2s (see also relay.retry_backoff (config/relay.toml:2:1))`,
			},
		},
		{
			name: "what is wrong for itself is not compared, and the rest is",
			env: map[string]string{
				"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_RETRY_BACKOFF": "500", "OUTBOX_RETRY_BACKOFF_MAX": "800ms",
				"OUTBOX_STREAM_MAX_AGE": "1m", "OUTBOX_DUPLICATE_WINDOW": "2m",
			},
			want: []string{
				`environment: OUTBOX_RETRY_BACKOFF: got "500", want a duration from 1ms to 1h (give a unit, for example "1000ms")`,
				`environment: OUTBOX_STREAM_MAX_AGE: DuplicateWindow: 2m0s exceeds MaxAge, 1m0s: what is gone is not recognised (see also OUTBOX_DUPLICATE_WINDOW (environment))`,
			},
		},
		{
			name: "nothing is compared with what is wrong for itself",
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_RETRY_BACKOFF": "10h", "OUTBOX_RETRY_BACKOFF_MAX": "1ms"},
			want: []string{`environment: OUTBOX_RETRY_BACKOFF: got "10h", want a duration from 1ms to 1h`},
		},
		{
			name: "files that are missing, lonely or too many",
			env: map[string]string{
				"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_TLS_CA": "ca.pem", "OUTBOX_NATS_TLS_KEY": "key.pem",
				"OUTBOX_NATS_CREDS": "app.creds",
			},
			file:  `nats_nkey = "seed.nk"`,
			files: map[string]string{"key.pem": "", "app.creds": "", "seed.nk": ""},
			want: []string{
				`environment: OUTBOX_NATS_TLS_CA: got "ca.pem", want the path of a readable file (file does not exist)`,
				`config/relay.toml:1:1: nats_nkey: a credentials file and an NKey file were given: want one of them (see also OUTBOX_NATS_CREDS (environment))`,
				`environment: OUTBOX_NATS_TLS_KEY: TLS certificate and key: one was given without the other`,
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := maps.Clone(tt.files)
			if files == nil {
				files = make(map[string]string)
			}
			if tt.file != "" {
				files[config.DefaultPath] = tt.file
			}
			got, err := config.Load(sources(tt.env, files))
			if err == nil {
				t.Fatalf("got %+v, want faults", got)
			}
			compare(t, faults(t, err), tt.want)
			if got != (config.Config{}) {
				t.Errorf("with the faults came %+v, want the zero Config", got)
			}
		})
	}
}

func TestFaultOfUnreadableFile(t *testing.T) {
	src := sources(nil, nil)
	src.ReadFile = func(name string) ([]byte, error) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	_, err := config.Load(src)
	compare(t, faults(t, err), []string{"config/relay.toml: cannot be read: permission denied"})
}

func TestDuplicateKeyHasAPlace(t *testing.T) {
	_, err := loadFile("migrate = true\nstrict = true\nmigrate = true\n")
	compare(t, faults(t, err), []string{"config/relay.toml:3:1: toml: key migrate is already defined"})
}

// The same tables written in TOML's other ways.
func TestNotations(t *testing.T) {
	for _, text := range []string{
		"relay.batch_size = 7\nelection.kind = \"none\"",
		"relay = { batch_size = 7 }\nelection = { kind = \"none\" }",
		"[relay]\nbatch_size = 0x7\n[election]\nkind = 'none'",
		"[\"relay\"]\n\"batch_size\" = 7\n[ election ]\nkind = \"\"\"none\"\"\"",
	} {
		t.Run(text, func(t *testing.T) {
			got, err := loadFile("database_dsn = \"" + dsn + "\"\n" + text)
			if err != nil {
				t.Fatal(err)
			}
			if got.Relay.BatchSize != 7 || got.Election.Kind != relay.ElectionNone {
				t.Errorf("got batch size %d and election %q, want 7 and none", got.Relay.BatchSize, got.Election.Kind)
			}
		})
	}
}

// Kubernetes sets variables for the services of a namespace, and the service
// of an outbox relay will have a name like it.
func TestServiceVariablesAreNotOurs(t *testing.T) {
	env := map[string]string{
		"OUTBOX_DATABASE_DSN":                dsn,
		"OUTBOX_SERVICE_HOST":                "10.0.0.1",
		"OUTBOX_SERVICE_PORT":                "8080",
		"OUTBOX_PORT":                        "tcp://10.0.0.1:8080",
		"OUTBOX_RELAY_SERVICE_HOST":          "10.0.0.1",
		"OUTBOX_RELAY_SERVICE_PORT":          "8080",
		"OUTBOX_RELAY_SERVICE_PORT_METRICS":  "8080",
		"OUTBOX_RELAY_PORT":                  "tcp://10.0.0.1:8080",
		"OUTBOX_RELAY_PORT_8080_TCP":         "tcp://10.0.0.1:8080",
		"OUTBOX_RELAY_PORT_8080_TCP_PROTO":   "tcp",
		"OUTBOX_RELAY_PORT_8080_TCP_PORT":    "8080",
		"OUTBOX_RELAY_PORT_8080_TCP_ADDR":    "10.0.0.1",
		"SOMEBODY_ELSES_OUTBOX_DATABASE_DSN": "x",
	}
	if _, err := config.Load(sources(env, nil)); err != nil {
		t.Error(err)
	}
	env["OUTBOX_PORT"] = "8080"
	_, err := config.Load(sources(env, nil))
	compare(t, faults(t, err), []string{"environment: OUTBOX_PORT: unknown variable"})
}

func TestZeroSourcesAreTheProcess(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv(config.PathEnv, "")
	t.Setenv("OUTBOX_DATABASE_DSN", dsn)
	t.Setenv("OUTBOX_NATS_URL", "embedded")
	cfg, err := config.Load(config.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.DatabaseDSN != dsn || !cfg.NATS.Embedded() {
		t.Errorf("got %+v, want the DSN %s and the embedded server", cfg, dsn)
	}
	if config.Default().NATS.Embedded() {
		t.Error("the default is the embedded server, want one of its own")
	}
}

func TestUnknownVariablesNeedAList(t *testing.T) {
	src := sources(map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_COLOUR": "red"}, nil)
	src.Environ = nil
	if _, err := config.Load(src); err != nil {
		t.Error(err)
	}
}

// Every form of value, at its limits and just beyond them, through the
// environment.
func TestAcceptedValues(t *testing.T) {
	long := strings.Repeat("x", 300)
	tests := []struct {
		env     string
		accept  []string
		refuse  []string
		printed map[string]string // if not as accepted
	}{
		{
			env:    "OUTBOX_ADVISORY_LOCK",
			accept: []string{"0", "-1", "9223372036854775807", "-9223372036854775808"},
			refuse: []string{"9223372036854775808", "1.5", "1_000", "0x10", " 1"},
		},
		{
			env:     "OUTBOX_TABLE",
			accept:  []string{"outbox", "events.outbox", "Weird Name", long[:48], long[:63] + "." + long[:48]},
			refuse:  []string{".", "a.", ".b", "a.b.c", " outbox", "out\x00box", "out\nbox", "\xff", long[:49], long[:64] + ".t"},
			printed: map[string]string{"public.outbox": "outbox"},
		},
		{
			env:     "OUTBOX_STRICT",
			accept:  []string{"true", "false"},
			refuse:  []string{"yes", "on", " true"},
			printed: map[string]string{"1": "true", "0": "false", "TRUE": "true"},
		},
		{
			env:    "OUTBOX_HTTP_ADDR",
			accept: []string{"off", ":0", ":8080", "0.0.0.0:65535", "[::1]:80", "localhost:0"},
			refuse: []string{"8080", "localhost", "localhost:http", "localhost:65536", "localhost:-1", "::1:80", "http://localhost:80", "a b:1", "OFF"},
		},
		{
			env:    "OUTBOX_NATS_LISTEN",
			accept: []string{":0", "127.0.0.1:4222"},
			refuse: []string{"off", "4222"},
		},
		{
			env:     "OUTBOX_LOGGING_LEVEL",
			accept:  []string{"debug", "info", "warn", "error"},
			refuse:  []string{"warning", "trace", "info+1", "4"},
			printed: map[string]string{"DEBUG": "debug", "Warn": "warn"},
		},
		{
			env:    "OUTBOX_LOGGING_FORMAT",
			accept: []string{"text", "json"},
			refuse: []string{"xml", "JSON"},
		},
		{
			env: "OUTBOX_NATS_URL",
			accept: []string{
				"embedded", "nats://localhost", "tls://a:1,nats://b:65535", "ws://a:80,wss://b/path", "nats://[::1]:4222",
			},
			refuse: []string{
				"localhost:4222", "http://localhost", "nats://", "nats://:4222", "nats://a:0", "nats://a:65536", "nats://a:x",
				"nats://a,", "nats://a,embedded", "nats://a,ws://b", "nats://a b", "nats://a/%zz", "nats:a",
			},
			printed: map[string]string{
				"nats://a:1, nats://b:2":          "nats://a:1, nats://b:2",
				"nats://me:pw@a:1,nats://tok@b:2": "nats://xxxxx@a:1,nats://xxxxx@b:2",
			},
		},
		{
			env:    "OUTBOX_NATS_STORE_DIR",
			accept: []string{"data", "/var/lib/nats streams"},
			refuse: []string{"a\x00b"},
		},
		{
			env: "OUTBOX_DATABASE_DSN",
			accept: []string{
				"postgres://localhost/shop", "postgresql://h1:5432,h2:5433/shop?target_session_attrs=read-write",
				"host=localhost dbname=shop", "host=/var/run/postgresql dbname=shop",
			},
			refuse: []string{
				"localhost", "mysql://localhost/shop?x=1", "Postgres://localhost/shop", "postgres://h:port/shop", "postgres://h/shop?sslmode=sometimes",
				"host=localhost dbname='shop", "host=localhost port=99999", "postgres://h/%zz", "host=a\x00b",
			},
			printed: map[string]string{
				"host=h password=pw dbname=d":  "host=h password=xxxxx dbname=d",
				"postgres://u:p%40ss@h:5432/d": "postgres://u:xxxxx@h:5432/d",
				"dbname='my shop'":             "dbname=xxxxx", // It has a blank, so nobody could tell where it ends.
			},
		},
		{
			env:    "OUTBOX_STREAM",
			accept: []string{"OUTBOX", "orders-1_x", long[:255]},
			refuse: []string{"a b", "a.b", "*", "a>", "a/b", `a\b`, "a\tb", long[:256]},
		},
		{
			env:    "OUTBOX_SUBJECT",
			accept: []string{"outbox.{topic}", "o.{topic}.{aggregate_type}.{aggregate_id}.{event_type}"},
			refuse: []string{"events", "outbox.a{topic}", "a b", ".a", "a.", "a..b", "{colour}", "{", "}", "{topic", "topic}", "{{topic}}", "{Topic}", "{}"},
		},
		{
			env:     "OUTBOX_DUPLICATE_WINDOW",
			accept:  []string{"100ms", "2m", "87600h"},
			refuse:  []string{"99ms", "0", "0s", "-1m", "87601h", "10", "10 m", "10d"},
			printed: map[string]string{"90m": "1h30m", "120s": "2m", "60m": "1h", "1h0m1s": "1h0m1s", "1500ms": "1.5s"},
		},
		{
			env:     "OUTBOX_STREAM_MAX_AGE",
			accept:  []string{"0s", "10m", "876000h"},
			refuse:  []string{"-1s", "9m", "876001h"},
			printed: map[string]string{"0": "0s"},
		},
		{env: "OUTBOX_STREAM_REPLICAS", accept: []string{"1", "5"}, refuse: []string{"0", "6"}},
		{env: "OUTBOX_STREAM_STORAGE", accept: []string{"file", "memory"}, refuse: []string{"disk"}},
		{
			env:    "OUTBOX_CLOUDEVENTS_SOURCE",
			accept: []string{"/shop/orders", "https://shop.example/orders", "urn:shop:orders"},
			refuse: []string{"a b", "%zz", ":", "a\nb"},
		},
		{env: "OUTBOX_POLL_INTERVAL", accept: []string{"10ms", "1h"}, refuse: []string{"9ms", "1h1s", "1000"}},
		{env: "OUTBOX_BATCH_SIZE", accept: []string{"1", "100000"}, refuse: []string{"0", "-1", "100001", "1e3"}},
		{env: "OUTBOX_BATCH_BYTES", accept: []string{"65536", "1073741824"}, refuse: []string{"65535", "1073741825", "8MiB"}},
		{env: "OUTBOX_MAX_ATTEMPTS", accept: []string{"1", "1000"}, refuse: []string{"0", "1001"}},
		{env: "OUTBOX_ON_DEAD", accept: []string{"skip", "hold"}, refuse: []string{"drop"}},
		{env: "OUTBOX_RETRY_BACKOFF", accept: []string{"1ms", "1m"}, refuse: []string{"999us", "61m", "2m"}},
		{env: "OUTBOX_RETRY_BACKOFF_MAX", accept: []string{"1s", "24h"}, refuse: []string{"999ms", "25h"}},
		{env: "OUTBOX_ACK_TIMEOUT", accept: []string{"100ms", "1m"}, refuse: []string{"99ms", "61s"}},
		{env: "OUTBOX_SHUTDOWN_TIMEOUT", accept: []string{"100ms", "10m"}, refuse: []string{"99ms", "11m"}},
		{env: "OUTBOX_ELECTION", accept: []string{"postgres", "none"}, refuse: []string{"raft"}},
	}
	fields := make(map[string]config.Field)
	for _, f := range config.Fields() {
		fields[f.Env] = f
	}
	for _, tt := range tests {
		t.Run(tt.env, func(t *testing.T) {
			printed := maps.Clone(tt.printed)
			if printed == nil {
				printed = make(map[string]string)
			}
			for _, value := range tt.accept {
				printed[value] = value
			}
			for value, want := range printed {
				cfg, err := config.Load(sources(map[string]string{"OUTBOX_DATABASE_DSN": dsn, tt.env: value}, nil))
				if err != nil {
					t.Errorf("%q: %v", value, err)
				} else if got := fields[tt.env].Value(cfg); got != want {
					t.Errorf("%q reads as %q, want %q", value, got, want)
				}
			}
			for _, value := range tt.refuse {
				_, err := config.Load(sources(map[string]string{"OUTBOX_DATABASE_DSN": dsn, tt.env: value}, nil))
				if got := faults(t, err); len(got) != 1 || !strings.HasPrefix(got[0], "environment: "+tt.env+": ") {
					t.Errorf("%q: got faults %q, want one of %s", value, got, tt.env)
				}
			}
		})
	}
}

// What a person would be glad to read about a connection string, and nothing
// of the password.
func TestDSNHints(t *testing.T) {
	const (
		url      = "it is not a well-formed URL: in a user name, a password and a value, special characters must be percent-encoded (@ is %40, / is %2F, : is %3A, ? is %3F, # is %23)"
		keywords = "it is not well formed: want postgres://user:password@host:port/database, or keywords as in host=localhost dbname=outbox, with values that hold blanks or quotes in single quotes"
	)
	tests := []struct{ dsn, fault string }{
		{"postgres://u:hunter2@h:5432/d?sslmode=sometimes", "parameter sslmode: its value is not accepted, want disable, allow, prefer, require, verify-ca or verify-full"},
		{"postgres://u:hun/ter2@h:5432/d", url},
		{"postgres://u:hunter2@h:543210/d", url},
		{"host=h password=hunter2 port=0", "parameter port: its value is not accepted, want 1 to 65535"},
		{"host=h password=hun ter2", keywords},
		{"hunter2", keywords},
	}
	for _, tt := range tests {
		t.Run(tt.dsn, func(t *testing.T) {
			_, err := config.Load(sources(map[string]string{"OUTBOX_DATABASE_DSN": tt.dsn}, nil))
			compare(t, faults(t, err), []string{"environment: OUTBOX_DATABASE_DSN: " + tt.fault})
		})
	}
}

// No way of printing a configuration, or a file that is broken in the line
// with the password, gives the password away.
func TestNothingLeaks(t *testing.T) {
	cfg, err := config.Load(sources(map[string]string{
		"OUTBOX_DATABASE_DSN": "postgres://u:hunter2@h/d",
		"OUTBOX_NATS_URL":     "nats://u:hunter2@h,nats://hunter2@h",
	}, nil))
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	for _, handler := range []slog.Handler{slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil)} {
		slog.New(handler).Info("starting", "config", cfg, "nats", cfg.NATS, "dsn", cfg.DatabaseDSN)
	}
	printed := []string{string(encoded), logged.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		printed = append(printed, fmt.Sprintf(verb, cfg), fmt.Sprintf(verb, cfg.NATS), fmt.Sprintf(verb, cfg.DatabaseDSN))
	}
	for _, file := range []string{
		`database_dsn = postgres://u:hunter2@h/d`,
		`database_dsn = "postgres://u:hunter2@h/d`,
		`database_dsn = "postgres://u:hunter2@h/d"d"`,
		`database_dsn = "postgres://u:\hunter2@h/d"`,
		`database_dsn = ["postgres://u:hunter2@h/d"]`,
		`database_dsn = { url = "postgres://u:hunter2@h/d" }`,
		`databse_dsn = "postgres://u:hunter2@h/d"`,
		`nats_url = "nats://u:hunter2"`,
		`nats_url = "http://u:hunter2@h"`,
		`nats_url = "u:hunter2@h:4222"`,
		"[relay]\ndatabase_dsn = \"postgres://u:hunter2@h/d\"",
	} {
		_, err := loadFile(file)
		if err == nil {
			t.Errorf("%s loads, want faults", file)
			continue
		}
		printed = append(printed, err.Error(), fmt.Sprintf("%#v", err))
	}
	for _, text := range printed {
		if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("the password shows in %s", text)
		}
	}
}

func ExampleLoad() {
	env := map[string]string{
		"OUTBOX_DATABASE_DSN":  "postgres://app:hunter2@db/shop",
		"OUTBOX_BATCH_SIZE":    "0",
		"OUTBOX_POLL_INTERVAL": "500",
	}
	_, err := config.Load(config.Sources{
		LookupEnv: func(name string) (string, bool) { value, ok := env[name]; return value, ok },
		ReadFile:  func(string) ([]byte, error) { return nil, fs.ErrNotExist },
	})
	fmt.Println(err)
	// Output:
	// the configuration has 2 faults:
	//   environment: OUTBOX_POLL_INTERVAL: got "500", want a duration from 10ms to 1h (give a unit, for example "1000ms")
	//   environment: OUTBOX_BATCH_SIZE: got "0", want an integer from 1 to 100000
}
