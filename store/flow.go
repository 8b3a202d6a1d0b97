package store

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Flow is how events leave the outbox, as the archive tells.
type Flow struct {
	// Last is how long ago the latest event was recorded as published.
	Last time.Duration
	// Rate is how many events a second were published in the past ten seconds or, if they were very many, in a part of them.
	Rate float64
}

const (
	// flowWindow is the time of which the rate is taken.
	flowWindow = 10 * time.Second
	// flowPages is how many pages are looked at, at the end of each part of the archive: rows come in the order of their
	// publishing.
	flowPages = 512
)

// flow reads it; nil if the archive is empty.
func (t Table) flow(ctx context.Context, conn *pgx.Conn) (*Flow, error) {
	var from []string // For each part, the first row to look at.
	err := conn.QueryRow(ctx, `
select array_agg('(' || greatest(pg_relation_size(part::regclass) / current_setting('block_size')::int - $2, 0) || ',0)' order by n)
  from unnest($1::text[]) with ordinality as p (part, n)`, t.parts(), flowPages).Scan(&from)
	if err != nil {
		return nil, err
	}
	query, args := "", []any{flowWindow.Seconds()}
	for i, part := range t.parts() {
		if i > 0 {
			query += " union all "
		}
		args = append(args, from[i])
		place := "$" + strconv.Itoa(len(args))
		// In a part that was looked at from its beginning there is nothing older.
		query += `select published_at, ` + place + `::text <> '(0,0)' as cut from only ` + part + ` where ctid >= ` + place + `::text::tid`
	}
	var last, window *float64
	var events int64
	err = conn.QueryRow(ctx, `
with seen as (select extract(epoch from clock_timestamp() - published_at)::float8 as age, cut from (`+query+`) parts where isfinite(published_at)),
     cut as (select max(oldest) as age from (select max(age) as oldest from seen where cut having max(age) < $1) c)
select (select min(age) from seen), (select age from cut), count(*) from seen where age <= coalesce((select age from cut), $1)`, args...).Scan(&last, &window, &events)
	if err != nil || last == nil {
		return nil, err
	}
	seconds := flowWindow.Seconds()
	if window != nil {
		seconds = max(*window, time.Millisecond.Seconds())
	}
	return &Flow{Last: max(duration(last), 0), Rate: float64(events) / seconds}, nil
}
