package store

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
)

// seqs returns what inBitmap and inList mean by k.
func (k keys) seqs() []int64 {
	named := slices.Clone(k.list)
	for bit := range int64(len(k.bitmap)) * 8 {
		if k.bitmap[bit/8]>>(bit%8)&1 == 1 {
			named = append(named, k.from+bit)
		}
	}
	return named
}

func TestKeysNameEachSeq(t *testing.T) {
	for name, seqs := range map[string][]int64{
		"none":                  {},
		"one":                   {7},
		"a page":                between(1_000_000, 1_001_000),
		"every other one":       stepping(1000, 2, 500),
		"far apart":             stepping(1, 1_000_000, 100),
		"one that came late":    append(between(5_000_000, 5_000_100), 3),
		"late ones first":       append([]int64{3, 4}, between(5_000_000, 5_000_100)...),
		"none in the middle":    append(between(1, 50), between(9_000_000, 9_000_050)...),
		"the ends":              {math.MinInt64, math.MaxInt64},
		"the upper end":         {math.MaxInt64 - 1, math.MaxInt64},
		"the lower end":         {math.MinInt64, math.MinInt64 + 3},
		"from one to the other": {math.MinInt64, 0, math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				k := keysOf(seqs)
				got, want := slices.Sorted(slices.Values(k.seqs())), slices.Sorted(slices.Values(seqs))
				if !slices.Equal(got, want) {
					t.Fatalf("%v are named, want %v", got, want)
				}
				if most := len(seqs)*keysSpan/8 + 1; len(k.bitmap) > most {
					t.Errorf("%d bytes for %d seqs, want %d at most", len(k.bitmap), len(seqs), most)
				}
				if len(k.bitmap) > 0 && (k.bitmap[0]&1 == 0 || k.to-k.from >= int64(len(k.bitmap))*8 || k.bitmap[(k.to-k.from)/8]>>((k.to-k.from)%8) != 1) {
					t.Errorf("from %d to %d are not the first and the last bit of % b", k.from, k.to, k.bitmap)
				}
				rand.Shuffle(len(seqs), func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
			}
		})
	}
	if k := keysOf(between(1, 1001)); len(k.list) > 0 {
		t.Errorf("of a page, %d are in the list, want none", len(k.list))
	}
}

func between(from, to int64) []int64 { return stepping(from, 1, int(to-from)) }

func stepping(from, step int64, count int) []int64 {
	seqs := make([]int64, count)
	for i := range seqs {
		seqs[i] = from + step*int64(i)
	}
	return seqs
}

// BenchmarkKeys prepares a page's seqs for a statement and, as the baseline, the array that they would be otherwise.
func BenchmarkKeys(b *testing.B) {
	seqs, types := between(1_000_000, 1_001_000), pgtype.NewMap()
	for name, encode := range map[string]func(buf []byte) ([]byte, error){
		"bits": func(buf []byte) ([]byte, error) {
			return types.Encode(pgtype.ByteaOID, pgtype.BinaryFormatCode, keysOf(seqs).bitmap, buf)
		},
		"array": func(buf []byte) ([]byte, error) {
			return types.Encode(pgtype.Int8ArrayOID, pgtype.BinaryFormatCode, seqs, buf)
		},
	} {
		b.Run(name, func(b *testing.B) {
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if buf, err = encode(buf[:0]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(buf)), "bytes")
		})
	}
}
