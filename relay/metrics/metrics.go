package metrics

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// New registers a relay's metrics and returns the hooks that update them. It fails if the registerer already has metrics
// of these names. [State], [Tables] and [Build] register others.
func New(registerer prometheus.Registerer) (relay.Hooks, error) {
	m := newMetrics()
	for _, collector := range []prometheus.Collector{
		m.leader, m.term, m.pauses, m.published, m.batched, m.duplicates, m.refused, m.dead, m.recoveries, m.recovered, m.lost, m.lag, m.roundTrips, m.fetched, m.settled,
		m.lockWait, m.oldest, m.findings, m.kept, m.repeatedIDs,
		m.elections, m.terms, m.termStarted, m.lastPublished, m.bytes, m.acks, m.roundTrip, m.roundTripErrors, m.recovery,
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
		Paused:    func(fault *stream.Error) { m.pauses.begin(fault, time.Now()) },
		Resumed:   func() { m.pauses.end(time.Now()) },
		Recovered: m.onRecovered,
		RoundTrip: m.onRoundTrip,
		Database:  m.onFinding,
		Kept:      func(store.Kept) { m.kept.Inc() },
		Twice:     func(relay.Twice) { m.repeatedIDs.Inc() },
	}, nil
}

type metrics struct {
	leader, term                prometheus.Gauge
	pauses                      *pauses
	published, batched          prometheus.Counter
	duplicates                  prometheus.Counter
	refused                     prometheus.Counter
	dead                        *prometheus.CounterVec
	recoveries, recovered, lost prometheus.Counter
	lag                         *histogram
	roundTrips, fetched         prometheus.Counter
	settled                     prometheus.Counter
	lockWait, oldest            prometheus.Gauge
	findings                    *prometheus.CounterVec
	kept, repeatedIDs           prometheus.Counter

	elections                  prometheus.Counter
	terms                      *prometheus.CounterVec // That have ended, by the reason.
	termStarted, lastPublished prometheus.Gauge
	bytes, roundTripErrors     prometheus.Counter
	acks, roundTrip, recovery  prometheus.Histogram
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
	}
	vector := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, []string{label})
		for _, value := range values { // A counter that appears with its first increment hides that increment from rate().
			v.WithLabelValues(value)
		}
		return v
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: latencyBuckets()})
	}
	var reasons []string
	for _, reason := range relay.EndReasons() {
		reasons = append(reasons, string(reason))
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
		published:   counter("published_total", "Events that the stream acknowledged, duplicates included."),
		batched:     counter("batched_total", "Published events that went in ordered batches, not each by itself."),
		duplicates:  counter("duplicates_total", "Acknowledged events that the stream had from an earlier attempt."),
		refused:     counter("refused_total", "Times that the broker refused an event. Every attempt counts, an outage does not."),
		dead: vector("dead_total", "Events that were given up and became dead letters: after max_attempts refusals, at once as trying again is of no use, or unread as they can never be published.",
			"reason", deadAttempts, deadPermanent, deadUnfit),
		pauses:          newPauses(),
		lag:             newHistogram("publish_lag_seconds", "For how long each acknowledged event had been in the outbox.", lagBuckets()),
		elections:       counter("elections_total", "Times that this relay was elected."),
		terms:           vector("leadership_lost_total", "Times that this relay ceased to lead, by the reason.", "reason", reasons...),
		termStarted:     gauge("term_started_timestamp_seconds", "When this relay's latest term began, 0 before the first."),
		lastPublished:   gauge("last_published_timestamp_seconds", "When the stream last acknowledged an event of this relay, 0 before the first."),
		bytes:           counter("bytes_published_total", "Bytes of the payloads that the stream acknowledged, duplicates included."),
		acks:            seconds("ack_seconds", "How long the acknowledgement of an event took. One event at a time is measured."),
		roundTrip:       seconds("round_trip_seconds", "How long a round trip to the outbox took."),
		roundTripErrors: counter("round_trip_errors_total", "Round trips to the outbox that failed; each ends a term."),
		recovery:        seconds("recovery_seconds", "How long reading the stream back took."),
		recoveries:      counter("recoveries_total", "Times that the stream was read back, at the beginning of a term or after an outcome in doubt."),
		recovered:       counter("recovered_total", "Events found in the stream when it was read back, and settled without publishing."),
		lost:            counter("lost_total", "Events that the broker had acknowledged and lost, and that went back to the outbox from the archive."),
		roundTrips:      counter("round_trips_total", "Round trips to the outbox."),
		fetched:         counter("fetched_total", "Rows read from the outbox."),
		settled:         counter("settled_total", "Rows removed from the outbox after they were published."),
	}
	for _, kind := range []store.FindingKind{store.FindingLock, store.FindingSlow, store.FindingHorizon} {
		m.findings.WithLabelValues(string(kind))
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

// latencyBuckets reach from a round trip on one machine to one that a lock holds up.
func latencyBuckets() []float64 {
	return []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}
}

// Why events are given up.
const (
	deadAttempts  = "attempts"
	deadPermanent = "permanent"
	deadUnfit     = "unfit"
)

func (m *metrics) onElected(term int64) {
	m.leader.Set(1)
	m.term.Set(float64(term))
	m.elections.Inc()
	m.termStarted.SetToCurrentTime()
}

func (m *metrics) onResigned(reason relay.EndReason) {
	m.leader.Set(0)
	m.terms.WithLabelValues(string(reason)).Inc()
	m.pauses.end(time.Now()) // Only a leader is paused,
	m.lockWait.Set(0)
	m.oldest.Set(0) // and only a leader watches its session.
}

func (m *metrics) onPublished(p relay.Published) {
	m.published.Add(float64(p.Events))
	m.duplicates.Add(float64(p.Duplicates))
	if p.Ordered {
		m.batched.Add(float64(p.Events))
	}
	m.bytes.Add(float64(p.Bytes))
	m.lastPublished.SetToCurrentTime()
	m.lag.since(p.Created, time.Now())
	if p.Ack > 0 {
		m.acks.Observe(p.Ack.Seconds())
	}
}

func (m *metrics) onRefused(r relay.Refused) {
	m.refused.Inc()
	if !r.Dead {
		return
	}
	reason := deadUnfit
	if fault, ok := errors.AsType[*stream.Error](r.Err); ok {
		reason = deadAttempts
		if fault.Permanent {
			reason = deadPermanent
		}
	}
	m.dead.WithLabelValues(reason).Inc()
}

func (m *metrics) onRecovered(r relay.Recovered) {
	m.recoveries.Inc()
	m.recovery.Observe(r.Took.Seconds())
	m.recovered.Add(float64(r.Found))
	if !r.Skipped { // If the reading was skipped, they had never been stored.
		m.lost.Add(float64(r.Lost))
	}
}

func (m *metrics) onRoundTrip(e relay.RoundTrip) {
	m.roundTrips.Inc()
	m.roundTrip.Observe(e.Took.Seconds())
	if e.Err != nil {
		m.roundTripErrors.Inc()
	}
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
