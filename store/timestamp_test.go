package store_test

import (
	"encoding/json"
	"testing"

	"github.com/go-outbox/go-outbox/store"
)

// Whatever Postgres takes for a timestamp has a text, and comes back from JSON as it was.
func TestTimestamps(t *testing.T) {
	f := newFixture(t, store.Options{})
	for value, want := range map[string]string{
		"infinity":                       "infinity",
		"-infinity":                      "-infinity",
		"4713-11-24 00:00:00+00 BC":      "4713-11-24T00:00:00Z BC",
		"0001-12-31 23:59:59+00 BC":      "0001-12-31T23:59:59Z BC",
		"0001-01-01 00:00:00+00":         "0001-01-01T00:00:00Z",
		"2026-01-02 03:04:05.678901+01":  "2026-01-02T02:04:05.678901Z",
		"9999-12-31 23:59:59.999999+00":  "9999-12-31T23:59:59.999999Z",
		"10000-01-01 00:00:00+00":        "10000-01-01T00:00:00Z",
		"294276-12-31 23:59:59.999999+0": "294276-12-31T23:59:59.999999Z",
	} {
		var got store.Timestamp
		if err := f.conn.QueryRow(t.Context(), `select '`+value+`'::timestamptz`).Scan(&got); err != nil {
			t.Errorf("%s: %v", value, err)
			continue
		}
		text, err := json.Marshal(got)
		if err != nil || string(text) != `"`+want+`"` {
			t.Errorf("%s: got %s, %v, want %q", value, text, err, want)
		}
		var back store.Timestamp
		if err := json.Unmarshal(text, &back); err != nil || back.Infinite != got.Infinite || !back.Time.Equal(got.Time) {
			t.Errorf("%s came back as %v, %v", got, back, err)
		}
	}
	var none store.Timestamp
	for _, text := range []string{`"tomorrow"`, `1`} {
		if err := json.Unmarshal([]byte(text), &none); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}
