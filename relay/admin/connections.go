package admin

import (
	"net"
	"net/http"
	"slices"
	"sync"
)

// maxConnections is how many connections a [Server] has open at most. Scrapers and probes are a handful; each
// connection costs a descriptor, which the relay's own connections may need, and some memory.
const maxConnections = 64

// connections are the open connections of a server. At the limit, a new one takes the place of another: a client that opens
// many and sends nothing keeps no probe from its answer.
type connections struct {
	limit int

	mu   sync.Mutex   // Protects open.
	open []connection // In the order of their latest change.
}

type connection struct {
	net.Conn
	// answering tells that a request has been read.
	answering bool
}

// track is an http.Server's ConnState. At the limit it closes the connection that has been waiting longest for a request. If
// all are being answered, it closes the one whose request came first.
func (c *connections) track(conn net.Conn, state http.ConnState) {
	if excess := c.note(conn, state); excess != nil {
		_ = excess.Close() // The server learns of it when it reads or writes.
	}
}

// note records a connection's state and returns the connection to close, if any.
func (c *connections) note(conn net.Conn, state http.ConnState) (excess net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.open, func(o connection) bool { return o.Conn == conn })
	if i >= 0 {
		c.open = slices.Delete(c.open, i, i+1)
	}
	switch state {
	case http.StateClosed, http.StateHijacked:
		return nil
	case http.StateNew:
	default:
		if i < 0 {
			return nil // It was removed here, and is about to be closed.
		}
	}
	if len(c.open) >= c.limit {
		first := max(0, slices.IndexFunc(c.open, func(o connection) bool { return !o.answering }))
		excess = c.open[first].Conn
		c.open = slices.Delete(c.open, first, first+1)
	}
	c.open = append(c.open, connection{conn, state == http.StateActive})
	return excess
}
