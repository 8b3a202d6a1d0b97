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
			want: []string{`environment: OUTBOX_DATABASE_DSN_FILE: the file "/secret/bad": it is not well formed: want postgres://user:password@host:port/database, or keywords as in host=localhost dbname=outbox, with values that hold blanks or quotes in single quotes`},
		},
		"a malformed DSN in it": {
			env:  map[string]string{"OUTBOX_DATABASE_DSN_FILE": "/secret/malformed"},
			want: []string{`environment: OUTBOX_DATABASE_DSN_FILE: the file "/secret/malformed": it is not a well-formed URL: in a user name, a password and a value, special characters must be percent-encoded (@ is %40, / is %2F, : is %3A, ? is %3F, # is %23)`},
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
			want: []string{`environment: OUTBOX_NATS_URL_FILE: the file "/secret/bad": a URL has no scheme: want one such as nats://127.0.0.1:4222, or several separated by commas`},
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

// What only the relay finds, above all settings that do not go together, is told with the rest, where the settings were made.
func TestWhatTheRelayRefusesHasPlaces(t *testing.T) {
	_, err := config.Load(sources(map[string]string{
		"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_BATCH_SIZE": "0", "OUTBOX_STREAM": "a.b", "OUTBOX_RETAIN": "0s", "OUTBOX_NATS_TLS_FIRST": "true",
		"OUTBOX_ELECTION": "jetstream", "OUTBOX_RETRY_BACKOFF_MAX": "1s",
	}, map[string]string{config.DefaultPath: `
subject = "events"
strict = true
nats_url = "wss://nats"
[relay]
retry_backoff = "2s"
[election]
key = ".a"
`}))
	compare(t, faults(t, err), []string{
		`config/relay.toml:2:1: subject: subject template "events": needs a placeholder: {topic}, {aggregate_type}, {aggregate_id} or {event_type}`,
		`environment: OUTBOX_STREAM: "a.b" has a character that NATS forbids: white space, control characters and . * > / \`,
		`environment: OUTBOX_BATCH_SIZE: got "0", want an integer from 1 to 100000`,
		`environment: OUTBOX_RETAIN: option Retain: got "0s", with strict = true: what the broker loses after it has acknowledged it, as in a crash before it was written to the disk, cannot be published again (see also strict (config/relay.toml:3:1))`,
		`environment: OUTBOX_NATS_TLS_FIRST: TLSFirst: WebSockets have TLS by their scheme: with ws and wss leave it out (see also nats_url (config/relay.toml:4:1))`,
		`config/relay.toml:8:1: election.key: election: key-value election: Key: ".a" has an empty token: want none before, after or between dots (see also OUTBOX_ELECTION (environment))`,
		`environment: OUTBOX_RETRY_BACKOFF_MAX: relay option RetryBackoffMax is 1s, it must not be below RetryBackoff, 2s (see also relay.retry_backoff (config/relay.toml:6:1))`,
	})
}

// What a program does not need is not asked for.
func TestNeed(t *testing.T) {
	strange := map[string]string{"OUTBOX_SUBJECT": "outbox.{topic}", "OUTBOX_STRICT": "true", "OUTBOX_RETAIN": "0s", "OUTBOX_NATS_CREDS": "none", "OUTBOX_DATABASE_PASSWORD_FILE": "none"}
	const (
		noDSN      = "environment: OUTBOX_DATABASE_DSN: not set, want a postgres:// URL or a connection string in keyword form (host=... dbname=...) (or name a file that has it in OUTBOX_DATABASE_DSN_FILE)"
		noPassword = `environment: OUTBOX_DATABASE_PASSWORD_FILE: got "none", want the path of a readable file (file does not exist)`
		noCreds    = `environment: OUTBOX_NATS_CREDS: got "none", want the path of a readable file (file does not exist)`
		noArchive  = `environment: OUTBOX_RETAIN: `
	)
	for need, want := range map[config.Need][]string{
		config.NeedRelay:    {noPassword, noCreds, noDSN, noArchive},
		config.NeedDatabase: {noPassword, noDSN},
		config.NeedValues:   {noPassword, noCreds, noDSN},
		config.NeedNothing:  nil,
	} {
		src := sources(strange, nil)
		src.Need = need
		_, err := config.Load(src)
		got := faults(t, err)
		for i, fault := range got {
			if strings.HasPrefix(fault, noArchive) {
				got[i] = noArchive
			}
		}
		compare(t, got, want)
	}
}

// Doctor, for one, looks at everything that can still be looked at.
func TestNeedValuesTakesASubjectThatNobodyElseDoes(t *testing.T) {
	src := sources(map[string]string{"OUTBOX_SUBJECT": "events", "OUTBOX_DATABASE_DSN": dsn + "&pool_max_conns=4"}, nil)
	src.Need = config.NeedValues
	c, err := config.Load(src)
	if err != nil || c.Stream.Subject != "events" || string(c.DatabaseDSN) != dsn+"&pool_max_conns=4" {
		t.Errorf("got %+v, %v, want the subject and the DSN as they are", c, err)
	}
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
