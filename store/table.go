package store

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// Defaults of a [Table].
const (
	// DefaultSchema is where the tables live unless a schema is named.
	DefaultSchema = "public"
	// DefaultName is the outbox table's name; the names of the others derive from it.
	DefaultName = "outbox"
)

// MaxNameLen is the longest table name in bytes: Postgres cuts identifiers at 63, and the longest name
// derived from it must still fit.
const MaxNameLen = 48

// Table names an outbox: its table, and by derivation everything that belongs to it. The zero value is
// "public"."outbox". Several outboxes can share a database, and even a schema, under different names.
type Table struct {
	// Schema defaults to DefaultSchema.
	Schema string
	// Name defaults to DefaultName.
	Name string
}

// ParseTable reads "table" or "schema.table". Names are taken as they are, so case matters and
// any character but dots and control characters may be part of them; the relay quotes them.
func ParseTable(s string) (Table, error) {
	t := Table{Schema: DefaultSchema, Name: s}
	if schema, name, ok := strings.Cut(s, "."); ok {
		t = Table{Schema: schema, Name: name}
	}
	if t.Name == "" || t.Schema == "" || strings.Contains(t.Name, ".") {
		return Table{}, fmt.Errorf(`table %q: want "table" or "schema.table"`, s)
	}
	if strings.TrimSpace(t.Name) != t.Name || strings.TrimSpace(t.Schema) != t.Schema {
		return Table{}, fmt.Errorf("table %q: a name begins or ends with a blank", s)
	}
	return t, t.validate()
}

func (t Table) validate() error {
	t = t.orDefault()
	for _, part := range []struct {
		what, name string
		most       int
	}{{"table", t.Name, MaxNameLen}, {"schema", t.Schema, 63}} {
		if len(part.name) > part.most {
			return fmt.Errorf("%s name %q: %d bytes, at most %d are possible", part.what, part.name, len(part.name), part.most)
		}
		if !utf8.ValidString(part.name) || strings.ContainsFunc(part.name, unicode.IsControl) {
			return fmt.Errorf("%s name %q: a zero byte, another control character or a byte that is not UTF-8 cannot be part of it", part.what, part.name)
		}
	}
	return nil
}

// String returns "schema.table".
func (t Table) String() string {
	t = t.orDefault()
	return t.Schema + "." + t.Name
}

func (t Table) orDefault() Table {
	if t.Schema == "" {
		t.Schema = DefaultSchema
	}
	if t.Name == "" {
		t.Name = DefaultName
	}
	return t
}

// LockKey is the second half of the leader's advisory lock (the first is the configured number): it tells
// two outboxes in one database apart.
func (t Table) LockKey() int32 {
	return int32(t.hash("leader"))
}

// wakeKey is the advisory lock that a sleeping relay holds.
func (t Table) wakeKey() int64 { return t.hash("wake") }

// recordLeaderKey is the advisory lock that makes relays take turns at recording who leads. Relays of other versions take
// the same one, so its name stays "office".
func (t Table) recordLeaderKey() int64 { return t.hash("office") }

// migrateKey is the advisory lock that makes migrations take turns.
func (t Table) migrateKey() int64 { return t.hash("migrate") }

// hash maps a role of this table to a lock number. It stands in the trigger function that the migration
// created, so it must never change.
func (t Table) hash(role string) int64 {
	sum := sha256.Sum256([]byte("go-outbox\x00" + role + "\x00" + t.orDefault().Schema + "\x00" + t.orDefault().Name))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// channel is the name that NOTIFY and LISTEN use: identifiers are at most 63 bytes, and two schemas may
// hold tables of one name.
func (t Table) channel() string {
	return fmt.Sprintf("outbox_%016x", uint64(t.wakeKey()))
}

// resigned is the channel on which a leader says that it leaves.
func (t Table) resigned() string { return t.channel() + "_resigned" }

// ResignChannel is the NOTIFY channel on which a leader tells standbys of its resignation.
func (t Table) ResignChannel() string { return t.resigned() }

func (t Table) outbox() string    { return t.quoted("") }
func (t Table) dead() string      { return t.quoted("_dead") }
func (t Table) relay() string     { return t.quoted("_relay") }
func (t Table) published() string { return t.quoted("_published") }

// candidatesTable is where relays say why they could not lead.
func (t Table) candidatesTable() string { return t.quoted("_candidates") }

// pause has a row while a person has paused the outbox.
func (t Table) pause() string { return t.quoted("_pause") }

func (t Table) migrations() string { return t.quoted("_migrations") }

// Statements read and change the rows of these tables alone ("only"): what somebody has put into a table that inherits from
// one of them may have the seq of another row, and has no index of ours.

// emit is the function by which producers insert from plain SQL; emitted is its helper.
func (t Table) emit() string    { return t.quoted("_emit") }
func (t Table) emitted() string { return t.quoted("_emitted") }

// summarize is the function that keeps the archive's indexes up to date.
func (t Table) summarize() string { return t.quoted("_summarize") }

// sequence is the one that seqs are drawn from, under the name that Postgres gives it.
func (t Table) sequence() string { return t.quoted("_seq_seq") }

// part is a part of the archive, by its number.
func (t Table) part(n int) string { return t.quoted("_published_" + strconv.Itoa(n)) }

// parts are the names of all parts of the archive.
func (t Table) parts() []string {
	names := make([]string, archiveParts)
	for i := range names {
		names[i] = t.part(i)
	}
	return names
}

func (t Table) quoted(suffix string) string {
	t = t.orDefault()
	return pgx.Identifier{t.Schema, t.Name + suffix}.Sanitize()
}

// sibling qualifies a quoted name with the table's schema.
func (t Table) sibling(quoted string) string { return quote(t.orDefault().Schema) + "." + quoted }

// unqualified quotes a name that SQL takes without a schema, such as an index to create.
func (t Table) unqualified(suffix string) string {
	return pgx.Identifier{t.orDefault().Name + suffix}.Sanitize()
}

// literal quotes a text as SQL does, whatever standard_conforming_strings says.
func literal(s string) string {
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return "E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}
