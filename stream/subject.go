package stream

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits of the subjects that a Template makes, in bytes.
const (
	// MaxToken is the length of the longest token. A longer one is replaced by a
	// hash.
	MaxToken = 112

	// MaxSubject is the length of the longest subject. A server closes the
	// connection for good on a protocol line of more than 4096 bytes, so the
	// cap leaves room for reply subjects and for operators' tighter limits.
	MaxSubject = 512
)

// DefaultTemplate is the template that ParseTemplate takes for an empty text.
const DefaultTemplate = "outbox.{topic}.{aggregate_type}.{aggregate_id}"

// Tokens that no encoded value can be: in an encoded value, two upper-case hexadecimal
// digits follow each percent sign.
const (
	tokenEmpty   = "%-"
	tokenHashed  = "%h"
	tokenControl = "%fence"
)

// hashedLen is the length of a token that stands for a hash.
const hashedLen = len(tokenHashed) + (sha256.Size*8+5)/6

// ErrHashed says that a token is the hash of a value that is too long for a subject.
// The value itself is in the message's header; Decode reads it.
var ErrHashed = errors.New("token is a hash: the raw value is in the header")

// A Template makes subjects from events. The zero Template makes none;
// ParseTemplate returns a useful one.
//
// The mapping is injective: two events have the same subject if, and only if,
// they agree in every field that the template names.
type Template struct {
	text   string
	tokens []templateToken
}

// templateToken is either a literal or the place of one of an event's fields.
type templateToken struct {
	field   templateField
	literal string // of fieldLiteral
}

type templateField uint8

const (
	fieldLiteral templateField = iota
	fieldTopic
	fieldAggregateType
	fieldAggregateID
	fieldEventType
)

// parseField returns the field that a placeholder such as {topic} names.
func parseField(placeholder string) (templateField, bool) {
	switch placeholder {
	case "{topic}":
		return fieldTopic, true
	case "{aggregate_type}":
		return fieldAggregateType, true
	case "{aggregate_id}":
		return fieldAggregateID, true
	case "{event_type}":
		return fieldEventType, true
	}
	return fieldLiteral, false
}

// ParseTemplate reads a subject template such as DefaultTemplate, which an
// empty text stands for. Its tokens are literals and the placeholders {topic},
// {aggregate_type}, {aggregate_id} and {event_type}, each at most once.
//
// A placeholder must be a whole token, otherwise different events could share
// a subject. The first token must be a literal, so that the stream can be told
// to listen on something narrower than everything. No subject that the
// template makes is longer than MaxSubject.
func ParseTemplate(text string) (Template, error) {
	if text == "" {
		text = DefaultTemplate
	}
	t := Template{text: text}
	length := -1 // one dot fewer than tokens
	for token := range strings.SplitSeq(text, ".") {
		tok, err := parseTemplateToken(token)
		if err != nil {
			return Template{}, fmt.Errorf("subject template %q: %w", text, err)
		}
		if tok.field == fieldLiteral {
			length += len(tok.literal) + 1
		} else {
			length += MaxToken + 1
			if slices.Contains(t.tokens, tok) {
				return Template{}, fmt.Errorf("subject template %q: %s is used twice", text, token)
			}
		}
		t.tokens = append(t.tokens, tok)
	}

	switch first := t.tokens[0]; {
	case first.field != fieldLiteral:
		return Template{}, fmt.Errorf("subject template %q: the first token must be a literal, such as outbox", text)
	case first.literal == "_INBOX", first.literal == "_R_", first.literal == "_GR_":
		return Template{}, fmt.Errorf("subject template %q: %s is reserved by NATS", text, first.literal)
	case first.literal == controlPrefix:
		return Template{}, fmt.Errorf("subject template %q: %s is where the relay keeps its own messages: take another first token, such as outbox", text, first.literal)
	}
	if !slices.ContainsFunc(t.tokens, func(tok templateToken) bool { return tok.field != fieldLiteral }) {
		return Template{}, fmt.Errorf("subject template %q: needs a placeholder: {topic}, {aggregate_type}, {aggregate_id} or {event_type}", text)
	}
	if length > MaxSubject {
		return Template{}, fmt.Errorf("subject template %q: subjects could have %d bytes, more than %d: shorten the literals", text, length, MaxSubject)
	}
	return t, nil
}

func parseTemplateToken(token string) (templateToken, error) {
	if token == "" {
		return templateToken{}, errors.New("has an empty token")
	}
	if field, ok := parseField(token); ok {
		return templateToken{field: field}, nil
	}
	if strings.HasPrefix(token, "{") && strings.Index(token, "}") == len(token)-1 {
		return templateToken{}, fmt.Errorf("unknown placeholder %s: want {topic}, {aggregate_type}, {aggregate_id} or {event_type}", token)
	}
	if strings.ContainsAny(token, "{}") {
		return templateToken{}, fmt.Errorf("token %q: a placeholder must be a whole token, between dots", token)
	}
	for i := range len(token) {
		if !plain(token[i]) {
			return templateToken{}, fmt.Errorf("token %q: only letters, digits and -_~=:@ may stand in a literal", token)
		}
	}
	return templateToken{literal: token}, nil
}

// IsZero reports whether it is the zero Template, which makes no subjects.
func (t Template) IsZero() bool { return len(t.tokens) == 0 }

// String returns the template's text.
func (t Template) String() string { return t.text }

// Subject returns the event's subject: valid to publish to, without wildcards,
// and of at most MaxSubject bytes.
func (t Template) Subject(ev *Event) string {
	// On the stack: one allocation, for the string.
	return string(t.AppendSubject(make([]byte, 0, MaxSubject), ev))
}

// AppendSubject appends the event's subject to dst and returns it. It does not
// allocate when dst has room and no field is so long that it is hashed.
func (t Template) AppendSubject(dst []byte, ev *Event) []byte {
	for i, tok := range t.tokens {
		if i > 0 {
			dst = append(dst, '.')
		}
		switch tok.field {
		case fieldLiteral:
			dst = append(dst, tok.literal...)
		case fieldTopic:
			dst = AppendToken(dst, ev.Topic)
		case fieldAggregateType:
			dst = AppendToken(dst, ev.AggregateType)
		case fieldAggregateID:
			dst = AppendToken(dst, ev.AggregateID)
		case fieldEventType:
			dst = AppendToken(dst, ev.EventType)
		}
	}
	return dst
}

// Filter returns the narrowest subject with wildcards that matches all that
// the template can make, such as "outbox.*.*.*".
func (t Template) Filter() string {
	return t.fill(func(int) string { return "*" })
}

// StreamSubject returns the subject of a stream that is made for this template:
// everything below the leading literals, such as "outbox.>". It covers Filter, and
// still does if the template later gains a token.
func (t Template) StreamSubject() string {
	var b strings.Builder
	for _, tok := range t.tokens {
		if tok.field != fieldLiteral {
			break
		}
		b.WriteString(tok.literal)
		b.WriteByte('.')
	}
	b.WriteByte('>')
	return b.String()
}

// ControlSubject returns the subject, among those of the events, of the messages that
// a relay writes for itself: one for each name, such as that of an outbox. Filter
// matches it, so that a stream which takes the events takes these messages, too. No
// event has this subject.
func (t Template) ControlSubject(name string) string {
	last := 0
	for i, tok := range t.tokens {
		if tok.field != fieldLiteral {
			last = i
		}
	}
	token := EncodeToken(name)
	if len(tokenControl)+1+len(token) > MaxToken {
		token = string(appendHash(nil, name))
	}
	return t.fill(func(i int) string {
		if i == last {
			return tokenControl + "-" + token
		}
		return tokenControl
	})
}

// Match reports whether a subject is among those of the events, as Filter has them: that
// of an event, or that of a message which a relay writes for itself (ControlSubject).
func (t Template) Match(subject string) (event, control bool) {
	if !covers(t.Filter(), subject) {
		return false, false
	}
	control = strings.Contains(subject, tokenControl)
	return !control, control
}

// fill joins the template's tokens, the placeholders replaced.
func (t Template) fill(with func(i int) string) string {
	tokens := make([]string, len(t.tokens))
	for i, tok := range t.tokens {
		if tokens[i] = tok.literal; tok.field != fieldLiteral {
			tokens[i] = with(i)
		}
	}
	return strings.Join(tokens, ".")
}

// EncodeToken turns any text into one token of a subject, injectively:
//
//   - ASCII letters and digits and - _ ~ = : @ stand for themselves;
//   - every other byte becomes %XX, upper-case hexadecimal: the dot and the
//     wildcards, white space and control characters, and also bytes that are legal
//     in a subject but special elsewhere: $ and {} (subject mappings), / + #
//     (MQTT), the comma (lists in tools), quotes and what is special to a shell;
//   - the empty text becomes %-;
//   - a text whose token would exceed MaxToken becomes %h and its SHA-256 in
//     unpadded base64url, 45 bytes.
func EncodeToken(s string) string {
	if s != "" && len(s) <= MaxToken && firstEscaped(s) == len(s) {
		return s
	}
	return string(AppendToken(make([]byte, 0, MaxToken), s))
}

// AppendToken appends the token that EncodeToken returns to dst.
func AppendToken(dst []byte, s string) []byte {
	if s == "" {
		return append(dst, tokenEmpty...)
	}
	if len(s) > MaxToken {
		return appendHash(dst, s)
	}

	clean := firstEscaped(s)
	start := len(dst)
	dst = append(dst, s[:clean]...)
	for i := clean; i < len(s); i++ {
		if plain(s[i]) {
			dst = append(dst, s[i])
		} else {
			dst = appendEscaped(dst, s[i])
		}
	}
	if len(dst)-start > MaxToken {
		return appendHash(dst[:start], s)
	}
	return dst
}

// DecodeToken returns the text that EncodeToken made the token from, or ErrHashed if
// the token is a hash. It returns an error for a token that EncodeToken does not make.
func DecodeToken(token string) (string, error) {
	if token == tokenEmpty {
		return "", nil
	}
	if hash, ok := strings.CutPrefix(token, tokenHashed); ok && len(token) == hashedLen {
		if _, err := base64.RawURLEncoding.Strict().DecodeString(hash); err == nil {
			return "", ErrHashed
		}
	}
	s, err := unescape(token)
	if err != nil || EncodeToken(s) != token {
		return "", fmt.Errorf("token %q: not an encoded value", token)
	}
	return s, nil
}

func appendHash(dst []byte, s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.AppendEncode(append(dst, tokenHashed...), sum[:])
}

// plain says whether a byte stands for itself in a token.
func plain(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	case c == '-', c == '_', c == '~', c == '=', c == ':', c == '@':
		return true
	}
	return false
}

// firstEscaped returns the index of the first byte to escape, or len(s).
func firstEscaped(s string) int {
	for i := range len(s) {
		if !plain(s[i]) {
			return i
		}
	}
	return len(s)
}

// appendEscaped appends %XX.
func appendEscaped(dst []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	return append(dst, '%', digits[c>>4], digits[c&15])
}

// unescape replaces every %XX; both cases of the digits will do.
func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 {
		return s, nil
	}
	raw := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			raw = append(raw, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("percent sign without two hexadecimal digits")
		}
		high, low := unhex(s[i+1]), unhex(s[i+2])
		if high > 15 || low > 15 {
			return "", errors.New("percent sign without two hexadecimal digits")
		}
		raw = append(raw, high<<4|low)
		i += 2
	}
	return string(raw), nil
}

// unhex returns the value of a hexadecimal digit, or 255.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}
