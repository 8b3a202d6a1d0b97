package stream

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/go-outbox/go-outbox/stream/streamtest"
	"github.com/go-outbox/go-outbox/stream/wire"
)

func TestConnectWithUserAndPassword(t *testing.T) {
	srv := streamtest.Start(t, func(o *server.Options) { o.Username, o.Password = "relay", "s3cr@t/%" })
	good := "relay:" + url.QueryEscape("s3cr@t/%")
	connects(t, ConnectOptions{URL: withUserinfo(srv, good)})
	refuses(t, ConnectOptions{URL: withUserinfo(srv, "relay:wr0ng")}, FaultSetup, "Authorization Violation", "wr0ng")
	refuses(t, ConnectOptions{URL: srv.URL()}, FaultSetup, "Authorization Violation")
}

func TestConnectWithToken(t *testing.T) {
	srv := streamtest.Start(t, func(o *server.Options) { o.Authorization = "t0ken" })
	connects(t, ConnectOptions{URL: withUserinfo(srv, "t0ken")})
	refuses(t, ConnectOptions{URL: withUserinfo(srv, "wr0ng")}, FaultSetup, "Authorization Violation", "wr0ng")
}

func TestConnectWithNKey(t *testing.T) {
	user, other := newUser(t), newUser(t)
	srv := streamtest.Start(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: publicKey(t, user)}} })
	connects(t, ConnectOptions{URL: srv.URL(), NKeyFile: seedFile(t, user)})
	refuses(t, ConnectOptions{URL: srv.URL(), NKeyFile: seedFile(t, other)}, FaultSetup, "Authorization Violation", string(seed(t, other)))
}

func TestConnectWithCredentials(t *testing.T) {
	operator, err := nkeys.CreateOperator()
	if err != nil {
		t.Fatal(err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	operatorJWT, err := jwt.NewOperatorClaims(publicKey(t, operator)).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	operatorClaims, err := jwt.DecodeOperatorClaims(operatorJWT)
	if err != nil {
		t.Fatal(err)
	}
	accountJWT, err := jwt.NewAccountClaims(publicKey(t, account)).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	resolver := &server.MemAccResolver{}
	if err := resolver.Store(publicKey(t, account), accountJWT); err != nil {
		t.Fatal(err)
	}
	srv := streamtest.Start(t, func(o *server.Options) {
		o.JetStream = false // is forbidden to the system account, the only other one here
		o.TrustedOperators = []*jwt.OperatorClaims{operatorClaims}
		o.AccountResolver = resolver
	})

	creds := func(expires int64) string {
		user := newUser(t)
		claims := jwt.NewUserClaims(publicKey(t, user))
		claims.Expires = expires
		token, err := claims.Encode(account)
		if err != nil {
			t.Fatal(err)
		}
		contents, err := jwt.FormatUserConfig(token, seed(t, user))
		if err != nil {
			t.Fatal(err)
		}
		return writeFile(t, "user.creds", contents)
	}
	connects(t, ConnectOptions{URL: srv.URL(), CredsFile: creds(0)})
	refuses(t, ConnectOptions{URL: srv.URL(), CredsFile: creds(time.Now().Add(-time.Hour).Unix())}, FaultSetup, "Authorization Violation")
}

func TestConnectOverTLS(t *testing.T) {
	ca := streamtest.NewAuthority(t)
	serverCert, serverKey := ca.Issue(t, time.Now().Add(time.Hour))
	clientCert, clientKey := ca.Issue(t, time.Now().Add(time.Hour))
	srv := streamtest.Start(t, func(o *server.Options) {
		o.TLSConfig = &tls.Config{
			Certificates: []tls.Certificate{streamtest.LoadPair(t, serverCert, serverKey)},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    ca.Pool(t),
			MinVersion:   tls.VersionTLS12,
			// With 1.3 the reason of a refusal may come too late to be read.
			MaxVersion: tls.VersionTLS12,
		}
		o.TLSTimeout = 2
	})
	connects(t, ConnectOptions{URL: srv.URL(), TLSCA: ca.File, TLSCert: clientCert, TLSKey: clientKey})
	refuses(t, ConnectOptions{URL: srv.URL(), TLSCert: clientCert, TLSKey: clientKey}, FaultSetup, "unknown authority")
	refuses(t, ConnectOptions{URL: srv.URL(), TLSCA: streamtest.NewAuthority(t).File, TLSCert: clientCert, TLSKey: clientKey}, FaultSetup, "unknown authority")
	refuses(t, ConnectOptions{URL: srv.URL(), TLSCA: ca.File}, FaultSetup, "remote error: tls")

	expiredCert, expiredKey := ca.Issue(t, time.Now().Add(-time.Minute))
	refuses(t, ConnectOptions{URL: srv.URL(), TLSCA: ca.File, TLSCert: expiredCert, TLSKey: expiredKey}, FaultSetup, "expired at")

	plain := streamtest.Start(t)
	refuses(t, ConnectOptions{URL: plain.URL(), TLSCA: ca.File}, FaultSetup, "secure connection not available")
	expired := streamtest.Start(t, func(o *server.Options) {
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{streamtest.LoadPair(t, expiredCert, expiredKey)}, MinVersion: tls.VersionTLS12}
		o.TLSTimeout = 2
	})
	refuses(t, ConnectOptions{URL: expired.URL(), TLSCA: ca.File}, FaultSetup, "expired")
}

func TestConnectRefusesOptionsThatCannotWork(t *testing.T) {
	user := newUser(t)
	empty := writeFile(t, "empty", nil)
	missing := filepath.Join(t.TempDir(), "missing")
	const local = "nats://127.0.0.1:1"
	for name, test := range map[string]struct {
		opts   ConnectOptions
		want   string
		secret string
	}{
		"no URL":               {ConnectOptions{}, "URL: is empty", ""},
		"no host":              {ConnectOptions{URL: "nats://"}, "has no host", ""},
		"other scheme":         {ConnectOptions{URL: "http://u:s3cret@localhost"}, `unknown scheme "http"`, "s3cret"},
		"bad port":             {ConnectOptions{URL: "nats://localhost:port"}, "malformed", ""},
		"port 0":               {ConnectOptions{URL: "nats://localhost:0"}, "its port is not from 1 to 65535", ""},
		"password, no host":    {ConnectOptions{URL: "nats://relay:s3cret"}, "malformed", "s3cret"},
		"WebSocket and other":  {ConnectOptions{URL: local + ",ws://localhost"}, "cannot be mixed", ""},
		"slash in a password":  {ConnectOptions{URL: "nats://relay:s3c/ret@localhost"}, "must be percent-encoded", "s3c"},
		"percent in a token":   {ConnectOptions{URL: "nats://s3c%ret@localhost"}, "must be percent-encoded", "s3c"},
		"comma in a password":  {ConnectOptions{URL: "nats://relay:s3c,ret@localhost"}, "URL", "s3c"},
		"second of two":        {ConnectOptions{URL: local + ", ftp://localhost"}, `unknown scheme "ftp"`, ""},
		"missing credentials":  {ConnectOptions{URL: local, CredsFile: missing}, "no such file", ""},
		"empty credentials":    {ConnectOptions{URL: local, CredsFile: empty}, "has no user JWT", ""},
		"seed as credentials":  {ConnectOptions{URL: local, CredsFile: seedFile(t, user)}, "has no user", string(seed(t, user))},
		"missing NKey":         {ConnectOptions{URL: local, NKeyFile: missing}, "no such file", ""},
		"empty NKey":           {ConnectOptions{URL: local, NKeyFile: empty}, "has no seed", ""},
		"both":                 {ConnectOptions{URL: local, CredsFile: empty, NKeyFile: empty}, "want one of them", ""},
		"missing CA":           {ConnectOptions{URL: local, TLSCA: missing}, "no such file", ""},
		"empty CA":             {ConnectOptions{URL: local, TLSCA: empty}, "has no certificate", ""},
		"certificate, no key":  {ConnectOptions{URL: local, TLSCert: empty}, "one was given without the other", ""},
		"empty certificate":    {ConnectOptions{URL: local, TLSCert: empty, TLSKey: empty}, "TLS certificate", ""},
		"all faults are named": {ConnectOptions{URL: "", NKeyFile: missing, TLSKey: empty}, "\nNKey file", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if test.secret == "" {
				refuses(t, test.opts, FaultSetup, test.want)
			} else {
				refuses(t, test.opts, FaultSetup, test.want, test.secret)
			}
		})
	}
}

func TestConnectWithoutAServerIsWeather(t *testing.T) {
	listener := listen(t)
	addr := listener.Addr().String()
	listener.Close()
	refuses(t, ConnectOptions{URL: "nats://u:s3cret@" + addr}, FaultWeather, "no servers available for connection ("+addr+": connection refused)", "s3cret")

	// Something listens there, but says nothing.
	silent := listen(t)
	defer silent.Close()
	start := time.Now()
	refuses(t, ConnectOptions{URL: "nats://" + silent.Addr().String()}, FaultWeather, "timeout")
	if took := time.Since(start); took > 2*wire.ConnectTimeout {
		t.Errorf("gave up after %v, want about %v", took, wire.ConnectTimeout)
	}
}

// nats.go tells why the last of several servers was of no use, or of none of them.
func TestConnectTellsOfEachServer(t *testing.T) {
	refusing, silent := listen(t), listen(t)
	gone := refusing.Addr().String()
	refusing.Close()
	defer silent.Close()
	addr := silent.Addr().String()
	for _, urls := range []string{gone + "," + addr + ",no.such.host.invalid", addr + ",no.such.host.invalid," + gone, "no.such.host.invalid," + gone + "," + addr} {
		_, err := Connect(t.Context(), ConnectOptions{URL: urls})
		if err == nil {
			t.Fatal("it is connected")
		}
		for _, want := range []string{gone + ": connection refused", addr + ": the server took the connection and said nothing", "no.such.host.invalid:4222: no such host"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", urls, err, want)
			}
		}
	}
}

func TestConnectionOutlivesAnOutageWithoutBuffering(t *testing.T) {
	srv := streamtest.Start(t)
	disconnected, reconnected := make(chan struct{}, 1), make(chan struct{}, 1)
	nc, err := Connect(t.Context(), ConnectOptions{
		URL:          srv.URL(),
		Name:         "relay",
		OnDisconnect: func(error) { disconnected <- struct{}{} },
		OnReconnect:  func() { reconnected <- struct{}{} },
		OnClosed:     func() { t.Error("OnClosed was called, though the caller closed the connection") },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()

	srv.Stop()
	receive(t, disconnected)
	if err := nc.Publish("stale", nil); !errors.Is(err, nats.ErrReconnectBufExceeded) {
		t.Errorf("publish during an outage: %v, want %v", err, nats.ErrReconnectBufExceeded)
	}
	srv.Restart()
	receive(t, reconnected)
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		t.Errorf("flush after the outage: %v", err)
	}
	if got := srv.NATS().NumClients(); got != 1 {
		t.Errorf("clients after the outage = %d, want 1", got)
	}
}

func TestConnectionTellsRefusedPermissions(t *testing.T) {
	srv := streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{
			Username: "relay", Password: "relay",
			Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"allowed"}}},
		}}
	})
	told := make(chan error, 1)
	nc, err := Connect(t.Context(), ConnectOptions{URL: withUserinfo(srv, "relay:relay"), OnError: func(err error) { told <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.Publish("forbidden", nil); err != nil {
		t.Fatal(err)
	}
	if got := Classify(receive(t, told)); got.Fault != FaultSetup || !errors.Is(got, nats.ErrPermissionViolation) {
		t.Errorf("OnError got %v (%v), want a permissions violation", got, got.Fault)
	}
}

// A refusal twice in a row, by default the end of a connection, may just be a
// password that is being changed.
func TestConnectionOutlivesRefusedCredentials(t *testing.T) {
	password := "old"
	srv := streamtest.Start(t, func(o *server.Options) { o.Username, o.Password = "relay", password })
	refused, reconnected := make(chan error, 100), make(chan struct{}, 1)
	nc, err := Connect(t.Context(), ConnectOptions{
		URL:         withUserinfo(srv, "relay:old"),
		OnError:     func(err error) { refused <- err },
		OnReconnect: func() { reconnected <- struct{}{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	password = "new"
	srv.Restart()
	for range 4 {
		if err := receive(t, refused); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("OnError got %v, want %v", err, nats.ErrAuthorization)
		}
	}
	password = "old"
	srv.Restart()
	receive(t, reconnected)
}

func TestRedactURL(t *testing.T) {
	for text, want := range map[string]string{
		"nats://127.0.0.1:4222":         "nats://127.0.0.1:4222",
		"nats://user:pass@host:4222":    "nats://xxxxx@host:4222",
		"nats://token@host":             "nats://xxxxx@host",
		"user:pass@host":                "xxxxx@host",
		"nats://u:p@a,tls://t@b,c:4222": "nats://xxxxx@a,tls://xxxxx@b,c:4222",
		"nats://u:p/a:s@s,w0rd@host":    "nats://xxxxx@xxxxx@host",
		"nats://u:p%zz@host":            "nats://xxxxx@host",
		"a:4222,b:4222":                 "a:4222,b:4222",
		"":                              "",
	} {
		if got := RedactURL(text); got != want {
			t.Errorf("RedactURL(%q) = %q, want %q", text, got, want)
		}
	}
}

// connects connects and makes a round trip.
func connects(t *testing.T, opts ConnectOptions) {
	t.Helper()
	nc, err := Connect(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
}

// refuses wants an error with this fault and text, and without the secrets.
func refuses(t *testing.T, opts ConnectOptions, fault Fault, want string, secrets ...string) {
	t.Helper()
	nc, err := Connect(t.Context(), opts)
	if err == nil {
		nc.Close()
		t.Errorf("Connect succeeded, want an error with %q", want)
		return
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("Connect: %v; want an error with %q", err, want)
	}
	if got := Classify(err).Fault; got != fault {
		t.Errorf("Connect: %v: fault = %v, want %v", err, got, fault)
	}
	for _, secret := range secrets {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("Connect: the error shows %q: %v", secret, err)
		}
	}
}

// receive waits for what must come.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came in 10 s")
		panic("unreachable")
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func withUserinfo(srv *streamtest.Server, userinfo string) string {
	return strings.Replace(srv.URL(), "://", "://"+userinfo+"@", 1)
}

func newUser(t *testing.T) nkeys.KeyPair {
	t.Helper()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	return user
}

func publicKey(t *testing.T, pair nkeys.KeyPair) string {
	t.Helper()
	key, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func seed(t *testing.T, pair nkeys.KeyPair) []byte {
	t.Helper()
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

func seedFile(t *testing.T, pair nkeys.KeyPair) string {
	t.Helper()
	return writeFile(t, "user.nk", seed(t, pair))
}

func writeFile(t *testing.T, name string, contents []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
