package harness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// HostileRow is a row of the outbox that no well-behaved producer writes: some of its columns have an extreme value, the
// others a usual one. [Extremes] has all extreme values, [ParseHostileRow] reads a row's text, and [HostileRows] draws rows.
type HostileRow []Extreme

// Extreme is an extreme value. Its expression may refer to i, the number of the copy, from 1 on.
type Extreme struct {
	Column, Name string

	SQL   string
	Large bool // It takes Postgres more than a moment to write it.
	Apart bool // It is about another row, so it is not drawn.
}

func (e Extreme) String() string { return e.Column + "=" + e.Name }

// String is the row's text, such as "seq=negative headers=scalar". An ordinary row's is "ordinary".
func (r HostileRow) String() string {
	if len(r) == 0 {
		return "ordinary"
	}
	var words []string
	for _, e := range r {
		words = append(words, e.String())
	}
	return strings.Join(words, " ")
}

// Large reports whether the row takes more than a moment to write.
func (r HostileRow) Large() bool {
	return slices.ContainsFunc(r, func(e Extreme) bool { return e.Large })
}

// Has reports whether the row has a certain extreme.
func (r HostileRow) Has(column, name string) bool {
	return slices.ContainsFunc(r, func(e Extreme) bool { return e.Column == column && e.Name == name })
}

// ParseHostileRow reads what String writes.
func ParseHostileRow(text string) (HostileRow, error) {
	var row HostileRow
	if text == "ordinary" {
		return row, nil
	}
	known := Extremes()
	for word := range strings.FieldsSeq(text) {
		i := slices.IndexFunc(known, func(e Extreme) bool { return e.String() == word })
		if i < 0 {
			return nil, fmt.Errorf("hostile row %q: nothing is called %q", text, word)
		}
		row = append(row, known[i])
	}
	return row, nil
}

// HostileRows draws n rows, the same for the same state of random. A row has one to four extremes of different columns.
func HostileRows(random *rand.Rand, n int) []HostileRow {
	known := slices.DeleteFunc(Extremes(), func(e Extreme) bool { return e.Large || e.Apart })
	rows := make([]HostileRow, n)
	for i := range rows {
		for range 1 + random.IntN(4) {
			drawn := known[random.IntN(len(known))]
			if !slices.ContainsFunc(rows[i], func(e Extreme) bool { return e.Column == drawn.Column }) {
				rows[i] = append(rows[i], drawn)
			}
		}
	}
	return rows
}

// WrittenRow is a hostile row as the table has taken it.
type WrittenRow struct {
	ID  string // Empty for null.
	Seq int64
}

// Write inserts several copies of the row in one statement. Number tells the rows of one table apart.
func (r HostileRow) Write(ctx context.Context, conn *pgx.Conn, number, copies int) ([]WrittenRow, error) {
	columns := []string{"id", "topic", "aggregate_type", "aggregate_id", "event_type", "data"}
	values := map[string]string{
		"id":             fmt.Sprintf("('%08x-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid", number),
		"topic":          "'hostile'",
		"aggregate_type": "'Hostile'",
		"aggregate_id":   fmt.Sprintf("'h%d-' || i", number),
		"event_type":     "'E'",
		"data":           `convert_to('hostile', 'UTF8')`,
	}
	for _, e := range r {
		if _, usual := values[e.Column]; !usual {
			columns = append(columns, e.Column)
		}
		values[e.Column] = e.SQL
	}
	var expressions []string
	for _, column := range columns {
		expressions = append(expressions, values[column])
	}
	rows, err := conn.Query(ctx, fmt.Sprintf(`
insert into outbox (%s) overriding system value
select %s from generate_series(1::bigint, %d) i order by i
returning coalesce(id::text, ''), seq`, strings.Join(columns, ", "), strings.Join(expressions, ", "), copies))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[WrittenRow])
}

// WithoutChecks takes the checks from the outbox, as its owner can.
func (w *World) WithoutChecks(conn *pgx.Conn) {
	w.Helper()
	w.Exec(conn, `drop trigger outbox_check on outbox`)
}

// WithNulls lets all columns of the outbox but its key be null. A relay that starts after that may refuse the table.
func (w *World) WithNulls(conn *pgx.Conn) {
	w.Helper()
	w.Exec(conn, `
do $$
declare
    name text;
begin
    for name in select attname from pg_attribute
                 where attrelid = 'outbox'::regclass and attnum > 0 and not attisdropped and attnotnull and attname <> 'seq' loop
        execute format('alter table outbox alter column %I drop not null', name);
    end loop;
end
$$`)
}

// noise returns an expression for a text of that many kilobytes, which cannot be compressed much and differs for each copy.
func noise(kilobytes int) string {
	return fmt.Sprintf(`(select string_agg(md5(i || '/' || g), '') from generate_series(1, %d) g)`, kilobytes*1024/32)
}

// Extremes are the values of each column that were seen to do harm, and similar ones.
func Extremes() []Extreme {
	extremes := []Extreme{
		{Column: "seq", Name: "zero", SQL: `0`},
		{Column: "seq", Name: "negative", SQL: `-i`},
		{Column: "seq", Name: "least", SQL: `(-9223372036854775808)::bigint + i - 1`},
		{Column: "seq", Name: "greatest", SQL: `9223372036854775807 - i + 1`},
		{Column: "seq", Name: "9e18", SQL: `9000000000000000000 + i`},
		{Column: "seq", Name: "ahead", SQL: `(select last_value from outbox_seq_seq) + 1000000 + i`},
		{Column: "seq", Name: "low", SQL: `i`},
		{Column: "seq", Name: "dead", SQL: `(select seq from outbox_dead order by seq desc limit 1)`, Apart: true},
		{Column: "seq", Name: "published", SQL: `(select seq from outbox_published where aggregate_type = 'Account' order by seq desc limit 1)`, Apart: true},

		{Column: "id", Name: "nil", SQL: `'00000000-0000-0000-0000-000000000000'::uuid`},
		{Column: "id", Name: "greatest", SQL: `'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid`, Apart: true},
		{Column: "id", Name: "same", SQL: `'5a5a5a5a-0000-4000-8000-5a5a5a5a5a5a'::uuid`, Apart: true},
		{Column: "id", Name: "published", SQL: `(select id from outbox_published where aggregate_type = 'Account' order by seq desc limit 1)`, Apart: true},
		{Column: "id", Name: "null", SQL: `null`, Apart: true},

		{Column: "aggregate_type", Name: "honest", SQL: `'` + HonestType + `'`, Apart: true},
		{Column: "aggregate_id", Name: "honest", SQL: `'a1'`, Apart: true},
		{Column: "aggregate_id", Name: "one", SQL: `'h'`},

		{Column: "attempts", Name: "least", SQL: `(-2147483648)::integer`},
		{Column: "attempts", Name: "negative", SQL: `-1`},
		{Column: "attempts", Name: "greatest", SQL: `2147483647`},
		{Column: "attempts", Name: "null", SQL: `null`, Apart: true},

		{Column: "data", Name: "empty", SQL: `''::bytea`},
		{Column: "data", Name: "null", SQL: `null`, Apart: true},
		{Column: "data", Name: "1MiB", SQL: `convert_to(` + noise(1024) + `, 'UTF8')`},
		{Column: "data", Name: "2MiB", SQL: `convert_to(` + noise(2048) + `, 'UTF8')`},
		{Column: "data", Name: "60MB", SQL: `convert_to(` + noise(60_000) + `, 'UTF8')`, Large: true},
		{Column: "data", Name: "300MB-compressible", SQL: `convert_to(repeat('x', 300000000), 'UTF8')`, Large: true},
		{Column: "data", Name: "900MB-compressible", SQL: `convert_to(repeat('x', 900000000), 'UTF8')`, Large: true},

		{Column: "last_error", Name: "1MiB", SQL: noise(1024)},
		{Column: "last_error", Name: "50MB-compressible", SQL: `repeat('x', 50000000)`, Large: true},
		{Column: "last_error", Name: "control", SQL: `E'\x01\x1b[2J\r\n'`},
	}
	for _, column := range []string{"topic", "aggregate_type", "aggregate_id", "event_type"} {
		extremes = append(
			extremes,
			Extreme{Column: column, Name: "empty", SQL: `''`},
			Extreme{Column: column, Name: "null", SQL: `null`, Apart: true},
			Extreme{Column: column, Name: "blank", SQL: `' '`},
			Extreme{Column: column, Name: "control", SQL: `E'a\r\nNats-Msg-Id: b\r\n\r\n\x01\x7f'`},
			Extreme{Column: column, Name: "wildcard", SQL: `'a.*.>'`},
			Extreme{Column: column, Name: "3KB", SQL: noise(3)},
			Extreme{Column: column, Name: "70KB", SQL: noise(70)},
			Extreme{Column: column, Name: "1MB-compressible", SQL: `repeat('x', 1000000)`},
			Extreme{Column: column, Name: "200MB-compressible", SQL: `repeat('x', 200000000)`, Large: true},
		)
	}
	for name, sql := range map[string]string{
		"infinity": `'infinity'`, "minus-infinity": `'-infinity'`, "294276": `'294276-12-31 23:59:59.999999+00'`, "4714BC": `'4714-11-24 00:00:00+00 BC'`,
		"year-0": `'0001-12-31 00:00:00+00 BC'`, "year-10000": `'10000-01-01 00:00:00+00'`, "in-100-years": `now() + interval '100 years'`, "1900": `'1900-01-01 00:00:00+00'`,
	} {
		extremes = append(
			extremes,
			Extreme{Column: "created_at", Name: name, SQL: `(` + sql + `)::timestamptz`},
			Extreme{Column: "retry_at", Name: name, SQL: `(` + sql + `)::timestamptz`},
		)
	}
	extremes = append(extremes, Extreme{Column: "created_at", Name: "null", SQL: `null`, Apart: true})
	for name, sql := range map[string]string{
		"array": `'["a", "b"]'`, "scalar": `'"a"'`, "number": `'1'`, "json-null": `'null'`, "empty": `'{}'`, "nested": `'{"a": {"b": "c"}}'`, "nested-array": `'{"a": [["b"]]}'`,
		"null-value": `'{"a": null}'`, "null-in-array": `'{"a": ["b", null]}'`, "empty-array": `'{"a": []}'`, "numbers": `'{"a": 1e400, "b": -0.1, "c": [true, 2]}'`,
		"empty-name": `'{"": "a"}'`, "slash": `'{"X/Trace": "a"}'`, "space": `'{"a b": "c"}'`, "accent": `'{"é": "a"}'`, "colon": `'{"a:b": "c"}'`, "break": `'{"a\r\nNats-Msg-Id": "c"}'`,
		"break-in-value": `'{"a": "b\r\nNats-Msg-Id: c"}'`, "two-cases": `'{"Trace": "a", "trace": "b"}'`, "hiding": `'{"a": "Nats-Msg-IdNats-Msg-Id"}'`,
		"msg-id": `'{"Nats-Msg-Id": "x"}'`, "rollup": `'{"Nats-Rollup": "all"}'`, "lower-case": `'{"nats-rollup": "all"}'`, "ttl": `'{"Nats-TTL": "1s"}'`,
		"expected": `'{"Nats-Expected-Stream": "x"}'`, "term": `'{"Outbox-Term": "1"}'`, "seq": `'{"Outbox-Seq": "1"}'`, "status": `'{"Status": "503"}'`,
		"status-100": `'{"Status": "100", "Description": "FlowControl Request"}'`, "status-409": `'{"Status": "409", "Description": "Consumer Deleted"}'`,
		"64KB": `jsonb_build_object('a', repeat('x', 64000))`, "65KB": `jsonb_build_object('a', repeat('x', 65400))`, "1MB": `jsonb_build_object('a', repeat('x', 1000000))`,
		"70KB-name": `jsonb_build_object(repeat('x', 70000), 'a')`,
		"many":      `(select jsonb_object_agg('h' || g, 'x') from generate_series(1, 10000) g)`,
		"many-bad":  `(select jsonb_object_agg('h/' || g || repeat('x', 100), 'x') from generate_series(1, 10000) g)`,
		"deep":      `(repeat('[', 2000) || repeat(']', 2000))`,
		"surrogate": `'{"a": "\ud83d\ude00"}'`,
	} {
		extremes = append(extremes, Extreme{Column: "headers", Name: name, SQL: sql + `::jsonb`})
	}
	extremes = append(extremes, Extreme{Column: "headers", Name: "20MB", SQL: `jsonb_build_object('a', repeat('x', 20000000))`, Large: true})
	slices.SortFunc(extremes, func(a, b Extreme) int { return strings.Compare(a.String(), b.String()) }) // Maps have no order.
	return extremes
}
