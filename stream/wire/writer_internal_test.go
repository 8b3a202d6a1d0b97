package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// sink is a connection that keeps what is written to it.
type sink struct {
	net.Conn
	bytes.Buffer

	err    error // Of every write.
	closed bool
}

func (s *sink) Read([]byte) (int, error)         { return 0, io.EOF }
func (s *sink) Close() error                     { s.closed = true; return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
func (s *sink) Write(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.Buffer.Write(b)
}

// After a write that failed there may be half a message on the connection.
func TestWriterClosesTheConnectionAfterAFailure(t *testing.T) {
	errCut := errors.New("cut")
	for name, s := range map[string]*Conn{
		"failed":    NewConn(&sink{err: errCut}, nil),
		"forbidden": NewConn(&sink{}, func() bool { return false }),
	} {
		w := &Writer{}
		w.Begin(s, 100)
		if err := w.Send([]byte("s"), []byte("r"), nil, []byte("x")); err != nil {
			t.Errorf("%s: %v, although nothing has been written yet", name, err)
		}
		err := w.Flush()
		if !errors.Is(err, errCut) && !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: got %v, want the reason", name, err)
		}
		out, _ := s.Conn.(*sink)
		if !out.closed || out.Len() > 0 {
			t.Errorf("%s: closed is %v, and %q was written", name, out.closed, out.String())
		}
		if err := w.Send([]byte("s"), []byte("r"), nil, make([]byte, 101)); !errors.Is(err, nats.ErrMaxPayload) || len(w.buf) > 0 {
			t.Errorf("%s: a payload over the limit: got %v, and %d bytes kept", name, err, len(w.buf))
		}
	}
}
