package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Prefixes that a row's own headers may not have, in any case.
const (
	// ReservedNATS starts the names that command the server.
	ReservedNATS = "Nats-"
	// ReservedOutbox starts the names of the relay's own headers.
	ReservedOutbox = "Outbox-"
	// ReservedCloudEvents starts the names of a CloudEvent's attributes, which
	// are the relay's while it makes CloudEvents.
	ReservedCloudEvents = "ce-"
)

// Rules are what a row's own headers have to keep to. The zero value has what
// every relay demands.
type Rules struct {
	// CloudEvents reserves the names that start with ce-.
	CloudEvents bool
}

// ValidateHeaders says whether a row's own headers can be published. Accepted
// is a JSON object of names to a string, a number, a boolean (both become
// their JSON text) or an array of these; also nothing, and null.
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
func (r Rules) ValidateHeaders(doc []byte) error {
	return r.Each(doc, func(string, string) {})
}

// Each passes on the headers of a row that are in order, and returns what is
// wrong with the others.
func (r Rules) Each(doc []byte, add func(name, value string)) error {
	if len(doc) == 0 {
		return nil
	}
	if r.eachPlain(string(doc), add) {
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(doc, &fields); err != nil {
		// The decoder's text may quote the document.
		return errors.New("headers: not a JSON object")
	}
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		texts, err := values(fields[name])
		if err == nil {
			err = r.Check(name, texts...)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("header %q: %w", name, err))
			continue
		}
		for _, value := range texts {
			add(name, value)
		}
	}
	return errors.Join(faults...)
}

// eachPlain does the work of Each, in a third of the time, for what
// nearly all rows have: a few faultless headers with one plain string each. It
// passes on all of them, or none and returns false.
func (r Rules) eachPlain(doc string, add func(name, value string)) bool {
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
		if r.Check(h.name, h.value) != nil {
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

// Check says what is wrong with one header; nil if nothing.
func (r Rules) Check(name string, values ...string) error {
	switch {
	case !validName(name):
		return errors.New("not a header name: it takes visible ASCII less \"(),/:;<=>?@[\\]{}")
	case HasPrefixFold(name, ReservedNATS):
		return errors.New("names that start with Nats- are commands to the server")
	case HasPrefixFold(name, ReservedOutbox):
		return errors.New("names that start with Outbox- are the relay's")
	case r.CloudEvents && HasPrefixFold(name, ReservedCloudEvents):
		return errors.New("names that start with ce- are the relay's while it makes CloudEvents")
	case HidesHeader(name):
		return errors.New("would hide the event's ID from the server")
	}
	for _, value := range values {
		switch {
		case strings.ContainsAny(value, "\r\n\x00"):
			return errors.New("the value has a CR, LF or NUL")
		case HidesHeader(value):
			return errors.New("the value would hide the event's ID from the server")
		}
	}
	return nil
}

// values reads the value of one field of a row's headers.
func values(raw json.RawMessage) ([]string, error) {
	if raw[0] != '[' {
		value, err := scalar(raw)
		return []string{value}, err
	}
	var elements []json.RawMessage
	if err := json.Unmarshal(raw, &elements); err != nil {
		return nil, errors.New("not an array")
	}
	texts := make([]string, len(elements))
	for i, element := range elements {
		var err error
		if texts[i], err = scalar(element); err != nil {
			return nil, err
		}
	}
	return texts, nil
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

// validName says whether nats.go sends a header of this name: ADR-4's
// visible ASCII without the colon, less what nats.go refuses besides.
func validName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return name != ""
}

// HidesHeader says whether a text in a header block would keep the server
// from finding a header that we rely upon.
//
// The server searches the block for a header's name. When it meets the name
// elsewhere it searches on after it, and there takes a match within the first
// two bytes for "no such header" (getHeaderKeyIndex in its client.go). So a
// value "Nats-Msg-IdNats-Msg-Id", standing before the real header, switches
// the recognition of duplicates off.
func HidesHeader(s string) bool {
	for {
		i := strings.Index(s, ReservedNATS)
		if i < 0 {
			return false
		}
		s = s[i:]
		gap := strings.Index(s[1:], ReservedNATS) + 1
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

// CheckStatus refuses the header "Status" on an event without data.
func CheckStatus(name string, data []byte) error {
	if name == "Status" && len(data) == 0 {
		// Clients tell a server's "no messages", "timeout" and so on by just this.
		return errors.New(`header "Status": on an event without data, consumers take it for a message of the server`)
	}
	return nil
}

// HasPrefixFold is strings.HasPrefix without regard to ASCII case.
func HasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
