package stream

import (
	"fmt"
	"net"
	"strconv"

	"github.com/nats-io/nats.go"
)

// wire writes the messages of ordered batches to a connection's socket, past
// nats.go. Through it, a message's headers become a map, which is walked,
// checked and copied twice, and each message wakes a goroutine that sends it:
// two thirds of what an event costs to publish. On the wire a message is
//
//	HPUB <subject> <reply> <bytes of headers> <bytes in all>\r\n
//	NATS/1.0\r\n<name>: <value>\r\n…\r\n<payload>\r\n
//
// (docs.nats.io, "Client protocol"). Everything else on the connection is
// nats.go's, which writes whole messages, too: either's writes come one after the
// other. TLS lies below the socket, since we do it, not nats.go. Only a WebSocket
// lies above: with it, that cannot be done.
//
// It belongs to the goroutine that publishes.
type wire struct {
	socket     *socket
	maxPayload int
	buf        []byte // What has not been written yet.
}

const (
	// wireBuffer is how much is written at once, about.
	wireBuffer = 64 << 10
	// wireCopy is the largest payload that is copied, to be written with others.
	wireCopy = 4 << 10
)

// begin makes the wire write to another socket.
func (w *wire) begin(s *socket, maxPayload int64) {
	w.socket, w.maxPayload, w.buf = s, int(maxPayload), w.buf[:0]
}

// send writes a message, or keeps it for the next flush. Head is the message's
// header block; without one it is a PUB.
func (w *wire) send(subject, reply, head, data []byte) error {
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
	if len(data) > wireCopy {
		w.buf = b
		return w.write(data, []byte("\r\n"))
	}
	b = append(b, data...)
	w.buf = append(b, "\r\n"...)
	if len(w.buf) >= wireBuffer {
		return w.flush()
	}
	return nil
}

// flush writes what has been kept.
func (w *wire) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	return w.write()
}

// write writes what has been kept and more. If that fails, the connection is
// closed, since there may be half a message on it: nats.go makes another.
func (w *wire) write(more ...[]byte) error {
	err := w.socket.writeAll(append(net.Buffers{w.buf}, more...))
	w.buf = w.buf[:0]
	if err != nil {
		_ = w.socket.Close()
		return fmt.Errorf("write to NATS: %w", err)
	}
	return nil
}
