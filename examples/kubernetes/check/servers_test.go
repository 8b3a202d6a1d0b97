package check

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// Passwords of the servers' users.
const (
	relayPassword    = "relay's p@ssword/1"
	ownerPassword    = "owner's p@ssword"
	producerPassword = "producer's p@ssword"
	natsPassword     = "nats-password-1"
	adminPassword    = "admin-password-1"
)

// servers are a Postgres that takes roles with passwords over TLS only, and a cluster of nats-servers with the users of
// nats/permissions.conf.
type servers struct {
	testing.TB

	ca       authority
	postgres *storetest.Server
	nats     []*streamtest.Server
	options  []nats.Option // Of an administrator.
	tls      bool          // NATS asks for a client's certificate.
}

func newServers(t *testing.T, natsTLS bool) *servers {
	t.Helper()
	s := &servers{TB: t, ca: newAuthority(t), tls: natsTLS}
	s.startPostgres()
	s.startNATS()
	return s
}

func (s *servers) startPostgres() {
	s.Helper()
	// Both Postgres, which runs as another user, and we get at it.
	dir, err := os.MkdirTemp("", "outbox-kubernetes-")
	s.must(err)
	s.Cleanup(func() { _ = os.RemoveAll(dir) }) // What is left is in a temporary directory.
	s.must(os.Chmod(dir, 0o755))
	cert, key := s.ca.issue(s.TB, "postgres")
	hba := filepath.Join(dir, "pg_hba.conf")
	for name, content := range map[string]string{
		hba: "host all postgres 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n", filepath.Join(dir, "tls.crt"): cert, filepath.Join(dir, "tls.key"): key,
	} {
		s.must(os.WriteFile(name, []byte(content), 0o600))
		s.own(name)
	}
	s.postgres = storetest.Start(s.TB, "hba_file="+hba, "ssl=on", "ssl_cert_file="+filepath.Join(dir, "tls.crt"), "ssl_key_file="+filepath.Join(dir, "tls.key"))
}

// own gives a file to the user as whom storetest runs Postgres, if that is another one.
func (s *servers) own(name string) {
	s.Helper()
	if os.Geteuid() != 0 {
		return
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	s.must(err)
	uid, err := strconv.Atoi(account.Uid)
	s.must(err)
	s.must(os.Chown(name, uid, -1))
}

func (s *servers) startNATS() {
	s.Helper()
	accounts, err := os.ReadFile(filepath.Join(manifests, "nats", "permissions.conf"))
	s.must(err)
	// As the server's environment would.
	text := strings.NewReplacer("$OUTBOX_RELAY_PASSWORD", natsPassword, "$SHOP_ADMIN_PASSWORD", adminPassword).Replace(string(accounts))
	var ports []int
	var routes []string
	for range 3 {
		ports = append(ports, freePort(s.TB))
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[len(ports)-1]))
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(s.ca.cert))
	cert, key := s.ca.issue(s.TB, "nats")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	s.must(err)
	for i, port := range ports {
		s.nats = append(s.nats, streamtest.Start(s.TB, func(o *server.Options) {
			s.must(o.ProcessConfigString(text))
			o.ServerName = fmt.Sprintf("nats-%d", i)
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}
			o.Routes = server.RoutesFromStr(strings.Join(routes, ","))
			if s.tls {
				o.TLS, o.TLSVerify, o.TLSTimeout = true, true, 5
				o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
			}
		}))
	}
	s.options = []nats.Option{nats.UserInfo("shop_admin", adminPassword)}
	if s.tls {
		s.options = append(s.options, nats.Secure(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}))
	}
}

func (s *servers) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// dsn is how a role reaches Postgres, for a Secret that also has the authority's certificate.
func (s *servers) dsn(role, password string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, password), Host: fmt.Sprintf("127.0.0.1:%d", s.postgres.Port()), Path: "/postgres",
		RawQuery: "sslmode=verify-full&sslrootcert=/run/secrets/outbox/postgres/ca.crt",
	}
	return u.String()
}

// natsURL is how the relay's user reaches NATS.
func (s *servers) natsURL() string {
	var urls []string
	for _, n := range s.nats {
		address := n.NATS().Addr().String()
		scheme := "nats"
		if s.tls {
			scheme = "tls"
		}
		urls = append(urls, (&url.URL{Scheme: scheme, User: url.UserPassword("outbox_relay", natsPassword), Host: address}).String())
	}
	return strings.Join(urls, ",")
}

// sql runs statements as a role, which logs in with its password over TLS, or as the superuser if there is no password.
func (s *servers) sql(role, password, statements string, args ...any) {
	s.Helper()
	dsn := s.postgres.DSN()
	if password != "" {
		dsn = (&url.URL{Scheme: "postgres", User: url.UserPassword(role, password), Host: fmt.Sprintf("127.0.0.1:%d", s.postgres.Port()), Path: "/postgres", RawQuery: "sslmode=require"}).String()
	}
	conn, err := pgx.Connect(s.Context(), dsn)
	s.must(err)
	defer conn.Close(context.WithoutCancel(s.Context()))
	if _, err := conn.Exec(s.Context(), statements, args...); err != nil {
		s.Fatalf("as %s: %v\n%s", role, err, statements)
	}
}

// authority issues certificates for this machine.
type authority struct {
	cert string // In PEM.
	x509 *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) (a authority) {
	tb.Helper()
	a.cert, _, a.x509, a.key = certificate(tb, "authority", nil)
	return a
}

func (a authority) issue(tb testing.TB, name string) (cert, key string) {
	tb.Helper()
	cert, key, _, _ = certificate(tb, name, &a)
	return cert, key
}

func certificate(tb testing.TB, name string, by *authority) (certPEM, keyPEM string, parsed *x509.Certificate, key *ecdsa.PrivateKey) {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if by == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		parent, signer = by.x509, by.key
		template.KeyUsage = x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	must(err)
	parsed, err = x509.ParseCertificate(der)
	must(err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})), parsed, key
}
