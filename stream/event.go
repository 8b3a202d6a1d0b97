package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream/excerpt"
)

// ErrNoEvent says that a message carries no outbox event: it is not the relay's, or
// one of the relay's control messages. A consumer that reads a whole stream skips it.
var ErrNoEvent = errors.New("message carries no outbox event")

// An Event is one row of the outbox, on its way to the stream or read back
// from it.
type Event struct {
	// Seq is the row's place in the outbox table and hence the order of the
	// events of one aggregate. It has gaps.
	Seq int64

	// ID identifies the row for ever. It is sent as Nats-Msg-Id; consumers
	// use it to recognise an event that they have handled before.
	ID uuid.UUID

	// Topic, AggregateType, AggregateID and EventType are set by the producer: any
	// text, also an empty one.
	Topic         string
	AggregateType string
	AggregateID   string
	EventType     string

	// Data is the payload. It is opaque: never parsed, changed or logged.
	Data []byte

	// Headers are the row's own headers: a JSON object of names to a string,
	// a number, a boolean or an array of these; nil for none.
	// See ValidateHeaders for what is refused.
	Headers []byte

	// CreatedAt is the time of the insert by the database's clock. It does not tell
	// the order of events: Seq does.
	CreatedAt time.Time
}

// Decode restores the event of a stored message from its headers, so that a
// consumer gets the raw aggregate ID back rather than the encoded token of the
// subject. The event keeps data without copying it.
//
// Headers holds the row's own headers; a header with several values comes back
// as a JSON array, a number or boolean as a string. Decode returns ErrNoEvent if
// the message has no Outbox-Seq, and another error if it has one and its headers are
// damaged.
func Decode(header nats.Header, data []byte) (Event, error) {
	seq := header.Get(HeaderSeq)
	if seq == "" {
		return Event{}, ErrNoEvent
	}

	ev := Event{Data: data}
	var err error
	if ev.Seq, err = strconv.ParseInt(seq, 10, 64); err != nil {
		return Event{}, fmt.Errorf("header %s: %q is not a number", HeaderSeq, excerpt.Of(seq))
	}
	if ev.ID, err = uuid.Parse(header.Get(HeaderMsgID)); err != nil {
		return Event{}, fmt.Errorf("header %s: %w", HeaderMsgID, err)
	}
	if ev.CreatedAt, err = time.Parse(time.RFC3339Nano, header.Get(HeaderCreatedAt)); err != nil {
		return Event{}, fmt.Errorf("header %s: %q is not a time of RFC 3339", HeaderCreatedAt, excerpt.Of(header.Get(HeaderCreatedAt)))
	}
	for _, field := range []struct {
		name string
		to   *string
	}{
		{HeaderTopic, &ev.Topic},
		{HeaderAggregateType, &ev.AggregateType},
		{HeaderAggregateID, &ev.AggregateID},
		{HeaderEventType, &ev.EventType},
	} {
		if *field.to, err = DecodeHeaderValue(header.Get(field.name)); err != nil {
			return Event{}, fmt.Errorf("header %s: %w", field.name, err)
		}
	}
	if ev.Headers, err = ownHeaders(header); err != nil {
		return Event{}, err
	}
	return ev, nil
}

// ownHeaders returns the row's own headers, the inverse of Encoder.Header: it leaves
// out all headers that the relay or the server added.
func ownHeaders(header nats.Header) ([]byte, error) {
	// A row may carry ce- headers of its own while the relay makes none.
	// Those that the relay makes are known by naming the message's own ID.
	cloudEvent := header.Get(ceID) != "" && header.Get(ceID) == header.Get(HeaderMsgID)

	own := make(map[string]any)
	for name, values := range header {
		switch {
		case hasPrefixFold(name, reservedNATS), hasPrefixFold(name, reservedOutbox):
		case cloudEvent && strings.HasPrefix(name, reservedCloudEvents):
		case len(values) == 1:
			own[name] = values[0]
		default:
			own[name] = values
		}
	}
	if len(own) == 0 {
		return nil, nil
	}

	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(own); err != nil {
		return nil, fmt.Errorf("headers: %w", err)
	}
	return bytes.TrimRight(doc.Bytes(), "\n"), nil
}
