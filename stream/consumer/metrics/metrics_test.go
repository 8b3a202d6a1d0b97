package metrics_test

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/go-outbox/go-outbox/stream/consumer"
	"github.com/go-outbox/go-outbox/stream/consumer/metrics"
)

type status consumer.Status

func (s status) Status() consumer.Status { return consumer.Status(s) }

func TestMetrics(t *testing.T) {
	collector := metrics.New("payments", status{
		State: consumer.Consuming, Position: 70, Lag: 30, Pending: 20, Held: []consumer.Held{{Since: time.Now().Add(-time.Hour)}},
		Applied: 60, Skipped: 9, Parked: 1, Retries: 12,
	})
	problems, err := testutil.CollectAndLint(collector)
	if err != nil || len(problems) > 0 {
		t.Errorf("got %v, %v", problems, err)
	}
	want := `
# HELP outbox_consumer_lag_messages Messages of the stream that are not handled yet; only where it consumes.
# TYPE outbox_consumer_lag_messages gauge
outbox_consumer_lag_messages{consumer="payments"} 30
# HELP outbox_consumer_applied_events_total Events whose effect this process has committed.
# TYPE outbox_consumer_applied_events_total counter
outbox_consumer_applied_events_total{consumer="payments"} 60
`
	if err := testutil.CollectAndCompare(collector, strings.NewReader(want), "outbox_consumer_lag_messages", "outbox_consumer_applied_events_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(collector); n != 10 {
		t.Errorf("%d metrics, want 10", n)
	}
	if n := testutil.CollectAndCount(metrics.New("payments", status{State: consumer.StandingBy})); n != 8 {
		t.Errorf("%d metrics of a standby, want 8", n)
	}
}
