package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
)

// guardedConn is a network connection that is written to only while the lease is
// valid. If the process was stopped while nats.go had something in its buffer, and
// the lease has ended when the process goes on, that is not sent.
type guardedConn struct {
	net.Conn

	valid func() bool  // Asked before each write; nil for always.
	heard atomic.Int64 // When the server sent something last, in Unix nanoseconds; 0 for never.
}

// How long the network may take.
const (
	ConnectTimeout = 2 * time.Second  // To connect to one address, TLS included.
	WriteTimeout   = 10 * time.Second // For one write: a frozen server takes nothing once the socket's buffer is full.
)

// ErrForbidden says that nothing was written, since the right to send has ended.
var ErrForbidden = errors.New("the right to send has ended")

func (g *guardedConn) forbidden() bool { return g.valid != nil && !g.valid() }

func (g *guardedConn) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	if n > 0 {
		g.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

func (g *guardedConn) Write(b []byte) (int, error) {
	if g.forbidden() {
		return 0, ErrForbidden
	}
	return g.Conn.Write(b)
}

// A Conn is the connection that nats.go and a Writer write to, with or without
// TLS.
type Conn struct {
	guardedConn

	host     string // The name that the server's certificate must have.
	protocol atomic.Int32

	// Both are set before anything but the server's INFO is read or written.
	tls    *tls.Conn // Over guardedConn; nil without TLS.
	broken error     // Why the TLS handshake failed; nil if it did not, or without TLS.

	opened  atomic.Bool // The server has sent something through TLS.
	writing sync.Mutex  // Held while bytes that must stay together are written to TLS.
}

// NewConn returns a connection over another one, without TLS, on which nothing is written
// once valid returns false; nil for always. Dialer.Dial makes those of a nats.Conn.
func NewConn(conn net.Conn, valid func() bool) *Conn {
	return &Conn{guardedConn: guardedConn{Conn: conn, valid: valid}}
}

// The protocol that is written to a Conn, as the first bytes show.
const (
	protocolUnknown = iota
	protocolNATS
	protocolOther
)

// secure does the TLS handshake.
func (c *Conn) secure(trust *Trust) {
	config, err := trust.config(c.host)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), ConnectTimeout)
		defer cancel()
		conn := tls.Client(&c.guardedConn, config)
		if err = conn.HandshakeContext(ctx); err == nil {
			c.tls = conn
			return
		}
	}
	c.broken = fmt.Errorf("%w: %w", nats.ErrTLS, err) // As nats.go says it.
}

// TLS returns what was agreed upon with the server; false if there is no TLS.
func (c *Conn) TLS() (state tls.ConnectionState, secure bool) {
	if c.tls == nil {
		return state, false
	}
	return c.tls.ConnectionState(), true
}

// Read reads what the server sent. If the TLS handshake failed, it returns why.
func (c *Conn) Read(b []byte) (int, error) {
	switch {
	case c.broken != nil:
		return 0, c.broken
	case c.tls == nil:
		return c.guardedConn.Read(b)
	}
	n, err := c.tls.Read(b)
	if n > 0 && !c.opened.Load() {
		c.opened.Store(true)
	}
	return n, c.hungUp(err)
}

// hungUp adds to an error that TLS may be its reason, if the server has closed the
// connection right after the handshake. With TLS 1.3 a server refuses our certificate
// only after the handshake, and may do so without saying it.
func (c *Conn) hungUp(err error) error {
	if !c.opened.Load() && (errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		return fmt.Errorf("%w: connection closed by remote after TLS handshake: %w", nats.ErrTLS, err)
	}
	return err
}

// Write writes for nats.go, if the lease is still valid.
func (c *Conn) Write(b []byte) (int, error) {
	if c.broken != nil {
		return 0, c.broken
	}
	if c.protocol.Load() == protocolUnknown {
		if bytes.HasPrefix(b, []byte("CONNECT ")) {
			c.protocol.Store(protocolNATS)
		} else {
			c.protocol.Store(protocolOther)
		}
	}
	if c.tls == nil {
		return c.guardedConn.Write(b)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	n, err := c.tls.Write(b)
	return n, c.hungUp(err)
}

// writeAll writes all of the buffers, with no other writer's bytes in between.
func (c *Conn) writeAll(buffers net.Buffers) error {
	if c.forbidden() {
		return ErrForbidden
	}
	if err := c.SetWriteDeadline(time.Now().Add(WriteTimeout)); err != nil {
		return err
	}
	if c.tls == nil {
		_, err := buffers.WriteTo(c.Conn)
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	for _, b := range buffers {
		if _, err := c.tls.Write(b); err != nil {
			return err
		}
	}
	return nil
}
