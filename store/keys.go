package store

import "math"

// keys are seqs as statements take them. A page's are mostly close together, so that those around one in the middle are a
// range with a bit for each seq that is meant: a scan of that range finds them in half the time that it takes to look
// each of them up, and they are a hundredth of the size. The rest is a list.
//
// Every row is named, never a range as such: in it may be rows that were committed late.
type keys struct {
	from, to int64 // From the first bit to the last.
	bits     []byte
	rest     []int64
}

// keysSpan is how wide the range may be for each seq. So it covers seqs of which half are somebody else's, whichever of
// them the one in the middle is.
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
			k.rest = append(k.rest, seq)
		}
	}
	k.bits = make([]byte, (k.to-k.from)/8+1)
	for _, seq := range seqs {
		if low <= seq && seq <= high {
			bit := seq - k.from
			k.bits[bit/8] |= 1 << (bit % 8)
		}
	}
	return k
}

// Conditions on rows: that the seq is among the keys' bits, given as the parameters from, to and bits; that it is in their
// list; or that the seq and the id are among pairs, given as two lists. Postgres compares numbers before it looks for a bit,
// even where it cannot use the index. And it makes a hash table of the pairs: without the "is true" it may join the two, and
// as long as it believes the table to be empty, compares each pair to each row.
const (
	near    = `o.seq between $1::bigint and $2::bigint and get_bit($3::bytea, (o.seq - $1::bigint)::int) = 1`
	far     = `o.seq = any($1::bigint[])`
	refused = `o.seq = any($1::bigint[]) and coalesce(o.id, '00000000-0000-0000-0000-000000000000') = ($2::uuid[])[array_position($1::bigint[], o.seq)]`
	found   = `o.seq = any($1::bigint[]) and ((o.seq, o.id) in (select * from unnest($1::bigint[], $2::uuid[]))) is true`
)
