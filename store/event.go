package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Event is what a producer inserts. Topic, AggregateType, AggregateID and EventType are required and must
// be valid UTF-8 without zero bytes, as Postgres' text demands.
type Event struct {
	// ID becomes the message's Nats-Msg-Id. The zero value draws a random one. Give your own only if it is
	// unique for good: the broker drops a second message of the same id without a word.
	ID uuid.UUID
	// Topic is the broad subject area, such as "users".
	Topic string
	// AggregateType and AggregateID name the entity whose events must stay in order, such as "User", "17".
	AggregateType string
	AggregateID   string
	// EventType says what happened, such as "UserCreated".
	EventType string
	// Data is the payload, opaque to the relay. Nil is stored as empty.
	Data []byte
	// Headers are added to the message. Names starting with "Nats-" or "Outbox-" belong to the broker and
	// the relay and are refused.
	Headers map[string]string
}

// validate reports what Postgres or the broker would refuse later, where the caller can still mend it.
func (e *Event) validate() error {
	for _, field := range []struct{ name, value string }{
		{"Topic", e.Topic},
		{"AggregateType", e.AggregateType},
		{"AggregateID", e.AggregateID},
		{"EventType", e.EventType},
	} {
		switch {
		case field.value == "":
			return fmt.Errorf("%s is empty, it must name something", field.name)
		case !utf8.ValidString(field.value):
			return fmt.Errorf("%s %q is not valid UTF-8", field.name, field.value)
		case strings.ContainsRune(field.value, 0):
			return fmt.Errorf("%s %q holds a zero byte, which Postgres' text cannot", field.name, field.value)
		}
	}
	for name, value := range e.Headers {
		if err := validateHeader(name, value); err != nil {
			return err
		}
	}
	return nil
}

func validateHeader(name, value string) error {
	if name == "" {
		return fmt.Errorf("header with an empty name and value %q", value)
	}
	for _, prefix := range []string{"Nats-", "Outbox-"} {
		if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
			return fmt.Errorf("header %q: names starting with %q are reserved", name, prefix)
		}
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == ':' {
			return fmt.Errorf("header %q: a name holds only visible ASCII without colons", name)
		}
	}
	if strings.ContainsAny(value, "\r\n\x00") || !utf8.ValidString(value) {
		return fmt.Errorf("header %q: value %q must be valid UTF-8 without line breaks and zero bytes", name, value)
	}
	return nil
}

// row is an event as the insert statements take it.
type row struct {
	id      uuid.UUID
	event   *Event
	data    []byte
	headers *string // JSON; nil for none
}

// rows validates events and fills in what they leave open.
func rows(events []Event) ([]row, error) {
	out := make([]row, len(events))
	for i := range events {
		e := &events[i]
		if err := e.validate(); err != nil {
			if len(events) > 1 {
				return nil, fmt.Errorf("event %d of %d: %w", i+1, len(events), err)
			}
			return nil, fmt.Errorf("event: %w", err)
		}
		r := row{id: e.ID, event: e, data: e.Data}
		if r.data == nil {
			r.data = []byte{}
		}
		if r.id == uuid.Nil {
			r.id = uuid.New()
		}
		if len(e.Headers) > 0 {
			b, err := json.Marshal(e.Headers)
			if err != nil {
				return nil, fmt.Errorf("event headers: %w", err)
			}
			text := string(b)
			r.headers = &text
		}
		out[i] = r
	}
	return out, nil
}
