package excerpt_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-outbox/go-outbox/stream/excerpt"
)

// What an error shows of a value is short, and text.
func TestOf(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("x", 100), strings.Repeat("x", 101), strings.Repeat("é", 1000), strings.Repeat("\xff", 1000), "\xc3", strings.Repeat("x", 96) + "日本"} {
		got := excerpt.Of(s)
		if len(got) > excerpt.Most || !utf8.ValidString(got) {
			t.Errorf("Of(%.20q…) has %d bytes: %q", s, len(got), got)
		}
		if len(s) <= excerpt.Most && utf8.ValidString(s) && got != s {
			t.Errorf("Of(%q) = %q", s, got)
		}
	}
}
