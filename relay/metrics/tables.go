package metrics

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-outbox/go-outbox/store"
)

const (
	// tablesEvery is how often the tables are asked at most, however many scrapers there are.
	tablesEvery = 5 * time.Second
	// tablesPatience is how long a scrape waits for Postgres. Scrapers give up after ten seconds by default.
	tablesPatience = 3 * time.Second
)

// TablesReader reads the outbox's numbers: a [store.Gauge], say.
type TablesReader interface {
	Read(ctx context.Context) (store.Gauges, error)
}

// Tables registers what the tables tell: how much is pending and since when, dead letters, held aggregates, the archive. A
// relay that leads has them as one that stands by.
//
// They are read when they are scraped, with one query in five seconds at the most. While the tables cannot be read,
// outbox_relay_tables_up is 0, the numbers are those of the last success, and the age of the oldest pending event rises.
// Tables fails if the registerer has metrics of these names already.
func Tables(registerer prometheus.Registerer, reader TablesReader) error {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(prefix+name, help, nil, nil) }
	t := &tables{
		reader:       reader,
		up:           desc("tables_up", "Whether the tables' numbers could be read at the latest attempt. If not, the others are those of the last success."),
		pending:      desc("pending_events", "Events in the outbox: exactly up to 10,000, beyond that an estimate."),
		oldest:       desc("oldest_pending_seconds", "Age of the oldest event in the outbox, 0 if there is none."),
		dead:         desc("dead_letters", "Dead letters that somebody has to requeue or discard."),
		held:         desc("held_aggregates", "Aggregates whose events wait for a decision about a dead letter (on_dead = hold)."),
		retrying:     desc("retrying_aggregates", "Aggregates whose events wait for another attempt of a refused one."),
		archived:     desc("archive_events", "Events in the archive: exactly while it is small, beyond that an estimate."),
		archiveBytes: desc("archive_bytes", "What the archive takes on disk, with its indexes."),
	}
	if err := registerer.Register(t); err != nil {
		return fmt.Errorf("register the tables' metrics: %w", err)
	}
	return nil
}

// tables is a collector that asks when it is asked.
type tables struct {
	reader                                                            TablesReader
	up, pending, oldest, dead, held, retrying, archived, archiveBytes *prometheus.Desc

	mu    sync.Mutex // Protects the rest, and makes scrapers wait for one answer.
	asked time.Time  // When the tables were asked last; zero for never.
	read  time.Time  // When they last answered; zero for never.
	fault error      // Of the latest attempt.
	last  store.Gauges
}

func (t *tables) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{t.up, t.pending, t.oldest, t.dead, t.held, t.retrying, t.archived, t.archiveBytes} {
		to <- desc
	}
}

func (t *tables) Collect(to chan<- prometheus.Metric) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked.IsZero() || time.Since(t.asked) >= tablesEvery {
		t.ask()
	}
	gauge := func(desc *prometheus.Desc, value float64) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
	if t.fault != nil {
		gauge(t.up, 0)
	} else {
		gauge(t.up, 1)
	}
	if t.read.IsZero() {
		return // Zeros would say that nothing is pending.
	}
	oldest := t.last.Oldest
	if oldest > 0 && t.fault != nil {
		oldest += time.Since(t.read)
	}
	gauge(t.pending, float64(t.last.Pending.Rows))
	gauge(t.oldest, oldest.Seconds())
	gauge(t.dead, float64(t.last.Dead.Rows))
	gauge(t.held, float64(t.last.Held))
	gauge(t.retrying, float64(t.last.Retrying))
	gauge(t.archived, float64(t.last.Archived.Rows))
	gauge(t.archiveBytes, float64(t.last.ArchiveBytes))
}

// ask reads the tables.
func (t *tables) ask() {
	ctx, cancel := context.WithTimeout(context.Background(), tablesPatience)
	defer cancel()
	found, err := t.reader.Read(ctx)
	t.asked, t.fault = time.Now(), err
	if err == nil {
		t.read, t.last = t.asked, found
	}
}
