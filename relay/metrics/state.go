package metrics

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-outbox/go-outbox/relay"
)

// State registers what a relay's status tells: whether it is ready or stands by, what it reaches, and which conditions of
// exactly-once delivery hold. Status is called for each scrape: [relay.Relay.Status], say. State fails if the registerer has
// metrics of these names already.
func State(registerer prometheus.Registerer, status func() relay.Status) error {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, labels, nil)
	}
	s := &state{
		status:    status,
		ready:     desc("ready", "Whether this relay publishes, or could publish while another one leads."),
		standby:   desc("standby", "Whether another relay leads, and this one could."),
		postgres:  desc("postgres_up", "Whether this relay reached Postgres when it last needed it."),
		nats:      desc("nats_up", "Whether this relay reached JetStream when it last needed it."),
		listening: desc("listening", "Whether this relay leads and hears of new events at once. If it leads and does not, it polls."),
		paused:    desc("paused_by_hand", "Whether a person has paused the outbox, so that no relay publishes."),
		condition: desc("condition", "Whether a condition of exactly-once delivery held when this relay last connected to NATS.", "check"),
	}
	if err := registerer.Register(s); err != nil {
		return fmt.Errorf("register the metrics of the relay's state: %w", err)
	}
	return nil
}

type state struct {
	status                                                       func() relay.Status
	ready, standby, postgres, nats, listening, paused, condition *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (s *state) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{s.ready, s.standby, s.postgres, s.nats, s.listening, s.paused, s.condition} {
		to <- desc
	}
}

// Collect implements [prometheus.Collector].
func (s *state) Collect(to chan<- prometheus.Metric) {
	now := s.status()
	gauge := func(desc *prometheus.Desc, yes bool, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, oneIf(yes), labels...)
	}
	gauge(s.ready, now.Ready())
	gauge(s.standby, now.Standby && now.Fit)
	gauge(s.postgres, now.Postgres)
	gauge(s.nats, now.NATS)
	gauge(s.listening, now.Listening)
	gauge(s.paused, now.Pause != nil)
	for check, holds := range now.Conditions {
		gauge(s.condition, holds, check)
	}
}
