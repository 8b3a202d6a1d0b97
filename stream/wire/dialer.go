package wire

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// A Dialer makes the network connections of one nats.Conn, the first one and those
// of its reconnects. Closing a nats.Conn sends what is still in its buffer. A
// leader whose lease has ended must send nothing, so it closes the Dialer first.
type Dialer struct {
	// Trust is how TLS is done. It is set before the first Dial; stream.Connect sets it.
	Trust Trust

	valid func() bool // Asked before each write; nil for always.

	mu     sync.Mutex         // Protects the fields below.
	conn   *Conn              // The latest; nil before there was one.
	server string             // Its address, as it was dialed.
	failed map[string]string  // Why other servers were of no use at the latest attempt, by address.
	abort  context.CancelFunc // Ends a Dial; nil before the first.
	gone   bool               // It was closed, for good.
}

// NewDialer returns a dialer whose connections ask valid before each write, and write
// nothing once it has returned false; nil for no such question. It runs below all
// locks, so it must be fast and take none.
func NewDialer(valid func() bool) *Dialer { return &Dialer{valid: valid} }

// Dial implements nats.CustomDialer. The address has the host's name, so that Close
// ends its look-up, too.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d.mu.Lock()
	d.abort = cancel
	gone, former := d.gone, d.conn
	if former != nil && d.server != address && former.heard.Load() == 0 {
		d.fail(d.server, Mute)
	}
	d.mu.Unlock()
	if gone {
		return nil, net.ErrClosed
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		d.mu.Lock()
		d.fail(address, reasonOf(err))
		d.mu.Unlock()
		return nil, err
	}
	wrapped := NewConn(conn, d.valid)
	wrapped.host = d.Trust.hostOf(address, former)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		_ = conn.Close() // Nothing was sent on it.
		return nil, net.ErrClosed
	}
	d.conn, d.server = wrapped, address
	delete(d.failed, address)
	return wrapped, nil
}

// SkipTLSHandshake does the TLS handshake in place of nats.go, so that a Writer can
// write below nats.go and above TLS. nats.go calls it when it would begin TLS on the
// connection that was dialed last: with TLS first, or after the server's INFO, which
// demands or offers TLS. Until then nats.go sends nothing. If the handshake fails,
// the next read or write returns its error. With WebSockets nats.go does TLS itself.
func (d *Dialer) SkipTLSHandshake() bool {
	d.mu.Lock()
	conn := d.conn
	d.mu.Unlock()
	if conn == nil || d.Trust.WebSocket {
		return false
	}
	conn.secure(&d.Trust)
	return true
}

// Raw returns the connection if the NATS protocol is written to it as it is, and
// nil otherwise, as with a WebSocket.
func (d *Dialer) Raw() *Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn == nil || d.conn.protocol.Load() != protocolNATS {
		return nil
	}
	return d.conn
}

// dial connects to a host. If the host has several addresses, each gets the full
// timeout, since the first may be that of a frozen server; their order is random.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	looking, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(looking, host)
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	netDialer := net.Dialer{Timeout: ConnectTimeout}
	for _, address := range addresses {
		var conn net.Conn
		if conn, err = netDialer.DialContext(ctx, network, net.JoinHostPort(address, port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// Mute is why a server is of no use that takes a connection, and sends no INFO on it.
const Mute = "the server took the connection and said nothing"

// fail notes why a server is of no use. The caller holds mu.
func (d *Dialer) fail(address, reason string) {
	if d.failed == nil {
		d.failed = make(map[string]string)
	}
	d.failed[address] = reason
}

// reasonOf is what is wrong, without the addresses that package net adds.
func reasonOf(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && !op.Timeout() {
		err = op.Err
	}
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		err = call.Err
	}
	if lookup, ok := errors.AsType[*net.DNSError](err); ok {
		return lookup.Err
	}
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // Only this one's text would name addresses.
		return "no answer within " + ConnectTimeout.String()
	}
	return err.Error()
}

// Failures tells why each server was of no use, as "address: reason", in the order of
// the addresses. A server that said something is not among them.
func (d *Dialer) Failures() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := maps.Clone(d.failed)
	if d.conn != nil && d.conn.heard.Load() == 0 {
		if all == nil {
			all = make(map[string]string)
		}
		all[d.server] = Mute
	}
	list := make([]string, 0, len(all))
	for _, address := range slices.Sorted(maps.Keys(all)) {
		list = append(list, address+": "+all[address])
	}
	return list
}

// Mute reports whether a server took the latest connection and said nothing.
func (d *Dialer) Mute() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn != nil && d.conn.heard.Load() == 0
}

// Quiet returns for how long the server of the latest connection has sent nothing; 0 if
// it never sent anything.
func (d *Dialer) Quiet() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn == nil || d.conn.heard.Load() == 0 {
		return 0
	}
	return time.Since(time.Unix(0, d.conn.heard.Load()))
}

// Close closes the connection at once, and ends every Dial, now and later.
func (d *Dialer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone = true
	if d.abort != nil {
		d.abort()
	}
	if d.conn != nil {
		_ = d.conn.Close() // It may be closed already.
	}
}
