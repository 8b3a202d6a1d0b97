package config_test

import (
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/config"
)

// The DSN and its file are alternatives: the environment's goes before the file's, and one place has but one.
func TestDSNFile(t *testing.T) {
	const other = "postgres://app:0ther@elsewhere/shop"
	files := func(toml string) map[string]string {
		return map[string]string{config.DefaultPath: toml, "/secret/dsn": other + "\r\n", "/secret/bad": "hunter2", "/secret/malformed": "postgres://u:hunter2@x@h/d"}
	}
	for name, test := range map[string]struct {
		toml string
		env  map[string]string
		dsn  string
		want []string // Faults.
	}{
		"of the file":             {toml: `database_dsn_file = "/secret/dsn"`, dsn: other},
		"of the environment":      {env: map[string]string{"OUTBOX_DATABASE_DSN_FILE": "/secret/dsn"}, dsn: other},
		"instead of the file's":   {toml: `database_dsn = "` + dsn + `"`, env: map[string]string{"OUTBOX_DATABASE_DSN_FILE": "/secret/dsn"}, dsn: other},
		"instead of that file":    {toml: `database_dsn_file = "/secret/dsn"`, env: map[string]string{"OUTBOX_DATABASE_DSN": dsn}, dsn: dsn},
		"both in the environment": {env: map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_DATABASE_DSN_FILE": "/secret/dsn"}, want: []string{"environment: OUTBOX_DATABASE_DSN_FILE: set, and so is OUTBOX_DATABASE_DSN (environment), want one of them"}},
		"both in the file": {
			toml: "database_dsn = '" + dsn + "'\ndatabase_dsn_file = '/secret/dsn'",
			want: []string{"config/relay.toml:2:1: database_dsn_file: set, and so is database_dsn (config/relay.toml:1:1), want one of them"},
		},
		"no such file": {
			env:  map[string]string{"OUTBOX_DATABASE_DSN_FILE": "/secret/none"},
			want: []string{`environment: OUTBOX_DATABASE_DSN_FILE: got "/secret/none", want the path of a readable file (file does not exist)`},
		},
		"no DSN in it": {
			env:  map[string]string{"OUTBOX_DATABASE_DSN_FILE": "/secret/bad"},
			want: []string{`environment: OUTBOX_DATABASE_DSN_FILE: in the file "/secret/bad" is something else, want a postgres:// URL or a connection string in keyword form (host=... dbname=...)`},
		},
		"a malformed DSN in it": {
			env:  map[string]string{"OUTBOX_DATABASE_DSN_FILE": "/secret/malformed"},
			want: []string{`environment: OUTBOX_DATABASE_DSN_FILE: in the file "/secret/malformed" is something else, want a postgres:// URL or a connection string in keyword form (host=... dbname=...) (it cannot be parsed; special characters of a password must be percent-encoded in a URL, and quoted in keyword form)`},
		},
		"no password file": {
			env:  map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_DATABASE_PASSWORD_FILE": "/secret/none"},
			want: []string{`environment: OUTBOX_DATABASE_PASSWORD_FILE: got "/secret/none", want the path of a readable file (file does not exist)`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := config.Load(sources(test.env, files(test.toml)))
			compare(t, faults(t, err), test.want)
			if string(cfg.DatabaseDSN) != test.dsn {
				t.Errorf("got the DSN %q, want %q", string(cfg.DatabaseDSN), test.dsn)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is shown: %v", err)
			}
		})
	}
}

// NATS' URL and its file are alternatives in the same way.
func TestNATSURLFile(t *testing.T) {
	const url, other = "nats://here:4222", "nats://relay:hunter2@there:4222,nats://relay:hunter2@elsewhere:4222"
	for name, test := range map[string]struct {
		toml string
		env  map[string]string
		url  string
		want []string // Faults.
	}{
		"of the file":           {toml: `nats_url_file = "/secret/url"`, url: other},
		"instead of the file's": {toml: `nats_url = "` + url + `"`, env: map[string]string{"OUTBOX_NATS_URL_FILE": "/secret/url"}, url: other},
		"instead of that file":  {toml: `nats_url_file = "/secret/url"`, env: map[string]string{"OUTBOX_NATS_URL": url}, url: url},
		"both in the environment": {
			env:  map[string]string{"OUTBOX_NATS_URL": url, "OUTBOX_NATS_URL_FILE": "/secret/url"},
			want: []string{"environment: OUTBOX_NATS_URL_FILE: set, and so is OUTBOX_NATS_URL (environment), want one of them"},
		},
		"no such file": {
			env:  map[string]string{"OUTBOX_NATS_URL_FILE": "/secret/none"},
			want: []string{`environment: OUTBOX_NATS_URL_FILE: got "/secret/none", want the path of a readable file (file does not exist)`},
		},
		"no URL in it": {
			env:  map[string]string{"OUTBOX_NATS_URL_FILE": "/secret/bad"},
			want: []string{`environment: OUTBOX_NATS_URL_FILE: in the file "/secret/bad" is something else, want comma separated URLs of the schemes nats, tls, ws or wss, or "embedded"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if test.env == nil {
				test.env = make(map[string]string)
			}
			test.env["OUTBOX_DATABASE_DSN"] = dsn
			cfg, err := config.Load(sources(test.env, map[string]string{config.DefaultPath: test.toml, "/secret/url": other + "\n", "/secret/bad": "hunter2"}))
			compare(t, faults(t, err), test.want)
			if string(cfg.NATS.URL) != test.url {
				t.Errorf("got the URL %q, want %q", string(cfg.NATS.URL), test.url)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is shown: %v", err)
			}
		})
	}
}

// What others find is told with the rest, where the setting was made.
func TestFurtherFindingsHavePlaces(t *testing.T) {
	src := sources(map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_BATCH_SIZE": "0", "OUTBOX_STREAM": "a.b"}, map[string]string{config.DefaultPath: "subject = 'events'"})
	src.Check = func(c config.Config) []config.Finding {
		if c.Stream.Subject != "events" || c.Relay.BatchSize != 1000 {
			t.Errorf("asked about %+v", c)
		}
		return []config.Finding{{Key: "subject", Problem: "needs a placeholder"}, {Key: "stream", Problem: "is said already"}, {Key: "table", Problem: "is strange"}}
	}
	_, err := config.Load(src)
	compare(t, faults(t, err), []string{
		"environment: OUTBOX_STREAM: got \"a.b\", want a name of up to 255 bytes without spaces and . * > / \\",
		"environment: OUTBOX_BATCH_SIZE: got \"0\", want an integer from 1 to 100000",
		"config/relay.toml:1:1: subject: needs a placeholder",
		"default: table: is strange",
	})
}

// What is not well formed is refused, whatever a lenient parser makes of it, and nothing of it is shown.
func TestNothingOfAMalformedDSNIsShown(t *testing.T) {
	const secret = "hunter2"
	for _, malformed := range []string{
		"jdbc:postgresql://h/d?user=u&password=hunter2", "postgres://u:x@hunter2@h/d", "postgres://u:hunter2@x@h/d", "postgres://u:12/hunter2@h/d", "postgres://u:12?hunter2@h/d",
		"postgres://u:12#hunter2@h/d", "postgres://u:hunter2", "postgres://u:p@h:hunter2/d", "postgres://u:p w@hunter2/d", "postgres://h/d?password=p@hunter2", "host=h password=p hunter2",
		"host=h password='hunter2", "password=x hunter2 host=h", "hunter2", "hunter2@h", "mysql://u:hunter2@h/d", " postgres://u:hunter2@h/d", "postgres://u:hunter2%zz@h/d", "postgres://u:p@h/d?hunter2",
		"postgres://u:p@h/d?x=hunter2=y",
	} {
		_, err := config.Load(sources(map[string]string{"OUTBOX_DATABASE_DSN": malformed}, nil))
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %v, want a fault that shows nothing of it", malformed, err)
		}
	}
}
