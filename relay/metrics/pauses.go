package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-outbox/go-outbox/stream"
)

// pauses tell whose fault the present pause is, and for how long publishing has been paused in all.
type pauses struct {
	total                      *prometheus.CounterVec
	paused, fault, pausedInAll *prometheus.Desc
	known                      []stream.Fault // That a pause may be.

	mu     sync.Mutex    // Protects the rest.
	by     string        // Whose fault the present pause is; empty for none.
	since  time.Time     // When it began.
	before time.Duration // Of all pauses before it.
}

func newPauses() *pauses {
	p := &pauses{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "pauses_total",
			Help: "Times that publishing paused, by whose fault: weather passes by itself, setup is for a person to mend.",
		}, []string{"fault"}),
		paused:      prometheus.NewDesc(prefix+"paused", "Whether this relay leads and cannot publish.", nil, nil),
		fault:       prometheus.NewDesc(prefix+"pause_fault", "Whether this relay leads and cannot publish just now, by whose fault.", []string{"fault"}, nil),
		pausedInAll: prometheus.NewDesc(prefix+"paused_seconds_total", "For how long this relay led and could not publish, in all.", nil, nil),
		known:       []stream.Fault{stream.FaultWeather, stream.FaultSetup},
	}
	for _, fault := range p.known { // A counter that appears with its first increment hides that increment from rate().
		p.total.WithLabelValues(fault.String())
	}
	return p
}

// begin counts a pause once, however often its reason changes, unless it becomes somebody else's fault.
func (p *pauses) begin(fault *stream.Error, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	by := fault.Fault.String()
	if by != p.by {
		p.total.WithLabelValues(by).Inc()
	}
	if p.by == "" {
		p.since = now
	}
	p.by = by
}

func (p *pauses) end(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by != "" {
		p.before += now.Sub(p.since)
	}
	p.by = ""
}

// Describe implements [prometheus.Collector].
func (p *pauses) Describe(to chan<- *prometheus.Desc) {
	p.total.Describe(to)
	to <- p.paused
	to <- p.fault
	to <- p.pausedInAll
}

// Collect implements [prometheus.Collector].
func (p *pauses) Collect(to chan<- prometheus.Metric) {
	p.total.Collect(to)
	p.mu.Lock()
	defer p.mu.Unlock()
	inAll := p.before
	if p.by != "" {
		inAll += time.Since(p.since)
	}
	to <- prometheus.MustNewConstMetric(p.paused, prometheus.GaugeValue, oneIf(p.by != ""))
	to <- prometheus.MustNewConstMetric(p.pausedInAll, prometheus.CounterValue, inAll.Seconds())
	for _, fault := range p.known {
		to <- prometheus.MustNewConstMetric(p.fault, prometheus.GaugeValue, oneIf(p.by == fault.String()), fault.String())
	}
}

// oneIf is a truth value as Prometheus has it.
func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
