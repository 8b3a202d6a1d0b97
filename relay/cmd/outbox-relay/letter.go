package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/store"
)

// letter is a dead letter as dead list --json shows it. Programs read this: fields may be added, not changed.
type letter struct {
	Seq           int64           `json:"seq"`
	ID            uuid.UUID       `json:"id"`
	Topic         string          `json:"topic"`
	AggregateType string          `json:"aggregate_type"`
	AggregateID   string          `json:"aggregate_id"`
	EventType     string          `json:"event_type"`
	Headers       json.RawMessage `json:"headers"`    // An object, or null.
	CreatedAt     store.Timestamp `json:"created_at"` // As in RFC 3339, except for what has no such form: "infinity", for example.
	Attempts      int             `json:"attempts"`
	LastError     string          `json:"last_error"`
	DiedAt        store.Timestamp `json:"died_at"`
	Letter        *int64          `json:"letter"` // Null if it could not be moved out of the outbox.
	DataBytes     int64           `json:"data_bytes"`
	Cut           []string        `json:"cut,omitempty"` // Fields that were cut; headers are null instead.
}

// detail is a dead letter as dead show --json shows it.
type detail struct {
	letter

	Data []byte  `json:"data"` // In base64.
	Text *string `json:"text"` // The same as text, or null if it is not UTF-8 or cut.
}

func letterOf(d *store.DeadLetter) letter {
	l := letter{
		Seq:           d.Seq,
		ID:            d.ID,
		Topic:         d.Topic,
		AggregateType: d.AggregateType,
		AggregateID:   d.AggregateID,
		EventType:     d.EventType,
		Headers:       d.Headers,
		CreatedAt:     d.CreatedAt,
		Attempts:      d.Attempts,
		LastError:     d.LastError,
		DiedAt:        d.DiedAt,
		DataBytes:     d.DataSize,
		Cut:           d.Cut,
	}
	if !d.Kept {
		l.Letter = &d.Letter
	}
	return l
}

func detailOf(d *store.DeadLetter) detail {
	full := detail{letter: letterOf(d), Data: d.Data}
	if full.Data == nil {
		full.Data = []byte{} // Nil would be null.
	}
	if utf8.Valid(d.Data) && int64(len(d.Data)) == d.DataSize {
		text := string(d.Data)
		full.Text = &text
	}
	return full
}

// listing writes dead letters page by page.
type listing interface {
	add(letters []store.DeadLetter) error
	end() error
}

// table is a listing for a person.
type table struct {
	columns *tabwriter.Writer
	out     io.Writer
	rows    int
}

func newTable(w io.Writer) *table {
	return &table{columns: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), out: w}
}

func (t *table) add(letters []store.DeadLetter) error {
	if t.rows == 0 {
		fmt.Fprintln(t.columns, "SEQ\tID\tLETTER\tTOPIC\tAGGREGATE TYPE\tAGGREGATE ID\tEVENT TYPE\tATTEMPTS\tDIED AT\tLAST ERROR")
	}
	t.rows += len(letters)
	for i := range letters {
		d := &letters[i]
		fmt.Fprintf(t.columns, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", d.Seq, d.ID, letterNumber(d),
			brief(d.Topic), brief(d.AggregateType), brief(d.AggregateID), brief(d.EventType),
			d.Attempts, d.DiedAt.Format(time.RFC3339), visible(shorten(d.LastError, 200)))
	}
	return written(t.columns.Flush()) // It reports the errors of the lines above, too.
}

// letterNumber is a dead letter's own.
func letterNumber(d *store.DeadLetter) string {
	if d.Kept {
		return "in outbox"
	}
	return strconv.FormatInt(d.Letter, 10)
}

func (t *table) end() error {
	if t.rows == 0 {
		return printf(t.out, "no dead letters\n")
	}
	return nil
}

// array is a listing for a program, one letter a line.
type array struct {
	out  io.Writer
	rows int
}

func newArray(w io.Writer) *array { return &array{out: w} }

func (a *array) add(letters []store.DeadLetter) error {
	for i := range letters {
		separator := ",\n"
		if a.rows == 0 {
			separator = "[\n"
		}
		a.rows++
		object, err := marshal(letterOf(&letters[i]))
		if err != nil {
			return err
		}
		if err := printf(a.out, "%s%s", separator, object); err != nil {
			return err
		}
	}
	return nil
}

func (a *array) end() error {
	if a.rows == 0 {
		return printf(a.out, "[]\n")
	}
	return printf(a.out, "\n]\n")
}

// show writes all of one dead letter for a person.
func show(w io.Writer, d *store.DeadLetter) error {
	headers := "none"
	if d.Headers != nil {
		headers = visible(string(d.Headers))
	} else if slices.Contains(d.Cut, "headers") {
		headers = "too long to be shown"
	}
	place := strconv.FormatInt(d.Letter, 10)
	if d.Kept {
		place = "none: it is kept in the outbox, as it could not be moved, and not published any more"
	}
	text := func(column, value string) string {
		if slices.Contains(d.Cut, column) {
			return visible(value) + " … and more"
		}
		return visible(value)
	}
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(columns, "seq\t%d\n", d.Seq)
	fmt.Fprintf(columns, "id\t%s\n", d.ID)
	fmt.Fprintf(columns, "letter\t%s\n", place)
	fmt.Fprintf(columns, "topic\t%s\n", text("topic", d.Topic))
	fmt.Fprintf(columns, "aggregate type\t%s\n", text("aggregate_type", d.AggregateType))
	fmt.Fprintf(columns, "aggregate id\t%s\n", text("aggregate_id", d.AggregateID))
	fmt.Fprintf(columns, "event type\t%s\n", text("event_type", d.EventType))
	fmt.Fprintf(columns, "headers\t%s\n", headers)
	fmt.Fprintf(columns, "created at\t%s\n", d.CreatedAt)
	fmt.Fprintf(columns, "attempts\t%d\n", d.Attempts)
	fmt.Fprintf(columns, "died at\t%s\n", d.DiedAt)
	fmt.Fprintf(columns, "last error\t%s\n", text("last_error", d.LastError))
	if err := columns.Flush(); err != nil {
		return written(err)
	}
	return showData(w, d)
}

// showData writes the payload, or as much of it as a person may want to see.
func showData(w io.Writer, d *store.DeadLetter) error {
	const most = 64 << 10
	data, more := d.Data, ""
	if len(data) > most {
		data = data[:most]
		for len(data) > most-utf8.UTFMax && !utf8.Valid(data) {
			data = data[:len(data)-1] // A character may have been cut.
		}
	}
	if left := d.DataSize - int64(len(data)); left > 0 {
		more = fmt.Sprintf("… and %d bytes more\n", left)
	}
	if text := string(data); printable(strings.NewReplacer("\n", "", "\t", "").Replace(text)) {
		return printf(w, "\ndata, %d bytes:\n%s\n%s", d.DataSize, text, more)
	}
	return printf(w, "\ndata, %d bytes, in hexadecimal:\n%s%s", d.DataSize, hex.Dump(data), more)
}

// brief is visible for a column, which one long value must not widen for all. Dead show has the whole.
func brief(s string) string { return visible(shorten(s, 40)) }

// shorten cuts what has more characters.
func shorten(s string, most int) string {
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return s
}

// visible returns s as it is if a terminal shows just that, and quoted otherwise: control characters, which could
// rewrite what stands around them, white space at either end, nothing at all.
func visible(s string) string {
	if s == "" || strings.TrimSpace(s) != s || s[0] == '"' || !printable(s) {
		return strconv.Quote(s)
	}
	return s
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func writeJSON(w io.Writer, v any) error {
	text, err := marshal(v)
	if err != nil {
		return err
	}
	return printf(w, "%s\n", text)
}

// marshal is json.Marshal without the escapes that are for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// written names the operation of an error from writing a result.
func written(err error) error {
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func printf(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return written(err)
}

func eventCount(n int) string {
	if n == 1 {
		return "1 event"
	}
	return fmt.Sprintf("%d events", n)
}
