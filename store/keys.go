package store

import (
	"fmt"
	"math"
)

// keys are seqs as statements take them: a bitmap and a list. The seqs of a page are mostly close together. So those near
// the middle one are given as a range with a bit for each seq. To scan that range takes half the time of looking each seq
// up, and the bitmap is a hundredth of the list's size. The other seqs are in the list.
//
// Every row is named, and never a whole range: a range may have rows that were committed late.
type keys struct {
	from, to int64 // The seqs of the first bit and of the last.
	bitmap   []byte
	list     []int64
}

// keysSpan is how many seqs wide the range may be for each of ours. For n of our seqs it reaches 2 n to either side of the
// middle one. So it covers all of them even if every second seq belongs to another transaction, and even if the one that
// is taken for the middle is the lowest or the highest.
const keysSpan = 4

func keysOf(seqs []int64) keys {
	if len(seqs) == 0 {
		return keys{to: -1}
	}
	middle, reach := seqs[len(seqs)/2], int64(len(seqs)*keysSpan/2)
	low, high := max(middle, math.MinInt64+reach)-reach, min(middle, math.MaxInt64-reach)+reach
	k := keys{from: middle, to: middle}
	for _, seq := range seqs {
		if low <= seq && seq <= high {
			k.from, k.to = min(k.from, seq), max(k.to, seq)
		} else {
			k.list = append(k.list, seq)
		}
	}
	k.bitmap = make([]byte, (k.to-k.from)/8+1)
	for _, seq := range seqs {
		if low <= seq && seq <= high {
			bit := seq - k.from
			k.bitmap[bit/8] |= 1 << (bit % 8)
		}
	}
	return k
}

// Conditions on rows o.
//
//   - inBitmap: the seq's bit is set. The parameters are the keys' from, to and bitmap. Postgres compares the numbers before
//     it looks for the bit, even where it cannot use the index.
//   - inList: the seq is in a list.
//   - byID, refused: the seq and the id are a pair of two lists. For byID Postgres makes a hash table of the pairs. Without
//     the "is true" it may join pairs and rows, and as long as it believes the table to be empty, that compares each pair to
//     each row.
const (
	inBitmap = `o.seq between $1::bigint and $2::bigint and get_bit($3::bytea, (o.seq - $1::bigint)::int) = 1`
	inList   = `o.seq = any($1::bigint[])`
	refused  = `o.seq = any($1::bigint[]) and coalesce(o.id, '00000000-0000-0000-0000-000000000000') = ($2::uuid[])[array_position($1::bigint[], o.seq)]`
	byID     = `o.seq = any($1::bigint[]) and ((o.seq, o.id) in (select * from unnest($1::bigint[], $2::uuid[]))) is true`
)

// bytewise is a collation under which texts are equal if their bytes are. Owners may give columns any collation: to compare
// columns of two is an error, and some take capitals for small letters. The indexes of the dead letters are in this one.
const bytewise = `collate "default"`

// sameAggregate is the condition that a row of another table, or another row, is of the aggregate of the row o.
func sameAggregate(other string) string {
	return fmt.Sprintf(`%[1]s.aggregate_type %[2]s = o.aggregate_type %[2]s and %[1]s.aggregate_id %[2]s = o.aggregate_id %[2]s`, other, bytewise)
}

// aggregateColumns name an aggregate, so that it can be compared with those of other tables.
const aggregateColumns = `aggregate_type ` + bytewise + `, aggregate_id ` + bytewise
