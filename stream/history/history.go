package history

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
)

// A Connection is how a History asks the server. Package publisher has one.
type Connection interface {
	// Current returns the connection to NATS; nil if there is none.
	Current() *nats.Conn

	// Ask prepares a call that sends requests to the server. If the server denies a
	// request, the context that Ask returns ends. The caller calls done with its error,
	// to which done adds the reason.
	Ask(ctx context.Context) (asking context.Context, done func(*error))
}

// A History asks for what the stream holds: it reads back, verifies and puts up fences.
// All requests go over one Connection, which may change beneath it. Its methods may be
// called from any goroutine, but fences of one outbox belong to one caller.
type History struct {
	connection Connection
	setup      stream.Setup
	connect    stream.ConnectOptions

	mu sync.Mutex // Guards the fields below. Nothing else is locked under it.

	config  jetstream.StreamConfig // The stream's, as Opened told it.
	fence   uint64                 // The sequence of the latest fence of ours; 0 for none.
	subject string                 // Its subject; empty before Fence or FirstFence, and if the stream keeps no fences.
}

// New returns the history of the stream that setup names. Of the options only the
// JetStream domain counts.
func New(connection Connection, setup stream.Setup, options stream.ConnectOptions) *History {
	return &History{connection: connection, setup: setup.OrDefault(), connect: options}
}

// Opened takes note of the stream's configuration, which says where a fence goes and how
// the stream can be read. Before it, a History takes the stream for one without settings.
func (h *History) Opened(config jetstream.StreamConfig) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.config = config
}

// Forget takes note that the term is over: the next one puts up a fence of its own.
func (h *History) Forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fence, h.subject = 0, ""
}
