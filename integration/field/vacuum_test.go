package field_test

import (
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// rowsFor is how many rows a test is about: some every day, and as many as were seen in the field with -field.long.
func rowsFor(daily, full int) int {
	if *long {
		return full
	}
	return daily
}

// An idle transaction keeps vacuum from removing published rows. No event waits for it, no term ends, a new leader soon
// publishes, and the log names the transaction. Not parallel: it measures times, and writes much.
func TestDeadRowsUnderIdleTransaction(t *testing.T) {
	rows := rowsFor(300_000, 9_000_000)
	s := newScene(t)
	s.start()
	idle := s.Connect()
	s.Exec(idle, `set application_name = 'report-9'`)
	s.Exec(idle, `begin isolation level repeatable read`)
	s.Exec(idle, `select count(*) from pg_class`)
	for done := 0; done < rows; {
		n := min(rows-done, 300_000)
		s.Exec(s.conn, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 't', 'Bulk', 'b' || i % 1000, 'E', 'x' from generate_series(1, $1::int) i`, n)
		done += n
		harness.Eventually(t, 5*time.Minute, "the rows are published", func() bool {
			var left bool
			if err := s.conn.QueryRow(t.Context(), `select exists (select from outbox where aggregate_type = 'Bulk')`).Scan(&left); err != nil {
				t.Fatal(err)
			}
			harness.Pause(t.Context(), 200*time.Millisecond) // Each look reads all the dead rows.
			return !left
		})
	}
	if terms := s.latestTerm() - s.term; terms > 0 {
		s.problem("%d new terms while the rows were published", terms)
	}
	s.awaitConsumer()
	s.mark()
	harness.Pause(t.Context(), 4*time.Second)
	s.check(fmt.Sprintf("after %d dead rows", rows))
	s.takeover(func() {})
	names := regexp.MustCompile(fmt.Sprintf(`(WRN|ERR).*\b%d\b`, idle.PgConn().PID()))
	within := 5 * time.Second
	if *long {
		within = 90 * time.Second
	}
	if told := s.relay.Await(within, names); !told && *long { // A few hundred thousand rows may be too few to matter.
		s.problem("the log does not name pid %d, which holds the horizon", idle.PgConn().PID())
	} else if told && !s.relay.Said("report-9") {
		s.problem("the log does not name the application of the transaction that holds the horizon")
	}
	s.check("at the next relay")
	s.Exec(idle, `rollback`)
	for _, fault := range s.traffic.Audit(30 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}

// A great many rows wait for a person's decision about a dead letter of their aggregate. No other aggregate waits.
func TestRowsBehindHeldAggregate(t *testing.T) {
	rows := rowsFor(300_000, 7_000_000)
	s := newScene(t, "OUTBOX_ON_DEAD=hold")
	s.start()
	s.Exec(s.conn, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers) values ('t', 'Held', 'h', 'E', 'x', '{"Nats-Rollup": "all"}')`)
	harness.Eventually(t, 20*time.Second, "the row is refused", func() bool { return s.relay.Said("aggregate_type=Held") })
	harness.Pause(t.Context(), time.Second)
	s.Exec(s.conn, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 't', 'Held', 'h', 'E', 'x' from generate_series(1, $1::int) i`, rows)
	harness.Pause(t.Context(), time.Second)
	if terms := s.latestTerm() - s.term; terms > 0 {
		s.problem("%d new terms while the rows were written", terms)
	}
	s.mark()
	if *long { // Each of them is looked at twice at least, since nobody knows whose they are: that holds up the others, once.
		harness.Pause(t.Context(), 10*time.Second)
		s.mark()
	}
	harness.Pause(t.Context(), 4*time.Second)
	s.check(fmt.Sprintf("beside %d held rows", rows))
	s.checkCommands()
	s.takeover(func() {})
	harness.Pause(t.Context(), 3*time.Second)
	s.check("at the next relay")
	s.checkLog(s.began)
	var left int
	if err := s.conn.QueryRow(t.Context(), `select count(*) from outbox where aggregate_type = 'Held'`).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left < rows {
		s.problem("%d rows of %d are still held", left, rows)
	}
	for _, fault := range s.traffic.Audit(30 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}
