package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// histogram is a histogram that takes many observations at once: under one lock, and without an allocation.
type histogram struct {
	desc    *prometheus.Desc
	buckets []float64

	mu     sync.Mutex // Protects the rest.
	counts []uint64   // Of each bucket alone; the last one has what is above all bounds.
	sum    float64
}

func newHistogram(name, help string, buckets []float64) *histogram {
	return &histogram{desc: prometheus.NewDesc(prefix+name, help, nil, nil), buckets: buckets, counts: make([]uint64, len(buckets)+1)}
}

// since observes for how long it has been since each of these times. A time in the future counts as now.
func (h *histogram) since(times []time.Time, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range times {
		seconds := max(now.Sub(t).Seconds(), 0)
		i := 0
		for i < len(h.buckets) && seconds > h.buckets[i] { // Most are in one of the first.
			i++
		}
		h.counts[i]++
		h.sum += seconds
	}
}

// Describe implements [prometheus.Collector].
func (h *histogram) Describe(to chan<- *prometheus.Desc) { to <- h.desc }

// Collect implements [prometheus.Collector].
func (h *histogram) Collect(to chan<- prometheus.Metric) {
	h.mu.Lock()
	defer h.mu.Unlock()
	below, total := make(map[float64]uint64, len(h.buckets)), uint64(0)
	for i, bound := range h.buckets {
		total += h.counts[i]
		below[bound] = total
	}
	total += h.counts[len(h.buckets)]
	to <- prometheus.MustNewConstHistogram(h.desc, total, h.sum, below)
}
