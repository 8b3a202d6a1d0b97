package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Insert adds events to the default outbox, public.outbox, in tx. They are published once tx commits, in
// this order; if it rolls back they never were. See [Table.Insert].
func Insert(ctx context.Context, tx pgx.Tx, events ...Event) error {
	return Table{}.Insert(ctx, tx, events...)
}

// InsertSQL is [Insert] for a database/sql transaction of any Postgres driver.
func InsertSQL(ctx context.Context, tx *sql.Tx, events ...Event) error {
	return Table{}.InsertSQL(ctx, tx, events...)
}

// Insert adds events to this outbox in tx, in the order given: one statement, whatever their number. No
// events are no statement. An invalid event is refused before anything is sent, so tx stays usable.
//
// To keep the order of an aggregate's events across transactions, lock the aggregate's own row first
// (UPDATE or SELECT … FOR UPDATE) and insert the event after it, as one does anyway when the event tells
// of a change.
func (t Table) Insert(ctx context.Context, tx pgx.Tx, events ...Event) error {
	if tx == nil {
		return errors.New("insert into the outbox: the transaction is nil")
	}
	rows, err := rows(events)
	if err != nil {
		return fmt.Errorf("insert into outbox %s: %w", t, err)
	}
	switch len(rows) {
	case 0:
		return nil
	case 1:
		_, err = tx.Exec(ctx, t.insertOne(), rows[0].args()...)
	default:
		c := columns(rows)
		_, err = tx.Exec(ctx, t.insertMany(), c.ids, c.topics, c.aggregateTypes, c.aggregateIDs, c.eventTypes, c.data, c.headers)
	}
	role := ""
	if isPrivilege(err) && tx.Conn() != nil { // Not every Tx is pgx's own.
		role = tx.Conn().Config().User
	}
	return t.explainTo(role, "insert into outbox "+t.String(), err)
}

// InsertSQL is [Table.Insert] for a database/sql transaction of any Postgres driver.
func (t Table) InsertSQL(ctx context.Context, tx *sql.Tx, events ...Event) error {
	if tx == nil {
		return errors.New("insert into the outbox: the transaction is nil")
	}
	rows, err := rows(events)
	if err != nil {
		return fmt.Errorf("insert into outbox %s: %w", t, err)
	}
	switch len(rows) {
	case 0:
		return nil
	case 1:
		args := rows[0].args()
		args[0] = rows[0].id.String() // Every driver knows text; not every driver knows [16]byte.
		_, err = tx.ExecContext(ctx, t.insertOne(), args...)
	default:
		_, err = tx.ExecContext(ctx, t.insertMany(), columns(rows).literals()...)
	}
	return t.explain("insert into outbox "+t.String(), err)
}

const insertColumns = "(id, topic, aggregate_type, aggregate_id, event_type, data, headers)"

func (t Table) insertOne() string {
	return "insert into " + t.outbox() + " " + insertColumns + " values ($1, $2, $3, $4, $5, $6, $7)"
}

// insertMany names all types and functions with their schema: it runs on the caller's connection, whose search_path may lead
// to others first.
func (t Table) insertMany() string {
	// Identity values are drawn in the order in which the rows arrive, hence the ORDER BY.
	return "insert into " + t.outbox() + " " + insertColumns + `
select id, topic, aggregate_type, aggregate_id, event_type, data, headers::pg_catalog.jsonb
  from rows from (
           pg_catalog.unnest($1::pg_catalog.uuid[]), pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.text[]),
           pg_catalog.unnest($4::pg_catalog.text[]), pg_catalog.unnest($5::pg_catalog.text[]), pg_catalog.unnest($6::pg_catalog.bytea[]),
           pg_catalog.unnest($7::pg_catalog.text[])) with ordinality
       as event (id, topic, aggregate_type, aggregate_id, event_type, data, headers, n)
 order by n`
}

func (r row) args() []any {
	return []any{r.id, r.event.Topic, r.event.AggregateType, r.event.AggregateID, r.event.EventType, r.data, r.headers}
}

// batch holds many rows column by column.
type batch struct {
	ids                                              [][16]byte // Which pgx encodes faster than a uuid.UUID.
	topics, aggregateTypes, aggregateIDs, eventTypes []string
	data                                             [][]byte
	headers                                          []*string
}

func columns(rows []row) batch {
	n := len(rows)
	b := batch{
		ids:            make([][16]byte, n),
		topics:         make([]string, n),
		aggregateTypes: make([]string, n),
		aggregateIDs:   make([]string, n),
		eventTypes:     make([]string, n),
		data:           make([][]byte, n),
		headers:        make([]*string, n),
	}
	for i, r := range rows {
		b.ids[i] = r.id
		b.topics[i], b.aggregateTypes[i], b.aggregateIDs[i], b.eventTypes[i] = r.event.Topic, r.event.AggregateType, r.event.AggregateID, r.event.EventType
		b.data[i], b.headers[i] = r.data, r.headers
	}
	return b
}

// literals renders the columns as array literals: database/sql has no arrays, and each driver another way
// round that, but text is understood by all.
func (b batch) literals() []any {
	ids := make([]string, len(b.ids))
	data := make([]string, len(b.data))
	for i := range b.ids {
		ids[i], data[i] = uuid.UUID(b.ids[i]).String(), `\x`+hex.EncodeToString(b.data[i])
	}
	return []any{
		arrayLiteral(ids), arrayLiteral(b.topics), arrayLiteral(b.aggregateTypes), arrayLiteral(b.aggregateIDs),
		arrayLiteral(b.eventTypes), arrayLiteral(data), nullableArrayLiteral(b.headers),
	}
}

var arrayEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`) //nolint:gochecknoglobals // Immutable.

func arrayLiteral(values []string) string {
	pointers := make([]*string, len(values))
	for i := range values {
		pointers[i] = &values[i]
	}
	return nullableArrayLiteral(pointers)
}

func nullableArrayLiteral(values []*string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		if v == nil {
			b.WriteString("NULL")
			continue
		}
		b.WriteByte('"')
		_, _ = arrayEscaper.WriteString(&b, *v) // A strings.Builder never fails.
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}
