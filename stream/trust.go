package stream

import (
	"net"
	"net/url"
	"strings"

	"github.com/go-outbox/go-outbox/stream/wire"
)

// trust returns how the options want TLS to be done with servers at these URLs.
func (o ConnectOptions) trust(urls string) wire.Trust {
	t := wire.Trust{CA: o.TLSCA, Cert: o.TLSCert, Key: o.TLSKey, Named: make(map[string]struct{})}
	for raw := range strings.SplitSeq(urls, ",") {
		raw = strings.TrimSpace(raw)
		if !strings.Contains(raw, "://") {
			raw = "nats://" + raw
		}
		u, err := url.Parse(raw)
		if err != nil {
			continue // checkURLs says so.
		}
		t.WebSocket = t.WebSocket || strings.HasPrefix(u.Scheme, "ws")
		port := u.Port()
		if port == "" {
			port = "4222"
		}
		t.Named[net.JoinHostPort(u.Hostname(), port)] = struct{}{}
	}
	return t
}
