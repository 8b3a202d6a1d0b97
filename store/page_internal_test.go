package store

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// wireRows are rows as they come off the wire, the same one n times.
type wireRows struct {
	pgx.Rows

	fields []pgconn.FieldDescription
	values [][]byte
	n      int
}

func (w *wireRows) Next() bool                                   { w.n--; return w.n >= 0 }
func (w *wireRows) RawValues() [][]byte                          { return w.values }
func (w *wireRows) Err() error                                   { return nil }
func (w *wireRows) FieldDescriptions() []pgconn.FieldDescription { return w.fields }

// BenchmarkRowDecoding reads pages of a thousand rows of 256 B: as the relay does, and, as the baseline, with a Scan into
// variables.
func BenchmarkRowDecoding(b *testing.B) {
	const rows = 1000
	number := binary.BigEndian.AppendUint64(nil, 1_234_567)
	id := uuid.New()
	oids := []uint32{
		pgtype.Int8OID, pgtype.UUIDOID, pgtype.TextOID, pgtype.TextOID, pgtype.TextOID, pgtype.TextOID, pgtype.ByteaOID,
		pgtype.TextOID, pgtype.TimestamptzOID, pgtype.Int4OID,
	}
	page := wireRows{values: [][]byte{
		number, id[:], []byte("users"), []byte("User"), []byte("12345"), []byte("UserCreated"), make([]byte, 256), nil, number, {0, 0, 0, 0},
	}}
	for _, oid := range oids {
		page.fields = append(page.fields, pgconn.FieldDescription{DataTypeOID: oid, Format: pgx.BinaryFormatCode})
	}
	fetch := Fetch{Rows: rows + 1, Bytes: 1 << 30}
	perRow := func(b *testing.B) {
		b.Helper()
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*rows), "ns/row")
	}
	b.Run("page", func(b *testing.B) {
		var sizes pageSizes
		b.ReportAllocs()
		for b.Loop() {
			page.n = rows
			if got, err := sizes.scan(&page, fetch); err != nil || len(got.rows) != rows {
				b.Fatalf("%d rows, %v", len(got.rows), err)
			}
		}
		perRow(b)
	})
	b.Run("Scan", func(b *testing.B) {
		types := pgtype.NewMap()
		b.ReportAllocs()
		for b.Loop() {
			got := make([]Row, rows)
			for n := range got {
				r := &got[n]
				var at time.Time
				for i, into := range []any{
					&r.Seq, (*[16]byte)(&r.ID), &r.Topic, &r.AggregateType, &r.AggregateID, &r.EventType, &r.Data, &r.Headers, &at, &r.Attempts,
				} {
					if err := types.Scan(oids[i], pgx.BinaryFormatCode, page.values[i], into); err != nil {
						b.Fatal(err)
					}
				}
				r.CreatedAt = at
			}
		}
		perRow(b)
	})
}
