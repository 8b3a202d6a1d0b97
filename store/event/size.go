package event

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// Headers of every message. The values of the four names that a producer
// chooses are encoded with EncodeValue.
const (
	// HeaderMsgID is the event's ID, by which the stream recognises
	// duplicates within its window.
	HeaderMsgID = "Nats-Msg-Id"

	// HeaderSeq is the event's Seq in decimal. A message without it is no
	// event.
	HeaderSeq = "Outbox-Seq"

	HeaderTopic         = "Outbox-Topic"
	HeaderAggregateType = "Outbox-Aggregate-Type"
	HeaderAggregateID   = "Outbox-Aggregate-Id"
	HeaderEventType     = "Outbox-Event-Type"

	// HeaderCreatedAt is in UTC, as time.RFC3339Nano.
	HeaderCreatedAt = "Outbox-Created-At"
)

// MaxHeader is the size in bytes of the largest header block that a relay
// makes: what the server takes, 65,535 bytes, less room for the few headers
// that a publisher adds.
const MaxHeader = 1<<16 - 1<<10

// HeaderOverhead is what a header block has beside its lines: the version
// line and the empty one.
const HeaderOverhead = len("NATS/1.0\r\n\r\n")

// LineSize is the size of one header's line.
func LineSize(name, value string) int {
	return len(name) + len(": ") + len(value) + len("\r\n")
}

// generatedSize bounds the lines that have the same size in all events, but for a few digits.
const generatedSize = HeaderOverhead + len(HeaderMsgID) + 36 + len(HeaderSeq) + len(HeaderCreatedAt) + len(time.RFC3339Nano) + 3*len(": \r\n")

// A Size adds up the header block of an event that is still to be inserted.
type Size int

// NewSize returns the size of the headers that the relay makes of an event's
// columns, but for those of CloudEvents.
func NewSize(topic, aggregateType, aggregateID, eventType string) Size {
	return Size(generatedSize + len(strconv.Itoa(math.MaxInt64)) +
		LineSize(HeaderTopic, EncodeValue(topic)) + LineSize(HeaderAggregateType, EncodeValue(aggregateType)) +
		LineSize(HeaderAggregateID, EncodeValue(aggregateID)) + LineSize(HeaderEventType, EncodeValue(eventType)))
}

// Add adds one header of the event's own.
func (s *Size) Add(name, value string) { *s += Size(LineSize(name, value)) }

// Check refuses what no message can carry.
func (s Size) Check() error {
	if s > MaxHeader {
		return fmt.Errorf("headers: %d bytes, with topic, aggregate and event type, exceed %d", s, MaxHeader)
	}
	return nil
}
