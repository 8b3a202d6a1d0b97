package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// The bounds of a row's columns other than its payload. A plain fetch does not read what exceeds them: see fetch.
const (
	// textFits and headersFit are the sizes in bytes up to which a text, and the headers as they are stored, count as small.
	textFits, headersFit = 512, 1024
	// textMost is how large a row's texts and headers may be together: a message's header block has room for less.
	textMost = 1 << 16
	// headersWeight is how many bytes of a page count for each byte of stored headers, which may be compressed.
	headersWeight = 4
)

// wanted is the condition on the rows of a page: rows above those that the relay holds and, in the gaps between those, rows
// that were committed late. The held rows are given as keys: a bitmap and a list. The names of blocked aggregates are two
// parameters; names is the number of the first.
func wanted(blocked bool, names int) string {
	where := `
 where seq >= $1 and (seq > $2 or case when seq between $3::bigint and $4::bigint then get_bit($5::bytea, (seq - $3::bigint)::int) = 0 else seq not in (select unnest($6::bigint[])) end)
   and given_up_at is null`
	if blocked {
		where += fmt.Sprintf(`
   and (`+aggregateColumns+`) not in (select * from unnest($%d::text[], $%d::text[]))`, names, names+1)
	}
	return where
}

// fetch selects a page: all visible rows of one snapshot, in seq order.
//
// A measured page is bounded in bytes by a running sum of the rows' sizes. To take the length of a large value does not read
// the value, but the sum costs as much as the rest of the query. So as long as rows are small, a page is not measured: rows
// are only counted, and a large value is left out, as null. Such a page ends before the row with that value. The next page
// is measured; if no row is left, the same page is fetched again, measured.
//
// A row can never be published if one part of it is larger than any message. For such a row a measured page has the sizes
// instead of the values, so the values never cross the network.
func (t Table) fetch(measured, blocked bool, hold string) string {
	if !measured {
		// Null means: left out. Headers may be null by themselves; where they are left out, so is the payload.
		text := func(column string) string {
			return fmt.Sprintf("case when octet_length(%[1]s) <= %d then %[1]s end", column, textFits)
		}
		headers := fmt.Sprintf("pg_column_size(headers) <= %d", headersFit)
		return `
select seq, id, ` + text("topic") + `, ` + text("aggregate_type") + `, ` + text("aggregate_id") + `, ` + text("event_type") + `,
       case when octet_length(data) <= $8::bigint and (headers is null or ` + headers + `) then data end,
       case when ` + headers + ` then headers::text end, created_at, attempts
  from only ` + t.outbox() + ` o` + wanted(blocked, 9) + hold + `
 order by seq limit $7`
	}
	return `
select ` + measuredColumns + `
  from (select weighed.*, (sum(weight) over (order by seq rows unbounded preceding) - weight)::bigint as before
          from (select page.*, (case when fits then data_size + text_size + ` + fmt.Sprint(headersWeight) + ` * headers_size else ` + fmt.Sprint(textMost) + ` end)::bigint as weight
                  from (` + t.measured("$9") + wanted(blocked, 10) + hold + `
                         order by seq limit $7) page) weighed) sized
 where before < $8::bigint
 order by seq`
}

// measured selects rows with their sizes, and whether they can be published. maxData is the parameter with the largest
// payload that the broker takes.
func (t Table) measured(maxData string) string {
	return `select *, data_size <= ` + maxData + `::bigint and text_size + headers_size <= ` + fmt.Sprint(textMost) + ` as fits
                  from (select ` + eventColumns + `, attempts, given_up_at, octet_length(data)::bigint as data_size,
                               octet_length(topic)::bigint + octet_length(aggregate_type) + octet_length(aggregate_id) + octet_length(event_type) as text_size,
                               coalesce(pg_column_size(headers), 0)::bigint as headers_size from only ` + t.outbox() + `) o`
}

// measuredColumns are the columns of a measured row. A row that does not fit still has its aggregate's name, unless the name
// itself is too large.
var measuredColumns = fmt.Sprintf( //nolint:gochecknoglobals // Immutable.
	`seq, id, case when fits then topic end, case when fits or octet_length(aggregate_type) <= %[1]d then aggregate_type end,
       case when fits or octet_length(aggregate_id) <= %[1]d then aggregate_id end, case when fits or octet_length(event_type) <= %[2]d then event_type end,
       case when fits then data end, case when fits then left(headers::text, %[1]d + 1) end, created_at, attempts, data_size, text_size + headers_size, weight`,
	textMost, textFits)

// fetchOne selects one row of a page, by its seq and id.
func (t Table) fetchOne() string {
	return `
select ` + measuredColumns + `
  from (select *, 0::bigint as weight from (` + t.measured("$3") + `) one where seq = $1 and coalesce(id, '00000000-0000-0000-0000-000000000000') = $2) page`
}

// pageRead is a page that was read.
type pageRead struct {
	rows  []Row
	full  bool // Its bound was reached: there may be more.
	large bool // The next one must be measured.
}

// queueFetch queues the fetch of a page.
func (t *Term) queueFetch(batch *pgx.Batch, f *Fetch, into *pageRead) {
	names, measured := t.excluded(f), 0
	args := append(t.pageArgs(f), f.Bytes/f.Rows) // So many rows of so many bytes are within bounds.
	if t.large {
		measured = 1
		args[len(args)-1] = f.Bytes
		args = append(args, f.maxData())
	}
	blocked := 0
	if len(names.ids) > 0 {
		blocked = 1
		args = append(args, names.types, names.ids)
	}
	batch.Queue(t.queries.fetch[measured][blocked], args...).Query(func(rows pgx.Rows) error {
		var err error
		*into, err = t.pageSizes.scan(rows, *f)
		return err
	})
	t.queueOvertaken(batch)
}

// queueOvertaken queues a look, after a fetch, at whether a command has let held aggregates go on before the fetch took its
// snapshot. Not all of them are left out by name, and the notification may still be under way. So the fetch may have seen an
// aggregate's later rows and not the earlier ones, which are below the floor: it has to be repeated, from further back.
//
// Every command changes what is recorded as scan_from in its own transaction: see lowerScan.
func (t *Term) queueOvertaken(batch *pgx.Batch) {
	if !t.outbox.holdDead {
		return
	}
	batch.Queue(t.queries.scanFrom, t.stream, t.Number).Query(func(rows pgx.Rows) error {
		var now int64
		_, err := pgx.ForEachRow(rows, []any{&now}, func() error {
			if now != t.scanFrom {
				t.scanFrom = now
				t.goBack(now)
			}
			return nil
		})
		return err
	})
}

// goBack makes the next fetch begin at a seq at the latest, and what a round trip has just fetched void.
func (t *Term) goBack(to int64) {
	t.outbox.back.lower(to)
	t.overtaken = true
}

// pageArgs are the parameters that all queries of a page have in common.
func (t *Term) pageArgs(f *Fetch) []any {
	held := keysOf(slices.Concat(f.Held, f.Passed))
	from := t.floor.at
	if f.Back && f.Stay {
		from = min(from, f.BackTo)
	}
	return []any{from, f.Highest, held.from, held.to, held.bitmap, held.list, f.Rows}
}

func (f *Fetch) maxData() int64 {
	if f.MaxData <= 0 {
		return math.MaxInt64
	}
	return int64(f.MaxData)
}

// pageSizes are how many rows, and bytes of texts and payloads, the latest page had: the next page of a backlog has about as
// many, so scan allocates for that many.
type pageSizes struct{ rows, texts, data int }

// scan reads a page. It takes the values as they come off the wire and copies them into two pieces of memory for the whole
// page, one for texts and one for payloads: at a hundred thousand rows a second there is no time for an allocation or two for
// each field.
func (sizes *pageSizes) scan(rows pgx.Rows, f Fetch) (read pageRead, err error) {
	if err := rows.Err(); err != nil {
		return pageRead{}, err
	}
	if err := checkFormats(rows.FieldDescriptions()); err != nil {
		return pageRead{}, err
	}
	var (
		texts    = make([]byte, 0, sizes.texts+sizes.texts/16)
		data     = make([]byte, 0, sizes.data+sizes.data/16)
		spans    = make([]span, 0, sizes.rows)
		page     = make([]Row, 0, sizes.rows)
		bytes    int
		cut      bool
		measured = len(rows.FieldDescriptions()) > dataSizeColumn
	)
	for rows.Next() {
		values := rows.RawValues()
		if !measured && incomplete(values) {
			cut = true // The page ends here: later rows must not be seen before this one.
		}
		if cut {
			continue
		}
		sp := span{text: len(texts), data: len(data)}
		for i, value := range values[topicColumn : eventTypeColumn+1] {
			texts = append(texts, value...)
			sp.texts[i] = len(texts)
			read.large = read.large || len(value) > textFits
		}
		data = append(data, values[dataColumn]...)
		spans = append(spans, sp)
		row := Row{
			Seq:       number(values[seqColumn]),
			ID:        identity(values[idColumn]),
			Headers:   cloned(values[headersColumn]),
			CreatedAt: timestamp(values[createdAtColumn]),
			Attempts:  attempts(values[attemptsColumn]),
		}
		if measured {
			row.Unfit = unfit(values, f)
			row.Nameless = values[aggregateTypeColumn] == nil || values[aggregateIDColumn] == nil
			if row.Unfit != "" {
				row.Unread = number(values[dataSizeColumn]) + number(values[restSizeColumn])
			}
		}
		read.large = read.large || row.Unfit != "" || len(values[dataColumn]) > f.Bytes/f.Rows || len(row.Headers) > headersFit
		if measured {
			bytes += int(number(values[weightColumn]))
		} else {
			bytes += len(texts) - sp.text + len(values[dataColumn]) + len(row.Headers)
		}
		page = append(page, row)
	}
	*sizes = pageSizes{rows: len(page), texts: len(texts), data: len(data)}
	all := string(texts)
	for i := range page {
		r, sp := &page[i], &spans[i]
		r.Topic = all[sp.text:sp.texts[0]]
		r.AggregateType = all[sp.texts[0]:sp.texts[1]]
		r.AggregateID = all[sp.texts[1]:sp.texts[2]]
		r.EventType = all[sp.texts[2]:sp.texts[3]]
		end := len(data)
		if i+1 < len(spans) {
			end = spans[i+1].data
		}
		r.Data = data[sp.data:end:end]
	}
	read.rows, read.large = page, read.large || cut
	read.full = cut || len(page) >= f.Rows || bytes >= f.Bytes
	return read, rows.Err()
}

// unfit says why a measured row was not read; empty if it was read.
func unfit(values [][]byte, f Fetch) string {
	switch size := number(values[dataSizeColumn]); {
	case values[idColumn] == nil || values[dataSizeColumn] == nil || values[restSizeColumn] == nil || values[createdAtColumn] == nil || values[attemptsColumn] == nil:
		return "a column is null that must not be" // Somebody has dropped the table's constraints.
	case size > f.maxData():
		return fmt.Sprintf("payload of %d bytes: with the smallest headers the broker takes at most %d", size, f.MaxData)
	case values[dataColumn] == nil:
		return fmt.Sprintf("topic, type, ids and headers of %d bytes: a message has room for less than %d", number(values[restSizeColumn]), textMost)
	case len(values[headersColumn]) > textMost:
		return fmt.Sprintf("headers of more than %d bytes: a message has room for less", textMost)
	}
	return ""
}

// incomplete reports whether a row was not read for its size, or has a null that it must not have.
func incomplete(values [][]byte) bool {
	for i, value := range values {
		if value == nil && i != headersColumn {
			return true
		}
	}
	return false
}

// cloned returns a copy; nil for null, and for headers that are too long for a message.
func cloned(headers []byte) []byte {
	if len(headers) > textMost {
		return nil
	}
	return bytes.Clone(headers)
}

// The columns of a fetch, in order. Only a measured fetch has the last three.
const (
	seqColumn = iota
	idColumn
	topicColumn
	aggregateTypeColumn
	aggregateIDColumn
	eventTypeColumn
	dataColumn
	headersColumn
	createdAtColumn
	attemptsColumn
	dataSizeColumn
	restSizeColumn
	weightColumn
)

// span is where a row's values lie in the page's memory.
type span struct {
	text, data int    // Where they begin,
	texts      [4]int // and where each of the texts ends.
}

// checkFormats makes sure that pgx asked for the formats that scan reads.
func checkFormats(fields []pgconn.FieldDescription) error {
	for i, field := range fields {
		want := uint32(pgtype.Int8OID)
		switch i {
		case topicColumn, aggregateTypeColumn, aggregateIDColumn, eventTypeColumn, headersColumn: // Either form is the text itself.
			continue
		case idColumn:
			want = pgtype.UUIDOID
		case dataColumn:
			want = pgtype.ByteaOID
		case createdAtColumn:
			want = pgtype.TimestamptzOID
		case attemptsColumn:
			want = pgtype.Int4OID
		}
		switch {
		case field.DataTypeOID != want:
			return fmt.Errorf("%w: column %s has another type", ErrForeignTable, field.Name)
		case field.Format != pgx.BinaryFormatCode:
			return fmt.Errorf("column %s comes in text form", field.Name)
		}
	}
	return nil
}

// The values of columns that are never null, unless somebody has dropped the table's constraints under a running relay.

func number(wire []byte) int64 {
	if len(wire) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(wire)) // Two's complement.
}

func attempts(wire []byte) int {
	if len(wire) != 4 {
		return 0
	}
	return int(clampAttempts(int(int32(binary.BigEndian.Uint32(wire)))))
}

func identity(wire []byte) uuid.UUID {
	id, _ := uuid.FromBytes(wire) // The nil UUID for null.
	return id
}

// epoch is Postgres' year zero. Its infinities come out as times far away, which no clock_timestamp() is.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // Immutable.

func timestamp(wire []byte) time.Time { return time.UnixMicro(epoch.UnixMicro() + number(wire)).UTC() }
