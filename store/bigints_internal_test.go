package store

import (
	"bytes"
	"math"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
)

func TestBigintsEncodeAsPgtypeDoes(t *testing.T) {
	theirs, ours := pgtype.NewMap(), pgtype.NewMap()
	registerBigints(ours)
	for _, value := range []any{[]int64(nil), []int64{}, []int64{7}, []int64{1, -1, math.MaxInt64, math.MinInt64}, []int32{1, 2}, pgtype.FlatArray[int64]{3}} {
		for _, format := range []int16{pgtype.BinaryFormatCode, pgtype.TextFormatCode} {
			want, err := theirs.Encode(pgtype.Int8ArrayOID, format, value, []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := ours.Encode(pgtype.Int8ArrayOID, format, value, []byte("x"))
			if err != nil {
				t.Errorf("%T %v: %v", value, value, err)
			}
			if !bytes.Equal(got, want) || (got == nil) != (want == nil) {
				t.Errorf("%T %v in format %d: got % x, want % x", value, value, format, got, want)
			}
		}
	}
	var back []int64
	if err := ours.Scan(pgtype.Int8ArrayOID, pgtype.TextFormatCode, []byte("{4,5}"), &back); err != nil || len(back) != 2 {
		t.Errorf("scanned %v, %v", back, err)
	}
}

func BenchmarkBigints(b *testing.B) {
	seqs := make([]int64, 1000)
	for i := range seqs {
		seqs[i] = int64(1_000_000 + i)
	}
	for name, register := range map[string]func(*pgtype.Map){"pgtype": func(*pgtype.Map) {}, "ours": registerBigints} {
		b.Run(name, func(b *testing.B) {
			types := pgtype.NewMap()
			register(types)
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if buf, err = types.Encode(pgtype.Int8ArrayOID, pgtype.BinaryFormatCode, seqs, buf[:0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
