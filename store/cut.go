package store

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// What commands for operators read is bounded, since any column may hold up to a gigabyte. It is cut in SQL, where that
// reads no more of a large value than its beginning.
type bounds struct {
	text    int // Characters of each text.
	headers int // Bytes of the headers, roughly; longer ones are left out, as half a JSON object is none.
	data    int // Bytes of the payload.
}

var (
	// listBounds are for lists: a page of hundreds is in memory. Honest ids and errors are shorter.
	listBounds = bounds{text: 2000, headers: 16 << 10} //nolint:gochecknoglobals // Immutable.
	// showBounds are for a single event.
	showBounds = bounds{text: 1 << 20, headers: 1 << 20, data: 16 << 20} //nolint:gochecknoglobals // Immutable.
)

// textOf is the beginning of a text as bytes in UTF-8, one character more than allowed. Where the database does not know
// its own encoding the bytes are what they are, and Postgres must not be asked to convert them: it would refuse.
func (b bounds) textOf(column string) string {
	return encoded(fmt.Sprintf("left(%s, %d)", column, b.text+1))
}

// headersOf is a JSON text in bytes: null if there is none, and empty if it is too long. What is compressed is at most
// about a hundred times as long when it is not.
func (b bounds) headersOf(column string) string {
	return fmt.Sprintf(`case when pg_column_size(%[1]s) > %[2]d then ''::bytea
            when octet_length(%[1]s::text) > %[2]d then ''::bytea else %[3]s end`, column, b.headers, encoded(column+"::text"))
}

func (b bounds) dataOf(column string) string {
	if b.data == 0 {
		return "''::bytea"
	}
	return fmt.Sprintf("substring(%s from 1 for %d)", column, b.data)
}

func encoded(text string) string {
	return "convert_to(" + text + ", case when getdatabaseencoding() = 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end)"
}

// cutText returns what textOf has read, and whether it is cut.
func (b bounds) cutText(read []byte) (text string, cut bool) {
	text = strings.ToValidUTF8(string(read), "\uFFFD")
	if utf8.RuneCountInString(text) <= b.text {
		return text, false
	}
	at := 0
	for range b.text {
		_, size := utf8.DecodeRuneInString(text[at:])
		at += size
	}
	return text[:at], true
}

// columnText is where the text of a column belongs.
type columnText struct {
	name string
	to   *string
}

// cutTexts puts texts that textOf has read where they belong, and notes in cut which were cut.
func (b bounds) cutTexts(cut *[]string, read [][]byte, columns []columnText) {
	for i, column := range columns {
		text, more := b.cutText(read[i])
		*column.to = text
		if more {
			*cut = append(*cut, column.name)
		}
	}
}

// cutHeaders returns what headersOf has read, as valid JSON, and notes in to if that is cut.
func (b bounds) cutHeaders(read []byte, to *[]string) []byte {
	switch {
	case read == nil:
		return nil
	case len(read) == 0:
		*to = append(*to, "headers")
		return nil
	}
	return bytes.ToValidUTF8(read, []byte("\uFFFD"))
}
