package stream

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
)

// Headers of every message. The values of the four names that a producer
// chooses are encoded with EncodeHeaderValue.
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
	reservedNATS        = "Nats-"
	reservedOutbox      = "Outbox-"
	reservedCloudEvents = "ce-"
)

// MaxHeader is the size in bytes of the largest header block that an Encoder
// makes: what the server takes, 65,535 bytes, less room for the few headers
// that a publisher adds.
const MaxHeader = 1<<16 - 1<<10

// headerOverhead is what a header block has beside its lines: the version
// line and the empty one.
const headerOverhead = len("NATS/1.0\r\n\r\n")

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
	if len(e.Template.tokens) == 0 {
		return errNoTemplate
	}
	if e.CloudEventsSource != "" {
		if _, err := url.Parse(e.CloudEventsSource); err != nil {
			return fmt.Errorf("CloudEvents source %q: not a URI reference", RedactURL(e.CloudEventsSource))
		}
	}
	return nil
}

// Message returns the message that carries an event. The payload is not
// copied. An error is the row's fault (*Error with FaultRow): the event can
// never be published as it is. Only an encoder without a template is the
// set-up's (FaultSetup).
func (e Encoder) Message(ev *Event, reply string) (*nats.Msg, error) {
	if len(e.Template.tokens) == 0 {
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

// Header returns the headers of the event's message: the relay's, then the
// row's own, then those of CloudEvents. Errors are those of Message.
func (e Encoder) Header(ev *Event) (nats.Header, error) {
	lines, err := e.lines(ev)
	if err != nil {
		return nil, err
	}
	return lines.header(), nil
}

// header returns the lines as nats.go has them.
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

// lines returns what Header does, in the order in which it is to be sent.
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
		if err := e.eachHeader(ev.Headers, lines.add); err != nil {
			return nil, rowFault(err)
		}
		if len(ev.Data) == 0 && slices.ContainsFunc(lines.lines, func(l headerLine) bool { return l.name == "Status" }) {
			// Clients tell a server's "no messages", "timeout" and so on
			// by just this.
			return nil, rowFault(errors.New(`header "Status": on an event without data, consumers take it for a message of the server`))
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
// time, one behind the other, and returns where each ends.
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

// addCloudEvent adds the attributes as the binding's binary mode has them.
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

// headerLines gathers a header block and its size on the wire.
type headerLines struct {
	lines []headerLine
	size  int
}

type headerLine struct{ name, value string }

func (l *headerLines) add(name, value string) {
	l.size += len(name) + len(": ") + len(value) + len("\r\n")
	l.lines = append(l.lines, headerLine{name, value})
}

// ValidateHeaders says whether a row's own headers can be published by any
// Encoder, as a producer may want to know before the insert. Accepted is a JSON
// object of names to a string, a number, a boolean (both become their JSON
// text) or an array of these; also nothing, and null.
//
// Refused are:
//
//   - names which start with Nats- (they command the server), Outbox- or, if
//     CloudEvents is on, ce-, in any case;
//   - names that NATS cannot carry: empty, or with anything but visible ASCII
//     less "(),/:;<=>?@[\]{};
//   - values with CR, LF or NUL;
//   - names or values that would hide the event's ID from the server.
//
// NATS trims white space around a value; otherwise names and values are sent
// as they are, in the caller's spelling. The error names each faulty header
// and never shows a value.
func ValidateHeaders(doc []byte) error { return Encoder{}.ValidateHeaders(doc) }

// ValidateHeaders is the function of that name, with the encoder's settings.
func (e Encoder) ValidateHeaders(doc []byte) error {
	return e.eachHeader(doc, func(string, string) {})
}

// eachHeader passes on the headers of a row that are in order, and returns
// what is wrong with the others.
func (e Encoder) eachHeader(doc []byte, add func(name, value string)) error {
	if len(doc) == 0 {
		return nil
	}
	if e.eachPlainHeader(string(doc), add) {
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(doc, &fields); err != nil {
		// The decoder's text may quote the document.
		return errors.New("headers: not a JSON object")
	}
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		values, err := headerValues(fields[name])
		if err == nil {
			err = e.checkHeader(name, values...)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("header %q: %w", name, err))
			continue
		}
		for _, value := range values {
			add(name, value)
		}
	}
	return errors.Join(faults...)
}

// eachPlainHeader does the work of eachHeader, in a third of the time, for what
// nearly all rows have: a few faultless headers with one plain string each. It
// passes on all of them, or none and returns false.
func (e Encoder) eachPlainHeader(doc string, add func(name, value string)) bool {
	var plain [16]struct{ name, value string }
	n := 0
	rest, ok := cutByte(doc, '{')
	for ; ok; n++ {
		if n == len(plain) {
			return false
		}
		h := &plain[n]
		if h.name, rest, ok = cutString(rest); !ok {
			return false
		}
		if rest, ok = cutByte(rest, ':'); !ok {
			return false
		}
		if h.value, rest, ok = cutString(rest); !ok {
			return false
		}
		for i := range n {
			if plain[i].name == h.name {
				return false // of equal names, the last one counts
			}
		}
		if e.checkHeader(h.name, h.value) != nil {
			return false
		}
		rest, ok = cutByte(rest, ',')
	}
	if rest, ok = cutByte(rest, '}'); !ok || n == 0 || strings.TrimLeft(rest, jsonSpace) != "" || !utf8.ValidString(doc) {
		return false
	}
	for _, h := range plain[:n] {
		add(h.name, h.value)
	}
	return true
}

// jsonSpace is the white space that JSON allows between tokens.
const jsonSpace = " \t\r\n"

// cutByte returns what follows one byte of punctuation in a JSON text.
func cutByte(doc string, c byte) (rest string, ok bool) {
	doc = strings.TrimLeft(doc, jsonSpace)
	if doc == "" || doc[0] != c {
		return doc, false
	}
	return doc[1:], true
}

// cutString returns a JSON string without escapes and what follows it.
func cutString(doc string) (s, rest string, ok bool) {
	if rest, ok = cutByte(doc, '"'); !ok {
		return "", "", false
	}
	for i := range len(rest) {
		switch c := rest[i]; {
		case c == '"':
			return rest[:i], rest[i+1:], true
		case c == '\\', c < ' ':
			return "", "", false
		}
	}
	return "", "", false
}

func (e Encoder) checkHeader(name string, values ...string) error {
	switch {
	case !validHeaderName(name):
		return errors.New("not a header name")
	case hasPrefixFold(name, reservedNATS):
		return errors.New("names that start with Nats- are commands to the server")
	case hasPrefixFold(name, reservedOutbox):
		return errors.New("names that start with Outbox- are the relay's")
	case e.CloudEventsSource != "" && hasPrefixFold(name, reservedCloudEvents):
		return errors.New("names that start with ce- are the relay's while it makes CloudEvents")
	case hidesHeader(name):
		return errors.New("would hide the event's ID from the server")
	}
	for _, value := range values {
		switch {
		case strings.ContainsAny(value, "\r\n\x00"):
			return errors.New("the value has a CR, LF or NUL")
		case hidesHeader(value):
			return errors.New("the value would hide the event's ID from the server")
		}
	}
	return nil
}

// headerValues reads the value of one field of a row's headers.
func headerValues(raw json.RawMessage) ([]string, error) {
	if raw[0] != '[' {
		value, err := scalar(raw)
		return []string{value}, err
	}
	var elements []json.RawMessage
	if err := json.Unmarshal(raw, &elements); err != nil {
		return nil, errors.New("not an array")
	}
	values := make([]string, len(elements))
	for i, element := range elements {
		var err error
		if values[i], err = scalar(element); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// scalar returns a JSON string's value, or the text of a number or boolean.
func scalar(raw json.RawMessage) (string, error) {
	switch raw[0] {
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	case '{', '[', 'n':
		return "", errors.New("want a string, a number, a boolean or an array of these")
	}
	return string(raw), nil
}

// validHeaderName says whether nats.go sends a header of this name: ADR-4's
// visible ASCII without the colon, less what nats.go refuses besides.
func validHeaderName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return name != ""
}

// hidesHeader says whether a text in a header block would keep the server
// from finding a header that we rely upon.
//
// The server searches the block for a header's name. When it meets the name
// elsewhere it searches on behind it, and there takes a match within the first
// two bytes for "no such header" (getHeaderKeyIndex in its client.go). So a
// value "Nats-Msg-IdNats-Msg-Id", standing before the real header, switches
// the recognition of duplicates off.
func hidesHeader(s string) bool {
	for {
		i := strings.Index(s, reservedNATS)
		if i < 0 {
			return false
		}
		s = s[i:]
		gap := strings.Index(s[1:], reservedNATS) + 1
		if gap == 0 {
			return false
		}
		// The same name again, directly or one byte later?
		if strings.HasPrefix(s[gap:], s[:gap]) || strings.HasPrefix(s[gap:], s[:gap-1]) {
			return true
		}
		s = s[gap:]
	}
}

// EncodeHeaderValue makes any text fit for a header's value. Text stays
// readable as the UTF-8 it is; what a NATS header cannot carry becomes %XX,
// byte by byte, and so does the percent sign. Escaped are: control characters
// and line separators, white space at either end (it would be trimmed), bytes
// that are not UTF-8, and the N of "Nats-", which could hide a header from the
// server.
func EncodeHeaderValue(s string) string {
	clean := firstUnfit(s)
	if clean == len(s) {
		return s
	}
	out := make([]byte, clean, len(s)+16)
	copy(out, s)
	for i := clean; i < len(s); {
		size, fit := fitRune(s, i)
		for ; size > 0; size-- {
			if fit {
				out = append(out, s[i])
			} else {
				out = appendEscaped(out, s[i])
			}
			i++
		}
	}
	return string(out)
}

// DecodeHeaderValue is the inverse of EncodeHeaderValue. It returns an error
// for a percent sign that two hexadecimal digits do not follow.
func DecodeHeaderValue(value string) (string, error) { return unescape(value) }

// firstUnfit returns the index of the first rune to escape, or len(s).
func firstUnfit(s string) int {
	for i := 0; i < len(s); {
		size, fit := fitRune(s, i)
		if !fit {
			return i
		}
		i += size
	}
	return len(s)
}

// fitRune returns the length of the rune at s[i], and whether it may stay as
// it is.
func fitRune(s string, i int) (size int, fit bool) {
	if c := s[i]; c > ' ' && c < 0x7f {
		return 1, c != '%' && (c != 'N' || !strings.HasPrefix(s[i:], reservedNATS))
	}
	r, size := utf8.DecodeRuneInString(s[i:])
	switch {
	case r == utf8.RuneError && size == 1:
		return size, false
	case unicode.IsControl(r), r == '\u2028', r == '\u2029':
		return size, false
	case unicode.IsSpace(r):
		return size, i > 0 && i+size < len(s)
	}
	return size, true
}

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
func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
