package stream

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/store/event"
)

// Headers of every message. The values of the four names that a producer
// chooses are encoded with EncodeHeaderValue.
const (
	// HeaderMsgID is the event's ID, by which the stream recognises duplicates
	// within its duplicate window.
	HeaderMsgID = event.HeaderMsgID

	// HeaderSeq is the event's Seq in decimal. A message without it is no
	// event.
	HeaderSeq = event.HeaderSeq

	HeaderTopic         = event.HeaderTopic
	HeaderAggregateType = event.HeaderAggregateType
	HeaderAggregateID   = event.HeaderAggregateID
	HeaderEventType     = event.HeaderEventType

	// HeaderCreatedAt is in UTC, as time.RFC3339Nano.
	HeaderCreatedAt = event.HeaderCreatedAt
)

// Headers of a CloudEvent in binary mode.
const (
	ceSpecVersion     = "ce-specversion"
	ceID              = "ce-id"
	ceSource          = "ce-source"
	ceType            = "ce-type"
	ceSubject         = "ce-subject"
	ceTime            = "ce-time"
	ceDataContentType = "ce-datacontenttype"
)

// Prefixes that a row's own headers may not have, in any case.
const (
	reservedNATS        = event.ReservedNATS
	reservedOutbox      = event.ReservedOutbox
	reservedCloudEvents = event.ReservedCloudEvents
)

// MaxHeader is the size in bytes of the largest header block that an Encoder
// makes: the server's limit of 65,535 bytes, less room for the few headers that a
// publisher adds.
const MaxHeader = event.MaxHeader

// headerOverhead is the size of a header block without lines.
const headerOverhead = event.HeaderOverhead

// An Encoder turns events into messages. It may be used by several goroutines
// at once.
type Encoder struct {
	// Template makes the subjects.
	Template Template

	// CloudEventsSource, if not empty, adds the headers of a CloudEvent in
	// binary mode, with this as their ce-source: a URI reference such as
	// "/orders" or "https://example.com/orders".
	CloudEventsSource string
}

var errNoTemplate = errors.New("subject template: none was parsed")

// Validate says what is wrong with the encoder's fields.
func (e Encoder) Validate() error {
	if e.Template.IsZero() {
		return errNoTemplate
	}
	if source := e.CloudEventsSource; source != "" {
		_, err := url.Parse(source)
		if err != nil || strings.Contains(source, " ") || strings.ContainsFunc(source, unprintable) {
			return fmt.Errorf("CloudEvents source %q: not a URI reference", RedactURL(source))
		}
	}
	return nil
}

// Message returns the message that carries an event. The payload is not
// copied. An error is an *Error with FaultRow: the event can never be published as it
// is. If the encoder has no template, it is one with FaultSetup.
func (e Encoder) Message(ev *Event, reply string) (*nats.Msg, error) {
	if e.Template.IsZero() {
		return nil, setupFault(errNoTemplate)
	}
	header, err := e.Header(ev)
	if err != nil {
		return nil, err
	}
	return &nats.Msg{
		Subject: e.Template.Subject(ev),
		Reply:   reply,
		Header:  header,
		Data:    ev.Data,
	}, nil
}

// Header returns the headers of the event's message: the relay's, then the row's own,
// then those of CloudEvents. It returns the same errors as Message.
func (e Encoder) Header(ev *Event) (nats.Header, error) {
	lines, err := e.lines(ev)
	if err != nil {
		return nil, err
	}
	return lines.header(), nil
}

// header returns the lines as a header of nats.go.
func (l *headerLines) header() nats.Header {
	header := make(nats.Header, len(l.lines))
	values := make([]string, len(l.lines))
	for i, line := range l.lines {
		if several, ok := header[line.name]; ok {
			header[line.name] = append(several, line.value)
			continue
		}
		// A capacity of one: a later append to this header must not write into
		// the value of the next.
		values[i] = line.value
		header[line.name] = values[i : i+1 : i+1]
	}
	return header
}

// lines returns the headers as Header does, in the order of sending.
func (e Encoder) lines(ev *Event) (*headerLines, error) {
	id, seq, at, err := generated(ev)
	if err != nil {
		return nil, err
	}
	n := plainHeaders
	if e.CloudEventsSource != "" {
		n += 7
	}
	if len(ev.Headers) > 0 {
		n += 4 // a guess
	}
	lines := &headerLines{lines: make([]headerLine, 0, n), size: headerOverhead}
	lines.add(HeaderMsgID, id)
	lines.add(HeaderSeq, seq)
	lines.add(HeaderCreatedAt, at)
	lines.add(HeaderTopic, EncodeHeaderValue(ev.Topic))
	lines.add(HeaderAggregateType, EncodeHeaderValue(ev.AggregateType))
	lines.add(HeaderAggregateID, EncodeHeaderValue(ev.AggregateID))
	lines.add(HeaderEventType, EncodeHeaderValue(ev.EventType))

	if len(ev.Headers) > 0 {
		if err := e.rules().Each(ev.Headers, lines.add); err != nil {
			return nil, rowFault(err)
		}
		for _, line := range lines.lines {
			if err := event.CheckStatus(line.name, ev.Data); err != nil {
				return nil, rowFault(err)
			}
		}
	}
	if e.CloudEventsSource != "" {
		if err := e.addCloudEvent(lines, ev, id, at); err != nil {
			return nil, rowFault(err)
		}
	}
	if lines.size > MaxHeader {
		return nil, rowFault(fmt.Errorf("headers of %d bytes exceed the %d that a message can carry", lines.size, MaxHeader))
	}
	return lines, nil
}

// generated returns the values that the relay makes itself. They share one string.
func generated(ev *Event) (id, seq, at string, err error) {
	var scratch [96]byte
	text, ends, err := appendGenerated(scratch[:0], ev)
	if err != nil {
		return "", "", "", err
	}
	all := string(text)
	return all[:ends[0]], all[ends[0]:ends[1]], all[ends[1]:], nil
}

// appendGenerated appends the values that the relay makes itself, id, seq and
// time, one after the other, and returns where each ends.
func appendGenerated(dst []byte, ev *Event) (text []byte, ends [3]int, err error) {
	if ev.ID == uuid.Nil {
		// All events with this ID would be duplicates of the first.
		return dst, ends, rowFault(errors.New("id: is the nil UUID"))
	}
	created := ev.CreatedAt.UTC()
	if y := created.Year(); y < 0 || y > 9999 {
		return dst, ends, rowFault(fmt.Errorf("created_at: year %d has no RFC 3339 form", y))
	}
	dst = appendUUID(dst, ev.ID)
	ends[0] = len(dst)
	dst = strconv.AppendInt(dst, ev.Seq, 10)
	ends[1] = len(dst)
	dst = created.AppendFormat(dst, time.RFC3339Nano)
	ends[2] = len(dst)
	return dst, ends, nil
}

// addCloudEvent adds the attributes as headers, as the binding's binary mode demands.
func (e Encoder) addCloudEvent(lines *headerLines, ev *Event, id, at string) error {
	contentType := ""
	for _, line := range lines.lines {
		if strings.EqualFold(line.name, "Content-Type") && contentType == "" {
			contentType = line.value
		}
	}
	if hasPrefixFold(contentType, "application/cloudevents") {
		// The payload is a CloudEvent already, in structured mode. A second
		// set of attributes could only contradict it.
		return nil
	}
	if ev.EventType == "" {
		return errors.New("event_type: is empty, and CloudEvents demands a type")
	}
	lines.add(ceSpecVersion, "1.0")
	lines.add(ceID, id)
	lines.add(ceSource, encodeAttribute(e.CloudEventsSource))
	lines.add(ceType, encodeAttribute(ev.EventType))
	lines.add(ceTime, at)
	if ev.AggregateID != "" { // optional, and not to be sent empty
		lines.add(ceSubject, encodeAttribute(ev.AggregateID))
	}
	if contentType != "" {
		lines.add(ceDataContentType, encodeAttribute(contentType))
	}
	return nil
}

// headerLines collects the lines of a header block, and its size on the wire.
type headerLines struct {
	lines []headerLine
	size  int
}

type headerLine struct{ name, value string }

func (l *headerLines) add(name, value string) {
	l.size += event.LineSize(name, value)
	l.lines = append(l.lines, headerLine{name, value})
}

// ValidateHeaders returns an error if an Encoder cannot publish a row's own headers,
// so that a producer can find out before the insert. See event.Rules.ValidateHeaders
// for what is refused.
func ValidateHeaders(doc []byte) error { return Encoder{}.ValidateHeaders(doc) }

// ValidateHeaders is the function of that name, with the encoder's settings.
func (e Encoder) ValidateHeaders(doc []byte) error {
	return e.rules().ValidateHeaders(doc)
}

func (e Encoder) rules() event.Rules { return event.Rules{CloudEvents: e.CloudEventsSource != ""} }

// EncodeHeaderValue encodes any text as a header's value. The text stays readable
// UTF-8. Bytes that a NATS header cannot carry, and the percent sign, become %XX: see
// event.EncodeValue.
func EncodeHeaderValue(s string) string { return event.EncodeValue(s) }

// DecodeHeaderValue is the inverse of EncodeHeaderValue. It returns an error if two
// hexadecimal digits do not follow a percent sign.
func DecodeHeaderValue(value string) (string, error) { return unescape(value) }

// encodeAttribute encodes a CloudEvents attribute as the binding demands: all
// but visible ASCII, and the double quote and the percent sign, as %XX.
// Escaping more than that is allowed; the N of "Nats-" is, as above.
func encodeAttribute(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD") // a receiver must refuse anything else
	out := make([]byte, 0, len(s)+16)
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || c == '"' || c == '%' || c == 'N' && strings.HasPrefix(s[i:], reservedNATS) {
			out = appendEscaped(out, c)
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}

// appendUUID appends the canonical text, lower-case and with hyphens.
func appendUUID(dst []byte, id uuid.UUID) []byte {
	var text [36]byte
	hex.Encode(text[:], id[:4])
	hex.Encode(text[9:], id[4:6])
	hex.Encode(text[14:], id[6:8])
	hex.Encode(text[19:], id[8:10])
	hex.Encode(text[24:], id[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return append(dst, text[:]...)
}

// hasPrefixFold is strings.HasPrefix without regard to ASCII case.
func hasPrefixFold(s, prefix string) bool { return event.HasPrefixFold(s, prefix) }
