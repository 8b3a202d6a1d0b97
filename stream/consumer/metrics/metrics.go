// Package metrics shows a consumer to Prometheus. What it shows is [consumer.Consumer.Status], read at each scrape: it asks
// neither Postgres nor NATS.
//
//	registry.MustRegister(metrics.New("payments", c))
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-outbox/go-outbox/stream/consumer"
)

// Source is what is shown: *consumer.Consumer.
type Source interface{ Status() consumer.Status }

type collector struct {
	source Source
	now    func() time.Time

	consuming, position, lag, pending, held, heldFor *prometheus.Desc
	applied, skipped, parked, retries                *prometheus.Desc
}

// New returns a collector for a consumer; name becomes the label "consumer".
func New(name string, source Source) prometheus.Collector {
	desc := func(metric, help string) *prometheus.Desc {
		return prometheus.NewDesc("outbox_consumer_"+metric, help, nil, prometheus.Labels{"consumer": name})
	}
	return &collector{
		source:    source,
		now:       time.Now,
		consuming: desc("consuming", "Whether this process consumes; of the processes of one consumer one does."),
		position:  desc("position", "The sequence of the stream up to which all is handled; only where it consumes."),
		lag:       desc("lag_messages", "Messages of the stream that are not handled yet; only where it consumes."),
		pending:   desc("pending_messages", "Messages that are read and not handled yet."),
		held:      desc("held_events", "Events that failed and will be tried again. Each holds up its lane."),
		heldFor:   desc("held_seconds", "For how long the oldest of the held events has been failing; 0 without one."),
		applied:   desc("applied_events_total", "Events whose effect this process has committed."),
		skipped:   desc("skipped_events_total", "Events that came again and had been handled before."),
		parked:    desc("parked_events_total", "Events that were given up: see the table outbox_parked."),
		retries:   desc("handler_failures_total", "Calls of the handler that failed."),
	}
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.consuming, c.position, c.lag, c.pending, c.held, c.heldFor, c.applied, c.skipped, c.parked, c.retries} {
		to <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := c.source.Status()
	gauge := func(d *prometheus.Desc, value float64) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value)
	}
	counter := func(d *prometheus.Desc, value uint64) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value))
	}
	consuming := 0.0
	if s.State == consumer.Consuming {
		consuming = 1
	}
	gauge(c.consuming, consuming)
	if consuming == 1 {
		gauge(c.position, float64(s.Position))
		gauge(c.lag, float64(s.Lag))
	}
	gauge(c.pending, float64(s.Pending))
	gauge(c.held, float64(len(s.Held)))
	heldFor := 0.0
	if len(s.Held) > 0 {
		heldFor = c.now().Sub(s.Held[0].Since).Seconds()
	}
	gauge(c.heldFor, heldFor)
	counter(c.applied, s.Applied)
	counter(c.skipped, s.Skipped)
	counter(c.parked, s.Parked)
	counter(c.retries, s.Retries)
}
