package wire

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
)

// Trust is how TLS is done: the authorities that we trust, and our certificate. The
// zero value trusts the system's authorities, and has no certificate.
type Trust struct {
	// CA, Cert and Key are files in PEM form, read anew at each handshake; empty for
	// none.
	CA, Cert, Key string

	// WebSocket says that the servers are spoken to through WebSockets: then nats.go
	// does TLS itself.
	WebSocket bool

	// Named are the addresses, host:port, that a person has given, so that each needs
	// a certificate for its own host.
	Named map[string]struct{}
}

// hostOf returns the host name that the certificate of a server at an address must
// have: the name in the address. Servers of a cluster announce others, often by IP
// address, for which few certificates are issued. For those, as in nats.go, it is the
// name of the server that we were connected to before.
func (t *Trust) hostOf(address string, former *Conn) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	_, named := t.Named[address]
	if named || net.ParseIP(host) == nil || former == nil || net.ParseIP(former.host) != nil {
		return host
	}
	return former.host
}

// config returns how TLS is done with a host.
func (t *Trust) config(host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("TLS CA file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("TLS CA file %s: has no certificate in PEM form", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("TLS certificate %s with key %s: %w", t.Cert, t.Key, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
