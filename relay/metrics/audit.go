package metrics

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-outbox/go-outbox/relay/audit"
)

// Audit registers the metrics of audits that go on beside a relay, and returns the hooks that update them. It fails if the
// registerer already has metrics of these names.
func Audit(registerer prometheus.Registerer) (audit.Hooks, error) {
	events := prometheus.NewCounter(prometheus.CounterOpts{
		Name: prefix + "audited_events_total",
		Help: "Archived events that were compared with the stream: each counts once an audit. With audit_interval only.",
	})
	violations := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "violations_total",
		Help: "Events that an audit found missing, stored twice or out of order: each counts once.",
	}, []string{"kind"})
	for _, kind := range audit.Kinds() { // A counter that appears with its first increment hides it from rate().
		violations.WithLabelValues(string(kind))
	}
	for _, collector := range []prometheus.Collector{events, violations} {
		if err := registerer.Register(collector); err != nil {
			return audit.Hooks{}, fmt.Errorf("register the audit's metrics: %w", err)
		}
	}
	return audit.Hooks{
		Audited:  func(r audit.Report) { events.Add(float64(r.Events)) },
		Violated: func(v audit.Violation) { violations.WithLabelValues(string(v.Kind)).Inc() },
	}, nil
}
