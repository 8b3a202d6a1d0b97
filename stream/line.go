package stream

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// line is what a connection runs over. Closing a nats.Conn sends what is still
// in its buffer; a leader whose lease has ended must not, so it cuts the line
// first.
type line struct {
	valid func() bool // Asked before each write; nil for nobody.

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
	gone := l.gone
	l.mu.Unlock()
	if gone {
		return nil, net.ErrClosed
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		_ = conn.Close() // Nothing was sent on it.
		return nil, net.ErrClosed
	}
	l.conn = &socket{Conn: conn, valid: l.valid}
	return l.conn, nil
}

// plain returns the connection if it carries NATS' protocol as it is, and nil
// otherwise.
func (l *line) plain() *socket {
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
		return nil, err //nolint:wrapcheck // nats.go says what it was for.
	}
	looking, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(looking, host)
	if err != nil {
		return nil, err //nolint:wrapcheck // As above.
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	dialer := net.Dialer{Timeout: connectTimeout}
	for _, address := range addresses {
		var conn net.Conn
		if conn, err = dialer.DialContext(ctx, network, net.JoinHostPort(address, port)); err == nil {
			return conn, nil
		}
	}
	return nil, err //nolint:wrapcheck // As above.
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

// socket is what a connection of nats.go's writes to. It writes only while it
// may: what nats.go had buffered when its process was stopped is not sent when
// that goes on, if it may not be any more.
type socket struct {
	net.Conn

	valid    func() bool // Nil for always.
	protocol atomic.Int32
}

// What a socket carries, as the first bytes show that are written to it.
const (
	protocolUnknown = iota
	protocolNATS
	protocolOther
)

func (s *socket) Write(b []byte) (int, error) {
	if s.valid != nil && !s.valid() {
		return 0, errForbidden
	}
	if s.protocol.Load() == protocolUnknown {
		if bytes.HasPrefix(b, []byte("CONNECT ")) {
			s.protocol.Store(protocolNATS)
		} else {
			s.protocol.Store(protocolOther)
		}
	}
	return s.Conn.Write(b)
}

// writeAll writes all of the buffers, with nobody else's bytes in between.
func (s *socket) writeAll(buffers net.Buffers) error {
	if s.valid != nil && !s.valid() {
		return errForbidden
	}
	if err := s.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := buffers.WriteTo(s.Conn)
	return err
}

var errForbidden = errors.New("the right to send has ended")
