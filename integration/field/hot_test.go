package field_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// A stream that takes no ordered batches stores an aggregate's events one after the other. The backlog of one aggregate takes
// its time; nobody else waits for it.
func TestHotAggregate(t *testing.T) {
	rows := rowsFor(30_000, 2_000_000)
	s := newScene(t)
	if _, err := s.JetStream().CreateStream(s.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, Duplicates: 2 * time.Minute,
	}); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.Exec(s.conn, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 't', 'Bulk', 'hot', 'E', 'x' from generate_series(1, $1::int) i`, rows)
	s.mark()
	harness.Pause(t.Context(), 4*time.Second)
	var left int
	if err := s.conn.QueryRow(t.Context(), `select count(*) from outbox where aggregate_type = 'Bulk'`).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left == 0 || left == rows {
		s.problem("%d rows of %d are left after a while: this test shows nothing", left, rows)
	}
	s.check(fmt.Sprintf("beside %d events of one aggregate", rows))
	harness.Eventually(t, time.Minute+time.Duration(rows)*time.Millisecond, "the events of the hot aggregate are stored", func() bool {
		harness.Pause(t.Context(), 200*time.Millisecond)
		var left bool
		if err := s.conn.QueryRow(t.Context(), `select exists (select from outbox where aggregate_type = 'Bulk')`).Scan(&left); err != nil {
			t.Fatal(err)
		}
		return !left
	})
	for _, fault := range s.traffic.Audit(30 * time.Second) {
		s.problem("%s", fault)
	}
	s.verdict()
}
