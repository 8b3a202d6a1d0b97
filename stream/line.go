package stream

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
)

// line is what a connection runs over. Closing a nats.Conn sends what is still
// in its buffer; a leader whose lease has ended must not, so it cuts the line
// first.
type line struct {
	valid func() bool // Asked before each write; nil for nobody.
	trust trust       // How TLS is done; set before the first Dial.

	mu    sync.Mutex         // Protects what follows.
	conn  *socket            // The latest; nil before there was one.
	abort context.CancelFunc // Ends dialing; nil before it began.
	gone  bool               // It is cut, for good.
}

func newLine(valid func() bool) *line { return &line{valid: valid} }

// Dial implements nats.CustomDialer. The address has the host's name: looking it up
// ends with the line, too.
func (l *line) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l.mu.Lock()
	l.abort = cancel
	gone, former := l.gone, l.conn
	l.mu.Unlock()
	if gone {
		return nil, net.ErrClosed
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s := &socket{guarded: guarded{Conn: conn, valid: l.valid}, host: l.trust.hostOf(address, former)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		_ = conn.Close() // Nothing was sent on it.
		return nil, net.ErrClosed
	}
	l.conn = s
	return s, nil
}

// SkipTLSHandshake is asked by nats.go when it would begin TLS on the connection
// that was dialed last, and not use it before: after the server's INFO, which
// demands TLS or offers it, or with TLS first. We do it in its place, so that
// what comes out of TLS is ours: see wire. If that fails, the next read or write
// does. With WebSockets it is nats.go's.
func (l *line) SkipTLSHandshake() bool {
	l.mu.Lock()
	s := l.conn
	l.mu.Unlock()
	if s == nil || l.trust.webSocket {
		return false
	}
	s.secure(&l.trust)
	return true
}

// socket returns the connection if NATS' protocol is what is written to it, and
// nil otherwise.
func (l *line) socket() *socket {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil || l.conn.protocol.Load() != protocolNATS {
		return nil
	}
	return l.conn
}

// dial connects to a host. Of several addresses each has its own time, since the
// first may be that of a frozen server, and each is the first at some time.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	looking, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(looking, host)
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	dialer := net.Dialer{Timeout: connectTimeout}
	for _, address := range addresses {
		var conn net.Conn
		if conn, err = dialer.DialContext(ctx, network, net.JoinHostPort(address, port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// mute reports whether a server took the latest connection and said nothing.
func (l *line) mute() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil && !l.conn.heard.Load()
}

func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	if l.abort != nil {
		l.abort()
	}
	if l.conn != nil {
		_ = l.conn.Close() // It may be closed already.
	}
}
