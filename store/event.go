package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/store/event"
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
	// Headers are added to the message. The rules are those of [event.Rules]: names that start with "Nats-" or "Outbox-"
	// belong to the broker and the relay and are refused, as are names and values that NATS cannot carry, and more of them
	// than fit into a message.
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
			return fmt.Errorf("%s %s is not valid UTF-8", field.name, brief(field.value))
		case strings.ContainsRune(field.value, 0):
			return fmt.Errorf("%s %s holds a zero byte, which Postgres' text cannot", field.name, brief(field.value))
		}
	}
	return e.validateHeaders()
}

// validateHeaders applies the stream's rules, so that an event which can never be published is not inserted.
func (e *Event) validateHeaders() error {
	size := event.NewSize(e.Topic, e.AggregateType, e.AggregateID, e.EventType)
	for _, name := range slices.Sorted(maps.Keys(e.Headers)) {
		value := e.Headers[name]
		err := event.Rules{}.Check(name, value)
		if err == nil && !utf8.ValidString(value) {
			err = errors.New("the value is not valid UTF-8")
		}
		if err != nil {
			return fmt.Errorf("header %s: %w", brief(name), err)
		}
		if err := event.CheckStatus(name, e.Data); err != nil {
			return err
		}
		size.Add(name, value)
	}
	return size.Check()
}

// brief quotes a text for an error, cut to what a person wants to see of it.
func brief(s string) string {
	const most = 100
	if len(s) > most {
		return fmt.Sprintf("%q… (%d bytes)", s[:most], len(s))
	}
	return strconv.Quote(s)
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
