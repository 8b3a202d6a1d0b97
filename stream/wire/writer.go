package wire

import (
	"fmt"
	"net"
	"strconv"

	"github.com/nats-io/nats.go"
)

// A Writer writes messages to the connection below nats.go, such as those of ordered
// batches. nats.go turns a message's headers into a map, which it walks, checks and
// copies twice, and wakes a goroutine for each message: two thirds of the cost of
// publishing an event. On the wire a message is
//
//	HPUB <subject> <reply> <bytes of headers> <bytes in all>\r\n
//	NATS/1.0\r\n<name>: <value>\r\n…\r\n<payload>\r\n
//
// (docs.nats.io, "Client protocol"). Everything else on the connection is
// nats.go's. nats.go writes whole messages, too, so that messages of both never
// mix. We do TLS ourselves, below the connection that nats.go sees (see Conn).
// A WebSocket is nats.go's, above it: there a Writer cannot be used.
//
// The zero Writer must begin before use. It belongs to one goroutine.
type Writer struct {
	conn       *Conn
	maxPayload int
	buf        []byte // Not written yet.
}

const (
	// BufferSize is about how much is written at once, in bytes.
	BufferSize = 64 << 10
	// CopySize is the largest payload that is copied into the buffer.
	CopySize = 4 << 10
)

// Begin makes the Writer write to another connection, and forgets what was buffered.
// MaxPayload is the server's limit on a message's size in bytes, headers included.
func (w *Writer) Begin(conn *Conn, maxPayload int64) {
	w.conn, w.maxPayload, w.buf = conn, int(maxPayload), w.buf[:0]
}

// Send writes a message, or buffers it until the next Flush. Head is the message's
// header block; if it is empty, the message is a PUB. For a message above the server's
// limit Send returns nats.ErrMaxPayload, and nothing of it is sent. After any other
// error the connection is closed, and what was buffered may have been sent or not.
func (w *Writer) Send(subject, reply, head, data []byte) error {
	if size := len(head) + len(data); size > w.maxPayload {
		return nats.ErrMaxPayload
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
	if len(data) > CopySize {
		w.buf = b
		return w.write(data, []byte("\r\n"))
	}
	b = append(b, data...)
	w.buf = append(b, "\r\n"...)
	if len(w.buf) >= BufferSize {
		return w.Flush()
	}
	return nil
}

// Flush writes what is buffered. Its errors are those of Send.
func (w *Writer) Flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	return w.write()
}

// write writes what is buffered, and then more. If that fails, it closes the
// connection, since half a message may be on it: nats.go makes another.
func (w *Writer) write(more ...[]byte) error {
	err := w.conn.writeAll(append(net.Buffers{w.buf}, more...))
	w.buf = w.buf[:0]
	if err != nil {
		_ = w.conn.Close()
		return fmt.Errorf("write to NATS: %w", err)
	}
	return nil
}

// MaxPayload returns the limit that the Writer began with.
func (w *Writer) MaxPayload() int64 { return int64(w.maxPayload) }
