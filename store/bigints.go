package store

import (
	"encoding/binary"

	"github.com/jackc/pgx/v5/pgtype"
)

// bigints encodes []int64 for bigint[]. pgtype goes by way of an interface for each element, which takes ten times as
// long, and every event's seq is sent twice: among those in hand and among those settled.
type bigints struct{ *pgtype.ArrayCodec }

func registerBigints(types *pgtype.Map) {
	if array, ok := types.TypeForOID(pgtype.Int8ArrayOID); ok {
		if codec, ok := array.Codec.(*pgtype.ArrayCodec); ok {
			types.RegisterType(&pgtype.Type{Name: array.Name, OID: array.OID, Codec: bigints{codec}})
		}
	}
}

// PlanEncode implements [pgtype.Codec].
func (b bigints) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.([]int64); ok && format == pgtype.BinaryFormatCode {
		return bigintsPlan{}
	}
	return b.ArrayCodec.PlanEncode(m, oid, format, value)
}

type bigintsPlan struct{}

// Encode implements [pgtype.EncodePlan], as array_recv of Postgres' src/backend/utils/adt/arrayfuncs.c reads it.
func (bigintsPlan) Encode(value any, buf []byte) ([]byte, error) {
	elements, ok := value.([]int64)
	if !ok || elements == nil {
		return nil, nil // Null.
	}
	buf = binary.BigEndian.AppendUint32(buf, 1) // Dimensions.
	buf = binary.BigEndian.AppendUint32(buf, 0) // No element is null.
	buf = binary.BigEndian.AppendUint32(buf, pgtype.Int8OID)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(elements))) //nolint:gosec // Far below.
	buf = binary.BigEndian.AppendUint32(buf, 1)                     // The first one's index.
	for _, element := range elements {
		buf = binary.BigEndian.AppendUint32(buf, 8)               // Bytes.
		buf = binary.BigEndian.AppendUint64(buf, uint64(element)) //nolint:gosec // Two's complement.
	}
	return buf, nil
}
