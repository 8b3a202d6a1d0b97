package stream

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/go-outbox/go-outbox/stream/streamtest"
	"github.com/go-outbox/go-outbox/stream/wire"
)

// Servers of a cluster tell of others by IP address. The certificate of one that is
// so found may be for the name by which the first was reached, and for nothing else.
func TestTLSWithServersThatWereFound(t *testing.T) {
	ca := streamtest.NewAuthority(t)
	cert, key := ca.Issue(t, time.Now().Add(time.Hour), "localhost")
	ports := make([]int, 2)
	for i := range ports {
		l := listen(t)
		addr, _ := l.Addr().(*net.TCPAddr)
		ports[i] = addr.Port
		l.Close()
	}
	node := func(i int) *streamtest.Server {
		return streamtest.Start(t, func(o *server.Options) {
			o.ServerName, o.JetStream = fmt.Sprintf("n%d", i), false
			o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{streamtest.LoadPair(t, cert, key)}, MinVersion: tls.VersionTLS12}
			o.TLSTimeout = 2
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[i]}
			o.Routes = server.RoutesFromStr(fmt.Sprintf("nats://127.0.0.1:%d", ports[1-i]))
		})
	}
	first, second := node(0), node(1)
	u, err := url.Parse(first.URL())
	if err != nil {
		t.Fatal(err)
	}
	reconnected, dialer := make(chan struct{}, 1), wire.NewDialer(nil)
	nc, err := Connect(t.Context(), ConnectOptions{
		URL: "nats://localhost:" + u.Port(), TLSCA: ca.File, OnReconnect: func() { reconnected <- struct{}{} }, Dialer: dialer,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	for deadline := time.Now().Add(10 * time.Second); len(nc.DiscoveredServers()) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no other server was found")
		}
	}
	first.Stop()
	receive(t, reconnected)
	if id := nc.ConnectedServerName(); id != "n1" {
		t.Errorf("connected to %q, want the second server", id)
	}
	conn := dialer.Raw()
	if conn == nil {
		t.Fatal("there is no connection")
	}
	if state, secure := conn.TLS(); !secure || state.ServerName != "localhost" {
		t.Errorf("got %v with %q, want TLS with localhost", secure, state.ServerName)
	}
	// An address that a person gave needs a certificate of its own.
	refuses(t, ConnectOptions{URL: strings.Replace(second.URL(), "0.0.0.0", "127.0.0.1", 1), TLSCA: ca.File}, FaultSetup, "127.0.0.1")
}

// Certificates are read anew when the connection is made anew.
func TestTLSWithNewCertificates(t *testing.T) {
	old, fresh := streamtest.NewAuthority(t), streamtest.NewAuthority(t)
	ca := writeFile(t, "trusted.pem", read(t, old.File))
	issuer := old
	srv := streamtest.Start(t, func(o *server.Options) {
		cert, key := issuer.Issue(t, time.Now().Add(time.Hour))
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{streamtest.LoadPair(t, cert, key)}, MinVersion: tls.VersionTLS12}
		o.TLSTimeout = 2
	})
	reconnected, dialer := make(chan struct{}, 1), wire.NewDialer(nil)
	nc, err := Connect(t.Context(), ConnectOptions{URL: srv.URL(), TLSCA: ca, OnReconnect: func() { reconnected <- struct{}{} }, Dialer: dialer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	issuer = fresh
	srv.Restart()
	select {
	case <-reconnected:
		t.Fatal("connected to a server that is not trusted")
	case <-time.After(300 * time.Millisecond):
	}
	if err := os.WriteFile(ca, read(t, fresh.File), 0o600); err != nil {
		t.Fatal(err)
	}
	receive(t, reconnected)
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	contents, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return contents
}
