package stream

import (
	"fmt"
	"net"
	"strconv"

	"github.com/nats-io/nats.go"
)

// rawWriter writes the messages of ordered batches to the connection below
// nats.go. nats.go turns a message's headers into a map, which it walks, checks and
// copies twice, and wakes a goroutine for each message: two thirds of the cost of
// publishing an event. On the wire a message is
//
//	HPUB <subject> <reply> <bytes of headers> <bytes in all>\r\n
//	NATS/1.0\r\n<name>: <value>\r\n…\r\n<payload>\r\n
//
// (docs.nats.io, "Client protocol"). Everything else on the connection is
// nats.go's. nats.go writes whole messages, too, so that messages of both never
// mix. We do TLS ourselves, below the connection that nats.go sees (see clientConn).
// A WebSocket is nats.go's, above it: there the rawWriter cannot be used.
//
// It belongs to the goroutine that publishes.
type rawWriter struct {
	conn       *clientConn
	maxPayload int
	buf        []byte // Not written yet.
}

const (
	// rawBuffer is about how much is written at once.
	rawBuffer = 64 << 10
	// rawCopy is the largest payload that is copied into the buffer.
	rawCopy = 4 << 10
)

// begin makes the rawWriter write to another connection.
func (w *rawWriter) begin(conn *clientConn, maxPayload int64) {
	w.conn, w.maxPayload, w.buf = conn, int(maxPayload), w.buf[:0]
}

// send writes a message, or buffers it until the next flush. Head is the message's
// header block; if it is empty, the message is a PUB.
func (w *rawWriter) send(subject, reply, head, data []byte) error {
	if size := len(head) + len(data); size > w.maxPayload {
		return &sizeError{data: len(data), head: len(head), limit: limitServer, most: int64(w.maxPayload), cause: nats.ErrMaxPayload}
	}
	b := w.buf
	if len(head) > 0 {
		b = append(b, 'H')
	}
	b = append(b, "PUB "...)
	b = append(b, subject...)
	b = append(b, ' ')
	b = append(b, reply...)
	b = append(b, ' ')
	if len(head) > 0 {
		b = strconv.AppendInt(b, int64(len(head)), 10)
		b = append(b, ' ')
	}
	b = strconv.AppendInt(b, int64(len(head)+len(data)), 10)
	b = append(b, "\r\n"...)
	b = append(b, head...)
	if len(data) > rawCopy {
		w.buf = b
		return w.write(data, []byte("\r\n"))
	}
	b = append(b, data...)
	w.buf = append(b, "\r\n"...)
	if len(w.buf) >= rawBuffer {
		return w.flush()
	}
	return nil
}

// flush writes what is buffered.
func (w *rawWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	return w.write()
}

// write writes what is buffered, and then more. If that fails, it closes the
// connection, since half a message may be on it: nats.go makes another.
func (w *rawWriter) write(more ...[]byte) error {
	err := w.conn.writeAll(append(net.Buffers{w.buf}, more...))
	w.buf = w.buf[:0]
	if err != nil {
		_ = w.conn.Close()
		return fmt.Errorf("write to NATS: %w", err)
	}
	return nil
}
