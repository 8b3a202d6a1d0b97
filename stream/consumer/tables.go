package consumer

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/stream"
)

// remembered is how many events of an aggregate the inbox knows one by one. So many others of its aggregate may overtake an event
// between its insert and its commit, if the producer does not lock the aggregate, and it is still not taken for handled.
const remembered = 16

// tables are the statements on a consumer's tables.
type tables struct {
	create   string
	enter    string // Enters an event in the inbox's row of its aggregate, unless it is there.
	entered  string // What the row says of older events.
	position string
	record   string // Records a later position in the same stream, or any in another.
	park     string
	parked   string
	redone   string // Removes a parked event, and returns it.
}

// tablesOf returns the statements for a schema.
func tablesOf(schema string) tables {
	name := func(table string) string { return pgx.Identifier{schema, table}.Sanitize() }
	inbox, position, parked := name("outbox_inbox"), name("outbox_inbox_position"), name("outbox_parked")
	return tables{
		create: `
create table if not exists ` + inbox + ` (
    consumer  text     not null,
    aggregate text     not null,
    latest    bigint[] not null,
    below     bigint   not null,
    sequence  bigint   not null,
    primary key (consumer, aggregate)
) with (fillfactor = 70);
comment on table ` + inbox + ` is 'For each consumer and aggregate the Outbox-Seqs of the latest events whose effect is committed; all up to "below" are taken for handled. sequence is where the stream had the last one';
create table if not exists ` + position + ` (
    consumer       text        primary key,
    stream         text        not null,
    stream_created timestamptz not null,
    sequence       bigint      not null,
    stored_at      bigint      not null,
    recorded_at    timestamptz not null default clock_timestamp()
);
comment on table ` + position + ` is 'A sequence of the stream up to which all effects are committed; stored_at, in nanoseconds, recognises its message';
create table if not exists ` + parked + ` (
    number         bigint      generated always as identity primary key,
    consumer       text        not null,
    stream_created timestamptz not null,
    sequence       bigint      not null,
    subject        text        not null,
    headers        jsonb       not null,
    data           bytea       not null,
    aggregate      text,
    seq            bigint,
    reason         text        not null,
    attempts       integer     not null,
    parked_at      timestamptz not null default clock_timestamp(),
    unique (consumer, stream_created, sequence)
);
comment on table ` + parked + ` is 'Messages that a consumer has given up, with all of their headers';`,
		// Once the row is full, the Seq that was entered first makes room.
		enter: fmt.Sprintf(`
insert into %s as i (consumer, aggregate, latest, below, sequence) values ($1, $2, array[$3::bigint], -9223372036854775808, $4)
    on conflict (consumer, aggregate) do update
   set latest = case when cardinality(i.latest) < %[2]d then i.latest else i.latest[2:] end || $3::bigint,
       below  = case when cardinality(i.latest) < %[2]d then i.below else greatest(i.below, i.latest[1]) end,
       sequence = excluded.sequence
 where $3::bigint > i.below and $3::bigint <> all(i.latest)`, inbox, remembered),
		entered: `select below, sequence from ` + inbox + ` where consumer = $1 and aggregate = $2`,
		position: `
select stream, stream_created, sequence, stored_at from ` + position + ` where consumer = $1`,
		record: `
insert into ` + position + ` as p (consumer, stream, stream_created, sequence, stored_at) values ($1, $2, $3, $4, $5)
    on conflict (consumer) do update
   set stream = excluded.stream, stream_created = excluded.stream_created, sequence = excluded.sequence, stored_at = excluded.stored_at, recorded_at = clock_timestamp()
 where (p.stream, p.stream_created) is distinct from (excluded.stream, excluded.stream_created) or p.sequence < excluded.sequence`,
		park: `
insert into ` + parked + ` (consumer, stream_created, sequence, subject, headers, data, aggregate, seq, reason, attempts)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing`,
		parked: `
select number, sequence, subject, headers, data, reason, attempts, parked_at from ` + parked + ` where consumer = $1 order by number limit $2`,
		redone: `
delete from ` + parked + ` where consumer = $1 and number = $2 returning sequence, subject, headers, data`,
	}
}

// Migrate makes the consumer's tables, in Config.Schema, where they are missing. Any number of processes may do so at once.
// Run calls it unless Config.SkipMigration is set.
func (c *Consumer) Migrate(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, c.config.Pool, func(tx pgx.Tx) error {
		// Two that create one table at once fail otherwise, in spite of "if not exists".
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1, $2)`, lockKey, fold("migrate "+c.config.Schema)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, c.tables.create)
		return err
	})
	if err != nil {
		return fmt.Errorf("make the consumer's tables: %w", err)
	}
	return nil
}

// lockKey is the first half of the consumers' advisory locks; the second is a hash of the name.
const lockKey int32 = 0x0b0c05

func fold(text string) int32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(text))
	return int32(h.Sum32())
}

// aggregateKey names an event's aggregate in the inbox, as its subject does by default: whatever text it consists of, that fits
// into an index.
func aggregateKey(e *stream.Event) string {
	var key strings.Builder
	key.WriteString(stream.EncodeToken(e.AggregateType))
	key.WriteByte('.')
	key.WriteString(stream.EncodeToken(e.AggregateID))
	return key.String()
}
