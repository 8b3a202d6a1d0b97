package harness

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
)

// Backlog is a great many events that were inserted at once: half of them of one aggregate, the others of fifty. Each
// carries its number, padded to Size bytes.
type Backlog struct {
	*World

	Stream, Table string
	Size          int    // 0 for as short as possible.
	Topic         string // Empty for "t".

	rows int
	js   jetstream.JetStream
}

// Backlog returns an empty backlog in the usual table, for the usual stream.
func (w *World) Backlog() *Backlog { return &Backlog{World: w, Stream: "OUTBOX", Table: "outbox"} }

// Migrate creates the outbox without a relay.
func (b *Backlog) Migrate() *Backlog {
	b.Helper()
	b.CommandWith([]string{"OUTBOX_TABLE=" + b.Table}, "migrate")
	return b
}

// Add inserts so many rows in one transaction.
func (b *Backlog) Add(conn *pgx.Conn, rows int) *Backlog {
	b.Helper()
	b.Exec(conn, fmt.Sprintf(`
insert into %s (topic, aggregate_type, aggregate_id, event_type, data)
select $4, 'A', case when i %% 2 = 0 then 'hot' else 'a' || i %% 100 end, 'E', convert_to(rpad(i::text, greatest($3::int, length(i::text))), 'UTF8')
  from generate_series($1::int, $2::int) i order by i`, b.Table), b.rows+1, b.rows+rows, b.Size, cmp.Or(b.Topic, "t"))
	b.rows += rows
	return b
}

// Stored returns how many events the stream holds.
func (b *Backlog) Stored() int {
	b.Helper()
	if b.js == nil {
		b.js = b.JetStream()
	}
	return b.StoredIn(b.js, b.Stream)
}

// Reaches waits until the stream holds at least so many events.
func (b *Backlog) Reaches(n int) {
	b.Helper()
	Eventually(b.TB, 30*time.Second, fmt.Sprintf("%d events in the stream", n), func() bool { return b.Stored() >= n })
}

// Audit waits until nothing in the outbox is pending and the stream holds each row once, in its aggregate's order, and nothing else;
// except for the numbers in without, which it must not hold.
func (b *Backlog) Audit(conn *pgx.Conn, without ...int) {
	b.Helper()
	Eventually(b.TB, 90*time.Second, "the outbox is empty", func() bool {
		var waiting bool
		if err := conn.QueryRow(b.Context(), `select exists (select from `+b.Table+` where given_up_at is null)`).Scan(&waiting); err != nil {
			b.Fatal(err)
		}
		return !waiting
	})
	missing := make(map[int]bool, b.rows)
	for i := range b.rows {
		missing[i+1] = true
	}
	for _, number := range without {
		delete(missing, number)
	}
	faults := 0
	fault := func(format string, args ...any) {
		if faults++; faults <= 10 {
			b.Errorf(format, args...)
		}
	}
	latest := map[string]int{}
	for _, m := range b.MessagesOf(b.Stream) {
		aggregate := m.Header.Get("Outbox-Aggregate-Id")
		number, err := leading(m.Data)
		switch {
		case err != nil:
			fault("foreign message %d on %s", m.Sequence, m.Subject)
			continue
		case !missing[number]:
			fault("%s: number %d is stored twice, or should not be there", aggregate, number)
		case number < latest[aggregate]:
			fault("%s: number %d is stored after %d", aggregate, number, latest[aggregate])
		}
		delete(missing, number)
		latest[aggregate] = max(latest[aggregate], number)
	}
	for number := range missing {
		fault("number %d is missing", number)
	}
	if faults > 10 {
		b.Errorf("… and %d more", faults-10)
	}
}

// leading reads the number at the beginning of a payload that is padded with spaces.
func leading(data []byte) (int, error) {
	end := 0
	for end < len(data) && data[end] != ' ' {
		end++
	}
	return strconv.Atoi(string(data[:end]))
}
