package stream

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// trust is how TLS is done: the authorities that we trust, and our certificate. The
// zero value trusts the system's authorities, and has no certificate.
type trust struct {
	ca, cert, key string // Files, read anew at each handshake.

	webSocket bool                // The servers are spoken to through WebSockets.
	named     map[string]struct{} // Addresses that a person has given.
}

// trust returns how the options want TLS to be done with servers at these URLs.
func (o ConnectOptions) trust(urls string) trust {
	t := trust{ca: o.TLSCA, cert: o.TLSCert, key: o.TLSKey, named: make(map[string]struct{})}
	for raw := range strings.SplitSeq(urls, ",") {
		raw = strings.TrimSpace(raw)
		if !strings.Contains(raw, "://") {
			raw = "nats://" + raw
		}
		u, err := url.Parse(raw)
		if err != nil {
			continue // checkURLs says so.
		}
		t.webSocket = t.webSocket || strings.HasPrefix(u.Scheme, "ws")
		port := u.Port()
		if port == "" {
			port = "4222"
		}
		t.named[net.JoinHostPort(u.Hostname(), port)] = struct{}{}
	}
	return t
}

// hostOf returns the host name that the certificate of a server at an address must
// have: the name in the address. Servers of a cluster announce others, often by IP
// address, for which few certificates are issued. For those, as in nats.go, it is the
// name of the server that we were connected to before.
func (t *trust) hostOf(address string, former *clientConn) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	_, named := t.named[address]
	if named || net.ParseIP(host) == nil || former == nil || net.ParseIP(former.host) != nil {
		return host
	}
	return former.host
}

// config returns how TLS is done with a host.
func (t *trust) config(host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.ca != "" {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, fmt.Errorf("TLS CA file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("TLS CA file %s: has no certificate in PEM form", t.ca)
		}
	}
	if t.cert != "" {
		pair, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, fmt.Errorf("TLS certificate %s with key %s: %w", t.cert, t.key, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
