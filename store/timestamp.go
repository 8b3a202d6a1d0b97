package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Timestamp is a moment as Postgres has it. There are more of them than of [time.Time] in RFC 3339: infinite ones, and
// years before 1 and after 9999.
type Timestamp struct {
	// Time is zero if the timestamp is infinite.
	Time time.Time
	// Infinite is 1 for infinity, -1 for -infinity, and 0 otherwise.
	Infinite int
}

// ScanTimestamptz implements [pgtype.TimestamptzScanner].
func (t *Timestamp) ScanTimestamptz(v pgtype.Timestamptz) error {
	*t = Timestamp{Infinite: int(v.InfinityModifier)}
	if v.Valid && t.Infinite == 0 {
		t.Time = v.Time.UTC()
	}
	return nil
}

// String returns it in the form of RFC 3339 where it has one, and otherwise similar to what Postgres writes.
func (t Timestamp) String() string { return t.Format(time.RFC3339Nano) }

// Format is String with another layout than [time.RFC3339Nano].
func (t Timestamp) Format(layout string) string {
	at := t.Time.UTC()
	switch {
	case t.Infinite > 0:
		return "infinity"
	case t.Infinite < 0:
		return "-infinity"
	case at.Year() < 1: // There is no year 0: 1 BC precedes 1 AD.
		return fmt.Sprintf("%04d-%02d-%02dT%02d:%02d:%02dZ BC", 1-at.Year(), at.Month(), at.Day(), at.Hour(), at.Minute(), at.Second())
	}
	return at.Format(layout)
}

// MarshalJSON implements [json.Marshaler]: it is the string.
func (t Timestamp) MarshalJSON() ([]byte, error) {
	return json.Marshal(t.String())
}

// UnmarshalJSON implements [json.Unmarshaler]: it reads what MarshalJSON writes, and RFC 3339.
func (t *Timestamp) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("timestamp: %w", err)
	}
	switch text {
	case "infinity":
		*t = Timestamp{Infinite: 1}
		return nil
	case "-infinity":
		*t = Timestamp{Infinite: -1}
		return nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		at, err = parseFar(text)
	}
	*t = Timestamp{Time: at.UTC()}
	return err
}

// parseFar reads a time in a year that RFC 3339 does not know.
func parseFar(text string) (time.Time, error) {
	text, before := strings.CutSuffix(text, " BC")
	var year, month, day, hour, minute int
	var seconds float64
	if _, err := fmt.Sscanf(text, "%d-%d-%dT%d:%d:%fZ", &year, &month, &day, &hour, &minute, &seconds); err != nil {
		return time.Time{}, fmt.Errorf("timestamp %q: %w", text, err)
	}
	if before {
		year = 1 - year
	}
	at := time.Date(year, time.Month(month), day, hour, minute, 0, 0, time.UTC)
	return at.Add(time.Duration(seconds * float64(time.Second)).Round(time.Microsecond)), nil
}
