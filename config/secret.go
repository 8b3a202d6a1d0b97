package config

import "fmt"

// Secret is a connection string, which may have a password or a token in it. It prints as "xxxxx", whatever the verb and
// the encoding; convert it to a string to use it. [Field.Value] shows what is not secret of it.
type Secret string

// hidden stands for what is not shown.
const hidden = "xxxxx"

// String returns "xxxxx", or nothing if s is empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// Format prints what String returns. A Stringer alone would not do: fmt asks it for some verbs only, and prints the value
// itself for %#v or a mistaken %d.
func (s Secret) Format(state fmt.State, verb rune) {
	_, _ = fmt.Fprintf(state, fmt.FormatString(state, verb), s.String()) // As fmt itself, which has nobody to tell.
}

// MarshalText returns what String returns, for encoding/json and log/slog. Its error is nil.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
