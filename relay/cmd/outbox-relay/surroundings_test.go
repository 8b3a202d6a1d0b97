package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// natsServer starts a nats-server with a configuration as operators write it; store is the directory of its streams, if it is
// to be a certain one.
func natsServer(t *testing.T, config, store string) *server.Server {
	t.Helper()
	options, err := server.ProcessConfigFile(textFile(t, "nats.conf", []byte(config)))
	if err != nil {
		t.Fatal(err)
	}
	options.Host, options.Port, options.NoLog, options.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, true
	if options.JetStream {
		options.StoreDir = store
		if store == "" {
			options.StoreDir = t.TempDir()
		}
	}
	s, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	return s
}

func textFile(t *testing.T, name string, contents []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// operated starts a server whose accounts are an operator's, and returns the credentials of a user until some time; 0 for
// good.
func operated(t *testing.T) (srv *server.Server, creds func(expires time.Time) string) {
	t.Helper()
	pair := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		p, err := create()
		if err != nil {
			t.Fatal(err)
		}
		public, err := p.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return p, public
	}
	encode := func(claims jwt.Claims, by nkeys.KeyPair) string {
		token, err := claims.Encode(by)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	operator, operatorKey := pair(nkeys.CreateOperator)
	_, systemKey := pair(nkeys.CreateAccount)
	account, accountKey := pair(nkeys.CreateAccount)
	shop := jwt.NewAccountClaims(accountKey)
	shop.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	srv = natsServer(t, fmt.Sprintf(`
		jetstream: enabled
		operator: %s
		system_account: %s
		resolver: MEMORY
		resolver_preload: { %s: %s, %s: %s }`,
		encode(jwt.NewOperatorClaims(operatorKey), operator), systemKey,
		systemKey, encode(jwt.NewAccountClaims(systemKey), operator), accountKey, encode(shop, operator)), "")
	return srv, func(expires time.Time) string {
		user, userKey := pair(nkeys.CreateUser)
		claims := jwt.NewUserClaims(userKey)
		if !expires.IsZero() {
			claims.Expires = expires.Unix()
		}
		seed, err := user.Seed()
		if err != nil {
			t.Fatal(err)
		}
		contents, err := jwt.FormatUserConfig(encode(claims, account), seed)
		if err != nil {
			t.Fatal(err)
		}
		return textFile(t, "user.creds", contents)
	}
}

// What the surroundings demand is named in the log, by status and by doctor alike, with what to set; and so set, it works.
func TestSurroundingsNameTheRemedy(t *testing.T) {
	ca := streamtest.NewAuthority(t)
	cert, key := ca.File, ca.KeyFile
	secure := func(more string) string {
		return fmt.Sprintf("jetstream: enabled\ntls { cert_file: %q, key_file: %q, timeout: 2%s }", cert, key, more)
	}
	first, later := natsServer(t, secure(", handshake_first: true"), "").ClientURL(), natsServer(t, secure(""), "").ClientURL()
	inbox := strings.Replace(natsServer(t, `
		jetstream: enabled
		authorization { users: [ { user: relay, password: relay, permissions { publish: ">", subscribe: "_INBOX_relay.>" } } ] }`, "").ClientURL(), "://", "://relay:relay@", 1)
	bytes := natsServer(t, "jetstream {}\nno_auth_user: relay\naccounts { SHOP { jetstream { max_file: 1G, max_bytes: true }, users [ { user: relay, password: relay } ] } }", "").ClientURL()
	window := natsServer(t, `jetstream { limits { duplicate_window: "1m" } }`, "").ClientURL()
	_, callout := func() (nkeys.KeyPair, string) {
		pair, err := nkeys.CreateAccount()
		if err != nil {
			t.Fatal(err)
		}
		public, err := pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return pair, public
	}()
	asks := natsServer(t, fmt.Sprintf(`
		jetstream: enabled
		accounts { AUTH { users: [ { user: auth, password: auth } ] }, APP { jetstream: enabled } }
		authorization { timeout: 1, auth_callout { issuer: %s, account: AUTH, auth_users: [ auth ] } }`, callout), "").ClientURL()
	owned, creds := operated(t)
	for name, tt := range map[string]struct {
		env  environment
		want string
		cure environment // Added to env; nil if that is not in our settings.
	}{
		"TLS first":            {environment{"OUTBOX_NATS_URL": first, "OUTBOX_NATS_TLS_CA": cert}, "set nats_tls_first", environment{"OUTBOX_NATS_TLS_FIRST": "true"}},
		"TLS not first":        {environment{"OUTBOX_NATS_URL": later, "OUTBOX_NATS_TLS_CA": cert, "OUTBOX_NATS_TLS_FIRST": "true"}, "leave out nats_tls_first", environment{"OUTBOX_NATS_TLS_FIRST": "false"}},
		"unknown authority":    {environment{"OUTBOX_NATS_URL": later}, "nats_tls_ca", environment{"OUTBOX_NATS_TLS_CA": cert}},
		"inbox":                {environment{"OUTBOX_NATS_URL": inbox}, "set nats_inbox_prefix", environment{"OUTBOX_NATS_INBOX_PREFIX": "_INBOX_relay"}},
		"max_bytes":            {environment{"OUTBOX_NATS_URL": bytes}, "set stream_max_bytes", environment{"OUTBOX_STREAM_MAX_BYTES": "1048576"}},
		"window":               {environment{"OUTBOX_NATS_URL": window}, "set duplicate_window", environment{"OUTBOX_DUPLICATE_WINDOW": "1m"}},
		"expired credentials":  {environment{"OUTBOX_NATS_URL": owned.ClientURL(), "OUTBOX_NATS_CREDS": creds(time.Now().Add(-time.Hour))}, "put new ones there (nats_creds", environment{"OUTBOX_NATS_CREDS": creds(time.Time{})}},
		"no credentials":       {environment{"OUTBOX_NATS_URL": owned.ClientURL()}, "nats_creds", environment{"OUTBOX_NATS_CREDS": creds(time.Time{})}},
		"auth callout, nobody": {environment{"OUTBOX_NATS_URL": strings.Replace(asks, "://", "://someone:s3cr3t@", 1)}, "the server does not accept the user and password of nats_url", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := tt.env
			env["OUTBOX_DATABASE_DSN"] = storetest.NewDatabase(t)
			relay := start(t, env)
			because := fmt.Sprint(relay.logged("not fit to lead; trying until Postgres, NATS and the stream can be used")["because"])
			expectText(t, "the log", because, tt.want)
			eventually(t, "status says so", func() bool { return strings.Contains(execute(t, env, "status").stdout, tt.want) })
			d := diagnose(t, env)
			expectCode(t, d.result, 1)
			if len(d.failures(tt.want)) == 0 {
				t.Errorf("doctor does not name %q:\n%s", tt.want, execute(t, env, "doctor").stdout)
			}
			t.Logf("%s\n%s", because, strings.Join(d.failures(""), "\n"))
			if tt.cure == nil {
				return
			}
			relay.stop()
			relay.wait()
			maps.Copy(env, tt.cure)
			cured := start(t, env)
			cured.logged("leading")
		})
	}
}

// failures are the details of failures that have a text.
func (d *diagnosis) failures(text string) (found []string) {
	for _, f := range d.Checks {
		if f.Severity == "failure" && strings.Contains(f.Detail, text) {
			found = append(found, f.Check+": "+f.Detail)
		}
	}
	return found
}

// Credentials that expire under a connection are named with their file, and new ones there suffice.
func TestCredentialsExpire(t *testing.T) {
	srv, creds := operated(t)
	file := creds(time.Now().Add(5 * time.Second))
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": srv.ClientURL(), "OUTBOX_NATS_CREDS": file}
	relay := start(t, env)
	relay.logged("leading")
	const remedy = "put new ones there (nats_creds"
	relay.stderr.await(t, "the expiry", func(text string) bool {
		return strings.Contains(text, file+" expired at ") && strings.Contains(text, remedy)
	})
	insert(t, dsn, "users", "User", "17", "UserCreated", "x")
	eventually(t, "status says so", func() bool { return strings.Contains(execute(t, env, "status").stdout, remedy) })
	d := diagnose(t, env)
	d.expect(t, "failure publishing now: "+remedy, "failure nats: "+remedy)

	contents, err := os.ReadFile(creds(time.Time{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the event is published", func() bool { return number(t, dsn, `select count(*) from outbox_published`) == 1 })
	eventually(t, "doctor is content", func() bool { return execute(t, env, "doctor").code == 0 })
}
