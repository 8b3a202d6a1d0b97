package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Gauges are the tables' numbers as a metric shows them. They cost the database little, whatever the tables' sizes.
type Gauges struct {
	// Pending are the events in the outbox but for those that were given up, and Oldest is how long ago the first of them was
	// inserted; 0 if none is pending. A number above 10,000 is an estimate: it takes the gaps between seqs to be as frequent
	// everywhere as among the first 10,000 events, and so follows a backlog that grows or is drained.
	Pending Count
	Oldest  time.Duration
	// Dead are the dead letters, those included that could not be moved out of the outbox.
	Dead Count
	// Held are the aggregates that wait for a decision about a dead letter: see Options.HoldDead. Retrying are those that wait
	// for another attempt of a refused event. Neither is counted beyond 10,000.
	Held, Retrying int64
	// Archived are the events in the archive, and ArchiveBytes is what they take on disk with their indexes. A number above
	// 10,000 is what Postgres knows from the latest vacuum or analyze and the archive's present size.
	Archived     Count
	ArchiveBytes int64
}

// gauges is the query of [Gauge.Read].
//
// Rows below scan_from have been settled, and may be there by the million until vacuum removes them. The highest seq is looked
// for only where there is a backlog: otherwise the end of the index, too, may consist of dead rows.
func (t Table) gauges() string {
	return fmt.Sprintf(`
with pending as materialized (
    select count(*) as events, min(seq) as first, max(seq) as last, min(seq) filter (where isfinite(created_at)) as dated
      from (select seq, created_at from only %[1]s
             where seq >= coalesce((select case when min(scan_from) > 0 then min(scan_from) end from only %[3]s), -9223372036854775808) and given_up_at is null
             order by seq limit $1 + 1) counted
), dead (aggregate_type, aggregate_id) as materialized (
    select %[5]s from only %[2]s
     union all
    select %[5]s from only %[1]s where given_up_at is not null
     limit $1 + 1
), parts as materialized (
    select c.oid, c.reltuples, c.relpages, pg_relation_size(c.oid) as heap, pg_total_relation_size(c.oid) as bytes
      from unnest($2::text[]) as part join pg_catalog.pg_class c on c.oid = to_regclass(part)
)
select p.events, p.events <= $1,
       case when p.events > $1 then (p.events * (((select max(seq) from only %[1]s) - p.first + 1)::float8 / (p.last - p.first + 1)::float8))::bigint else p.events end,
       coalesce((select extract(epoch from clock_timestamp()) - extract(epoch from created_at) from only %[1]s where seq = p.dated limit 1), 0)::float8,
       (select count(*) from dead),
       greatest((select reltuples from pg_catalog.pg_class where oid = to_regclass($3)), 0)::bigint,
       case when $4 then (select count(*) from (select from dead group by aggregate_type, aggregate_id limit $1) held) else 0 end,
       (select count(*) from (select from only %[1]s where retry_at is not null and given_up_at is null group by %[5]s limit $1) retrying),
       (select coalesce(sum(bytes), 0) from parts)::bigint,
       case when (select coalesce(sum(heap), 0) from parts) > $5 then -1 else (select count(*) from %[4]s) end,
       (select coalesce(sum(case when relpages > 0 and reltuples > 0 then reltuples / relpages * (heap / current_setting('block_size')::int) else heap / 400 end), 0) from parts)::bigint
  from pending p`, t.outbox(), t.dead(), t.relay(), t.published(), aggregateColumns)
}

// gaugesArchive is up to which size in bytes the archive's rows are counted.
const gaugesArchive = 4 << 20

// Gauge reads [Gauges], again and again, on a connection of its own that it keeps. It may be used by several goroutines.
type Gauge struct {
	outbox *Outbox

	mu   sync.Mutex // Protects conn.
	conn *pgx.Conn  // Nil for none.
}

// Gauge returns a gauge of the outbox. Close it after use.
func (o *Outbox) Gauge() *Gauge { return &Gauge{outbox: o} }

// Read returns the present numbers. It asks one query, which takes ten seconds at the most, or as long as ctx allows.
func (g *Gauge) Read(ctx context.Context) (Gauges, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	found, err := g.read(ctx)
	if err != nil {
		g.close(ctx)
		return Gauges{}, g.outbox.explain("read the numbers of "+g.outbox.table.String(), err)
	}
	return found, nil
}

func (g *Gauge) read(ctx context.Context) (found Gauges, err error) {
	if g.conn == nil {
		conn, err := g.outbox.connector.connect(ctx, forAdmin())
		if err != nil {
			return Gauges{}, err
		}
		g.conn = conn
		if _, err := conn.Exec(ctx, inspectSettings); err != nil {
			return Gauges{}, err
		}
	}
	return g.outbox.readGauges(ctx, g.conn)
}

// readGauges asks the query.
func (o *Outbox) readGauges(ctx context.Context, conn *pgx.Conn) (found Gauges, err error) {
	var (
		t                         = o.table
		counted, dead, deadInAll  int64
		oldest                    float64
		archived, archivedInAbout int64
	)
	err = conn.QueryRow(ctx, t.gauges(), countLimit, t.parts(), t.dead(), o.holdDead, gaugesArchive).Scan(
		&counted, &found.Pending.Exact, &found.Pending.Rows, &oldest, &dead, &deadInAll, &found.Held, &found.Retrying,
		&found.ArchiveBytes, &archived, &archivedInAbout)
	if err != nil {
		return Gauges{}, err
	}
	found.Oldest = max(duration(&oldest), 0)
	found.Dead = Count{dead, true}
	if dead > countLimit {
		found.Dead = Count{max(dead, deadInAll), false}
	}
	found.Archived = Count{archived, true}
	if archived < 0 {
		found.Archived = Count{archivedInAbout, false}
	}
	return found, nil
}

// Close gives back the connection. A gauge can be read again after that.
func (g *Gauge) Close(ctx context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.close(ctx)
}

func (g *Gauge) close(ctx context.Context) {
	if g.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = g.conn.Close(ctx) // It was only for questions.
	g.conn = nil
}
