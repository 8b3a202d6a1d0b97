package event

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// EncodeValue makes any text fit for a header's value. Text stays
// readable as the UTF-8 it is; what a NATS header cannot carry becomes %XX,
// byte by byte, and so does the percent sign. Escaped are: control characters
// and line separators, white space at either end (it would be trimmed), bytes
// that are not UTF-8, and the N of "Nats-", which could hide a header from the
// server.
func EncodeValue(s string) string {
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
		return 1, c != '%' && (c != 'N' || !strings.HasPrefix(s[i:], ReservedNATS))
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

// appendEscaped appends %XX.
func appendEscaped(dst []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	return append(dst, '%', digits[c>>4], digits[c&15])
}
