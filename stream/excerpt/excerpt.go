// Package excerpt makes values fit to be shown in an error: a value that comes from a row or from the network may be of
// any length, and need not be text.
package excerpt

import (
	"strings"
	"unicode/utf8"
)

// Most is how many bytes Of returns at most.
const Most = 100

// Of returns the beginning of a value as valid UTF-8, with an ellipsis if it was cut.
func Of(s string) string { return To(s, Most) }

// To is Of for at most that many bytes, which must be 3 or more.
func To(s string, most int) string {
	if len(s) > most {
		end := most - len("…")
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}
		return strings.ToValidUTF8(s[:end], "?") + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
