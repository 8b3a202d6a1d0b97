package stream

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

const (
	// maxText is how many bytes of a value an error shows.
	maxText = 100

	// maxRefusal is how many bytes the reason for refusing an event may have: it
	// may name many headers of the event.
	maxRefusal = 1000
)

// cut makes a value fit to be shown in an error: the value may be of any length, and
// need not be text.
func cut(s string) string { return cutTo(s, maxText) }

func cutTo(s string, most int) string {
	if len(s) > most {
		end := most - len("…")
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}
		return strings.ToValidUTF8(s[:end], "?") + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// sizes are the sizes of a message's parts, in bytes.
type sizes struct {
	data uint32 // A payload of the outbox has 1 GB at most.
	head uint16 // The header block, MaxHeader at most.
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
