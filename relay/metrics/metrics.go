package metrics

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// New registers a relay's metrics and returns the hooks that update them. It fails if the registerer already has metrics
// of these names.
func New(registerer prometheus.Registerer) (relay.Hooks, error) {
	m := newMetrics()
	for _, collector := range []prometheus.Collector{
		m.leader, m.term, m.paused, m.pauses, m.published, m.batched, m.duplicates, m.refused, m.dead, m.recoveries, m.recovered, m.lost, m.lag, m.roundTrips, m.fetched, m.settled,
		m.lockWait, m.oldest, m.findings, m.kept, m.repeatedIDs,
	} {
		if err := registerer.Register(collector); err != nil {
			return relay.Hooks{}, fmt.Errorf("register the relay's metrics: %w", err)
		}
	}
	return relay.Hooks{
		Elected:   m.onElected,
		Resigned:  m.onResigned,
		Published: m.onPublished,
		Refused:   m.onRefused,
		Paused:    m.onPaused,
		Resumed:   m.onResumed,
		Recovered: m.onRecovered,
		RoundTrip: m.onRoundTrip,
		Database:  m.onFinding,
		Kept:      func(store.Kept) { m.kept.Inc() },
		Twice:     func(relay.Twice) { m.repeatedIDs.Inc() },
	}, nil
}

type metrics struct {
	leader, term, paused        prometheus.Gauge
	pauses                      *prometheus.CounterVec
	published, batched          prometheus.Counter
	duplicates                  prometheus.Counter
	refused, dead               prometheus.Counter
	recoveries, recovered, lost prometheus.Counter
	lag                         prometheus.Histogram
	roundTrips, fetched         prometheus.Counter
	settled                     prometheus.Counter
	lockWait, oldest            prometheus.Gauge
	findings                    *prometheus.CounterVec
	kept, repeatedIDs           prometheus.Counter

	// pausedBy is whose fault the present pause is, empty for none. It belongs to the relay's goroutine.
	pausedBy string
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
	}
	m := &metrics{
		lockWait: gauge("lock_wait_seconds", "For how long this relay, while it leads, has been waiting for a lock in Postgres, 0 if it waits for none."),
		oldest:   gauge("oldest_transaction_seconds", "Age of the transaction that keeps dead rows from being removed, while that slows this relay or is about to, 0 otherwise."),
		findings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "database_findings_total",
			Help: "Times that something in Postgres was found to slow or stop this relay: a lock, a slow statement, an old transaction.",
		}, []string{"kind"}),
		kept:        counter("kept_rows_total", "Times that Postgres refused to settle a row or to record its refusal, for a reason of that row's own: it stays in the outbox."),
		repeatedIDs: counter("repeated_ids_total", "Events that the stream did not store since another row had the same id."),
		leader:      gauge("leader", "Whether this relay leads."),
		term:        gauge("term", "Number of this relay's latest term, 0 before the first."),
		paused:      gauge("paused", "Whether this relay leads and cannot publish."),
		pauses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "pauses_total",
			Help: "Times that publishing paused, by whose fault: weather passes by itself, setup is for a person to mend.",
		}, []string{"fault"}),
		published:  counter("published_total", "Events that the stream acknowledged, duplicates included."),
		batched:    counter("batched_total", "Published events that went in ordered batches, not each by itself."),
		duplicates: counter("duplicates_total", "Acknowledged events that the stream had from an earlier attempt."),
		refused:    counter("refused_total", "Times that the broker refused an event. Every attempt counts, an outage does not."),
		dead:       counter("dead_total", "Events that were given up and became dead letters."),
		recoveries: counter("recoveries_total", "Times that the stream was read back, at the beginning of a term or after an outcome in doubt."),
		recovered:  counter("recovered_total", "Events found in the stream when it was read back, and settled without publishing."),
		lost:       counter("lost_total", "Events that the broker had acknowledged and lost, and that went back to the outbox from the archive."),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    prefix + "publish_lag_seconds",
			Help:    "Age of the oldest event in each group of acknowledgements.",
			Buckets: lagBuckets(),
		}),
		roundTrips: counter("round_trips_total", "Round trips to the outbox."),
		fetched:    counter("fetched_total", "Rows read from the outbox."),
		settled:    counter("settled_total", "Rows removed from the outbox after they were published."),
	}
	for _, kind := range []store.FindingKind{store.FindingLock, store.FindingSlow, store.FindingHorizon} {
		m.findings.WithLabelValues(string(kind))
	}
	// A counter that appears with its first increment hides that increment from rate().
	for _, fault := range []stream.Fault{stream.FaultWeather, stream.FaultSetup} {
		m.pauses.WithLabelValues(fault.String())
	}
	return m
}

// prefix begins the name of every metric.
const prefix = "outbox_relay_"

// lagBuckets reach from an event published at once to one that waited out an outage of a night.
func lagBuckets() []float64 {
	const minute, hour = 60, 60 * 60
	return []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, minute, 5 * minute, 15 * minute, hour, 4 * hour, 12 * hour}
}

func (m *metrics) onElected(term int64) {
	m.leader.Set(1)
	m.term.Set(float64(term))
}

func (m *metrics) onResigned() {
	m.leader.Set(0)
	m.onResumed() // Only a leader is paused,
	m.lockWait.Set(0)
	m.oldest.Set(0) // and only a leader watches its session.
}

func (m *metrics) onPublished(p relay.Published) {
	m.published.Add(float64(p.Events))
	m.duplicates.Add(float64(p.Duplicates))
	if p.Ordered {
		m.batched.Add(float64(p.Events))
	}
	if !p.Oldest.IsZero() { // Zero: the relay no longer held any of them.
		m.lag.Observe(max(time.Since(p.Oldest), 0).Seconds())
	}
}

func (m *metrics) onRefused(r relay.Refused) {
	m.refused.Inc()
	if r.Dead {
		m.dead.Inc()
	}
}

// onPaused counts a pause once, however often its reason changes, unless it becomes somebody else's fault.
func (m *metrics) onPaused(fault *stream.Error) {
	by := fault.Fault.String()
	if by != m.pausedBy {
		m.pauses.WithLabelValues(by).Inc()
	}
	m.pausedBy = by
	m.paused.Set(1)
}

func (m *metrics) onResumed() {
	m.pausedBy = ""
	m.paused.Set(0)
}

func (m *metrics) onRecovered(r relay.Recovered) {
	m.recoveries.Inc()
	m.recovered.Add(float64(r.Found))
	if !r.Skipped { // If the reading was skipped, they had never been stored.
		m.lost.Add(float64(r.Lost))
	}
}

func (m *metrics) onRoundTrip(e relay.RoundTrip) {
	m.roundTrips.Inc()
	m.fetched.Add(float64(e.Fetched))
	m.settled.Add(float64(e.Settled))
}

func (m *metrics) onFinding(f store.Finding) {
	if !f.Known && !f.Over {
		m.findings.WithLabelValues(string(f.Kind)).Inc()
	}
	waited, age := f.Waited, f.Holder.Age
	if f.Over {
		waited, age = 0, 0
	}
	switch f.Kind {
	case store.FindingLock:
		m.lockWait.Set(waited.Seconds())
	case store.FindingHorizon:
		m.oldest.Set(age.Seconds())
	case store.FindingSlow:
	}
}
