package publisher

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
)

// requests are what we ask the server, on the connection that events go over. They are
// the history.Connection of a Publisher's history.
type requests struct {
	stream  string            // The stream's name.
	explain func(error) error // Adds to an error the figures, and what to do.

	mu sync.Mutex // Guards the fields below.

	conn      *nats.Conn            // Nil for none.
	noAnswers *stream.Error         // Why no answer can come on this connection: a subscription was denied. Nil if answers can come.
	pending   map[*request]struct{} // Those that wait for an answer.
}

type request struct{ refuse context.CancelCauseFunc }

// reset forgets the connection: there is none, or the next one is being made.
func (r *requests) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.noAnswers = nil, nil
}

// use makes requests go over a connection.
func (r *requests) use(conn *nats.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn = conn
}

// Current returns the connection; nil if there is none.
func (r *requests) Current() *nats.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn
}

// isDeaf reports whether no answer can come on the connection.
func (r *requests) isDeaf() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.noAnswers != nil
}

// deaf notes that no answer can come on the connection, and ends all requests.
func (r *requests) deaf(fault *stream.Error) {
	r.mu.Lock()
	r.noAnswers = fault
	r.mu.Unlock()
	r.refuse(fault)
}

// refuse ends all requests: the violation does not tell which one it is about.
func (r *requests) refuse(fault *stream.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for waiting := range r.pending {
		waiting.refuse(fault)
	}
}

// Ask prepares a call that sends requests to the server. A permission violation ends
// the context that Ask returns; the caller calls done with its error, to which done
// adds the reason.
func (r *requests) Ask(ctx context.Context) (asking context.Context, done func(*error)) {
	asking, refuse := context.WithCancelCause(ctx)
	waiting := &request{refuse}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == nil {
		r.pending = make(map[*request]struct{})
	}
	r.pending[waiting] = struct{}{}
	return asking, func(err *error) {
		r.mu.Lock()
		delete(r.pending, waiting)
		r.mu.Unlock()
		if fault, denied := errors.AsType[*stream.Error](context.Cause(asking)); denied && *err != nil && ctx.Err() == nil {
			*err = &stream.Error{Fault: fault.Fault, Err: fmt.Errorf("stream %q: %w", r.stream, fault.Err), Refused: true}
		} else if *err != nil {
			*err = r.explain(*err)
		}
		refuse(nil)
	}
}
