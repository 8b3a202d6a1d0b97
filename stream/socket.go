package stream

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

// guarded is what lies next to the network. It writes only while it may: what
// nats.go had buffered when its process was stopped is not sent when that goes on,
// if it may not be any more.
type guarded struct {
	net.Conn

	valid func() bool // Nil for always.
	heard atomic.Bool // Something has come.
}

var errForbidden = errors.New("the right to send has ended")

func (g *guarded) forbidden() bool { return g.valid != nil && !g.valid() }

func (g *guarded) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	if n > 0 && !g.heard.Load() {
		g.heard.Store(true)
	}
	return n, err
}

func (g *guarded) Write(b []byte) (int, error) {
	if g.forbidden() {
		return 0, errForbidden
	}
	return g.Conn.Write(b)
}

// socket is what a connection of nats.go's writes to, and so does wire.
type socket struct {
	guarded

	host     string // Whose certificate is wanted.
	protocol atomic.Int32

	// What follows is set before anything else than the server's INFO was read or
	// written.
	tls    *tls.Conn // Over guarded; nil without TLS.
	broken error     // Why there is no TLS; nil if there is, or is to be none.

	opened  atomic.Bool // Something has come through TLS.
	writing sync.Mutex  // Held while one writes to TLS what must stay together.
}

// What is written to a socket, as the first bytes show.
const (
	protocolUnknown = iota
	protocolNATS
	protocolOther
)

// secure does the TLS handshake.
func (s *socket) secure(trust *trust) {
	config, err := trust.config(s.host)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
		defer cancel()
		conn := tls.Client(&s.guarded, config)
		if err = conn.HandshakeContext(ctx); err == nil {
			s.tls = conn
			return
		}
	}
	s.broken = fmt.Errorf("%w: %w", nats.ErrTLS, err) // As nats.go says it.
}

func (s *socket) Read(b []byte) (int, error) {
	switch {
	case s.broken != nil:
		return 0, s.broken
	case s.tls == nil:
		return s.guarded.Read(b)
	}
	n, err := s.tls.Read(b)
	if n > 0 && !s.opened.Load() {
		s.opened.Store(true)
	}
	return n, s.hungUp(err)
}

// hungUp says more about the end of a connection that has just begun: with TLS 1.3,
// a server tells after the handshake that it refuses our certificate, or does not.
func (s *socket) hungUp(err error) error {
	if !s.opened.Load() && isAny(err, io.EOF, syscall.EPIPE, syscall.ECONNRESET) {
		return fmt.Errorf("%w: connection closed by remote after TLS handshake: %w", nats.ErrTLS, err)
	}
	return err
}

func (s *socket) Write(b []byte) (int, error) {
	if s.broken != nil {
		return 0, s.broken
	}
	if s.protocol.Load() == protocolUnknown {
		if bytes.HasPrefix(b, []byte("CONNECT ")) {
			s.protocol.Store(protocolNATS)
		} else {
			s.protocol.Store(protocolOther)
		}
	}
	if s.tls == nil {
		return s.guarded.Write(b)
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	n, err := s.tls.Write(b)
	return n, s.hungUp(err)
}

// writeAll writes all of the buffers, with nobody else's bytes in between.
func (s *socket) writeAll(buffers net.Buffers) error {
	if s.forbidden() {
		return errForbidden
	}
	if err := s.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if s.tls == nil {
		_, err := buffers.WriteTo(s.Conn)
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	for _, b := range buffers {
		if _, err := s.tls.Write(b); err != nil {
			return err
		}
	}
	return nil
}
