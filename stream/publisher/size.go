package publisher

import (
	"errors"
	"fmt"
	"math"

	"github.com/nats-io/nats.go"
)

// sizes are the sizes of a message's parts, in bytes.
type sizes struct {
	data uint32 // A payload of the outbox has 1 GB at most.
	head uint16 // The header block, stream.MaxHeader at most.
}

func sizesOf(data, head int) sizes {
	return sizes{data: uint32(min(data, math.MaxUint32)), head: uint16(min(head, math.MaxUint16))}
}

// sizeError says that a message is too large, with its sizes and the limit.
type sizeError struct {
	data, head int
	limit      string // What takes no more, such as "the server's max_payload".
	most       int64  // How much that takes; 0 if it is not known.
	cause      error
}

// Error tells the sizes.
func (e *sizeError) Error() string {
	text := fmt.Sprintf("payload of %d bytes with %d bytes of headers exceeds %s", e.data, e.head, e.limit)
	if e.most > 0 {
		text += fmt.Sprintf(" of %d", e.most)
	}
	return text
}

// Unwrap returns the cause.
func (e *sizeError) Unwrap() error { return e.cause }

// The limits on a message's size.
const (
	limitServer = "the server's max_payload"
	limitStream = "the stream's max_msg_size"
)

// explained says more about a message that is larger than the server takes. Most is the
// server's limit.
func explained(err error, most func() int64, data, head int) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return &sizeError{data: data, head: head, limit: limitServer, most: most(), cause: err}
	}
	return err
}
