package check

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

func alertRules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	parsed, errs := rulefmt.ParseFile(alerts, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var rules []rulefmt.Rule
	for _, group := range parsed.Groups {
		rules = append(rules, group.Rules...)
	}
	return rules
}

// The rules are one file. The operator's object and the chart's file are copies of it.
func TestAlertsAreOneFile(t *testing.T) {
	text := read(t, alerts)
	var indented strings.Builder
	for line := range strings.Lines(text) {
		if line != "\n" {
			indented.WriteString("  ")
		}
		indented.WriteString(line)
	}
	same(t, filepath.Join(manifests, "monitoring", "prometheusrule.yaml"), `# Made from examples/observability/alerts.yml: go test -run TestAlertsAreOneFile -update, in examples/kubernetes/check.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: outbox-relay
  labels:
    app.kubernetes.io/name: outbox-relay
    app.kubernetes.io/component: relay
spec:
`+indented.String())
	same(t, filepath.Join(chartDir, "files", "alerts.yml"), text)
}

// Each rule is about metrics that exist, says how bad it is, and has a heading in the runbook.
func TestAlertsAreWhole(t *testing.T) {
	known := knownMetrics(t)
	headings := make(map[string]bool)
	for _, h := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(read(t, runbook), -1) {
		headings[h[1]] = true
	}
	for _, r := range alertRules(t) {
		for _, name := range metricsOf(t, r.Expr) {
			if !known[strings.TrimSuffix(name, "_bucket")] {
				t.Errorf("%s: there is no metric %s", r.Alert, name)
			}
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", r.Alert, s)
		}
		if r.Annotations["summary"] == "" || !strings.HasSuffix(r.Annotations["runbook_url"], "examples/observability/RUNBOOK.md#"+strings.ToLower(r.Alert)) {
			t.Errorf("%s: annotations %v", r.Alert, r.Annotations)
		}
		if !headings[r.Alert] {
			t.Errorf("%s has no heading in the runbook", r.Alert)
		}
		delete(headings, r.Alert)
	}
	if len(headings) > 0 {
		t.Errorf("the runbook has headings of no alert: %v", headings)
	}
}

// knownMetrics are those of the relay.
func knownMetrics(t *testing.T) map[string]bool {
	t.Helper()
	// A test of package metrics compares this list with what is registered.
	known := make(map[string]bool)
	for _, name := range regexp.MustCompile(`(?m)^//\t(outbox_relay_\w+)`).FindAllStringSubmatch(read(t, filepath.Join(root, "relay", "metrics", "doc.go")), -1) {
		known[name[1]] = true
	}
	if len(known) < 20 {
		t.Fatalf("the documentation of package metrics has only %d metrics", len(known))
	}
	return known
}

func metricsOf(t *testing.T, expr string) (names []string) {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Fatal(err)
	}
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			names = append(names, selector.Name)
		}
		return nil
	})
	return names
}

// healthy are two relays of one job, one sample a minute, in promtool's notation.
const healthy = `
outbox_relay_leader{job="shop", instance="a"} 1x60
outbox_relay_leader{job="shop", instance="b"} 0x60
outbox_relay_term{job="shop", instance="a"} 7x60
outbox_relay_term{job="shop", instance="b"} 6x60
outbox_relay_paused{job="shop", instance="a"} 0x60
outbox_relay_paused{job="shop", instance="b"} 0x60
outbox_relay_postgres_up{job="shop", instance="a"} 1x60
outbox_relay_postgres_up{job="shop", instance="b"} 1x60
outbox_relay_tables_up{job="shop", instance="a"} 1x60
outbox_relay_tables_up{job="shop", instance="b"} 1x60
outbox_relay_ready{job="shop", instance="a"} 1x60
outbox_relay_ready{job="shop", instance="b"} 1x60
outbox_relay_paused_by_hand{job="shop", instance="a"} 0x60
outbox_relay_paused_by_hand{job="shop", instance="b"} 0x60
outbox_relay_round_trips_total{job="shop", instance="a"} 0+60x60
outbox_relay_round_trips_total{job="shop", instance="b"} 0x60
outbox_relay_pauses_total{job="shop", instance="a", fault="setup"} 0x60
outbox_relay_pauses_total{job="shop", instance="a", fault="weather"} 0+1x60
outbox_relay_pause_fault{job="shop", instance="a", fault="setup"} 0x60
outbox_relay_oldest_pending_seconds{job="shop", instance="a"} 2x60
outbox_relay_pending_events{job="shop", instance="a"} 100+1x60
outbox_relay_publish_lag_seconds_bucket{job="shop", instance="a", le="1"} 0+600x60
outbox_relay_publish_lag_seconds_bucket{job="shop", instance="a", le="300"} 0+600x60
outbox_relay_publish_lag_seconds_bucket{job="shop", instance="a", le="+Inf"} 0+600x60
outbox_relay_dead_letters{job="shop", instance="a"} 0x60
outbox_relay_dead_total{job="shop", instance="a", reason="attempts"} 3x60
outbox_relay_dead_total{job="shop", instance="a", reason="unfit"} 0x60
outbox_relay_held_aggregates{job="shop", instance="a"} 0x60
outbox_relay_refused_total{job="shop", instance="a"} 3x60
outbox_relay_repeated_ids_total{job="shop", instance="a"} 0x60
outbox_relay_kept_rows_total{job="shop", instance="a"} 0x60
outbox_relay_lost_total{job="shop", instance="a"} 0x60
outbox_relay_condition{job="shop", instance="a", check="duplicate_window"} 1x60
outbox_relay_lock_wait_seconds{job="shop", instance="a"} 0x60
outbox_relay_oldest_transaction_seconds{job="shop", instance="a"} 0x60
`

// After an hour of each fault exactly the alerts of that fault fire, and before it, none.
func TestAlertsFire(t *testing.T) {
	rules := alertRules(t)
	untried := make(map[string]bool)
	for _, r := range rules {
		untried[r.Alert] = true
	}
	for name, test := range map[string]struct {
		series string // In place of those of healthy with the same names; a name without values takes them away.
		want   []string
	}{
		"all is well": {"", nil},
		"no relay is scraped": {
			"outbox_relay_leader _x60",
			[]string{"OutboxAbsent"},
		},
		"nobody leads": {
			`outbox_relay_leader{job="shop", instance="a"} 0x60
			 outbox_relay_leader{job="shop", instance="b"} 0x60`,
			[]string{"OutboxNoLeader"},
		},
		"nobody leads for half a minute": {
			`outbox_relay_leader{job="shop", instance="a"} 1x59 0
			 outbox_relay_leader{job="shop", instance="b"} 0x60`,
			nil,
		},
		"another outbox has no leader": {
			healthyOf("outbox_relay_leader") + `
			 outbox_relay_leader{job="other", instance="a"} 0x60
			 outbox_relay_leader{job="other", instance="b"} 0x60`,
			[]string{"OutboxNoLeader"},
		},
		"one relay is cut off from Postgres": {
			`outbox_relay_postgres_up{job="shop", instance="a"} 1x60
			 outbox_relay_postgres_up{job="shop", instance="b"} 0x60`,
			nil,
		},
		"Postgres is away": {
			`outbox_relay_postgres_up{job="shop", instance="a"} 1x50 0x10
			 outbox_relay_postgres_up{job="shop", instance="b"} 1x50 0x10`,
			[]string{"OutboxPostgresDown"},
		},
		"the tables cannot be read": {
			`outbox_relay_tables_up{job="shop", instance="a"} 1x50 0x10
			 outbox_relay_tables_up{job="shop", instance="b"} 1x50 0x10`,
			[]string{"OutboxPostgresDown"},
		},
		"NATS is away": {
			`outbox_relay_paused{job="shop", instance="a"} 1x60
			 outbox_relay_paused{job="shop", instance="b"} 0x60`,
			[]string{"OutboxNotPublishing"},
		},
		"a permission is missing": {`outbox_relay_pauses_total{job="shop", instance="a", fault="setup"} 0x55 1x5`, []string{"OutboxSetupFault"}},
		"one is missing since before the scrape": {
			`outbox_relay_pause_fault{job="shop", instance="a", fault="setup"} 1x60`, []string{"OutboxSetupFault"},
		},
		"the leader hangs": {`outbox_relay_round_trips_total{job="shop", instance="a"} 0+60x50 3000x10
			 outbox_relay_round_trips_total{job="shop", instance="b"} 0x60`, []string{"OutboxLeaderHung"}},
		"an event waits": {`outbox_relay_oldest_pending_seconds{job="shop", instance="a"} 0+10x60`, []string{"OutboxOldestPending"}},
		"somebody has paused it": {
			`outbox_relay_paused_by_hand{job="shop", instance="a"} 1x60
			 outbox_relay_oldest_pending_seconds{job="shop", instance="a"} 0+60x60
			 outbox_relay_pending_events{job="shop", instance="a"} 10000+100x60`,
			[]string{"OutboxPausedByHand"},
		},
		"a backlog grows":        {`outbox_relay_pending_events{job="shop", instance="a"} 10000+100x60`, []string{"OutboxBacklogGrowing"}},
		"a backlog is worked on": {`outbox_relay_pending_events{job="shop", instance="a"} 100000-100x60`, nil},
		"events are late": {
			`outbox_relay_publish_lag_seconds_bucket{job="shop", instance="a", le="1"} 0+500x60
			 outbox_relay_publish_lag_seconds_bucket{job="shop", instance="a", le="300"} 0+600x60
			 outbox_relay_publish_lag_seconds_bucket{job="shop", instance="a", le="+Inf"} 0+600x60`,
			[]string{"OutboxLag"},
		},
		"an event is given up":   {`outbox_relay_dead_total{job="shop", instance="a", reason="unfit"} 0x50 1x10`, []string{"OutboxDeadLetters"}},
		"a dead letter is there": {`outbox_relay_dead_letters{job="shop", instance="a"} 1x60`, []string{"OutboxDeadLetters"}},
		"an aggregate is held":   {`outbox_relay_held_aggregates{job="shop", instance="a"} 2x60`, []string{"OutboxHeldAggregates"}},
		"events are refused":     {`outbox_relay_refused_total{job="shop", instance="a"} 0+1x60`, []string{"OutboxRefusals"}},
		"an id is repeated":      {`outbox_relay_repeated_ids_total{job="shop", instance="a"} 0x50 1x10`, []string{"OutboxRepeatedIDs"}},
		"a row is kept":          {`outbox_relay_kept_rows_total{job="shop", instance="a"} 0x50 1x10`, []string{"OutboxKeptRows"}},
		"the broker forgot":      {`outbox_relay_lost_total{job="shop", instance="a"} 0x50 5x10`, []string{"OutboxBrokerLostEvents"}},
		"an audit found one":     {`outbox_relay_violations_total{job="shop", instance="a", kind="missing"} 0x50 1x10`, []string{"OutboxClaimBroken"}},
		"a condition is broken":  {`outbox_relay_condition{job="shop", instance="a", check="duplicate_window"} 1x40 0x20`, []string{"OutboxConditionBroken"}},
		"one relay only":         {`outbox_relay_leader{job="shop", instance="a"} 1x60`, []string{"OutboxNoStandby"}},
		"a standby is not ready": {
			healthyOf("outbox_relay_ready") + `
			 outbox_relay_ready{job="shop", instance="c"} 0x60`,
			[]string{"OutboxNotReady"},
		},
		"the leader changes all the time": {
			`outbox_relay_term{job="shop", instance="a"} 7+1x60`, []string{"OutboxFlapping"},
		},
		"two lead": {
			`outbox_relay_leader{job="shop", instance="a"} 1x60
			 outbox_relay_leader{job="shop", instance="b"} 1x60
			 outbox_relay_round_trips_total{job="shop", instance="a"} 0+60x60
			 outbox_relay_round_trips_total{job="shop", instance="b"} 0+60x60`,
			[]string{"OutboxTwoLeaders"},
		},
		"a lock":             {`outbox_relay_lock_wait_seconds{job="shop", instance="a"} 0+60x60`, []string{"OutboxLockWait"}},
		"an old transaction": {`outbox_relay_oldest_transaction_seconds{job="shop", instance="a"} 0x30 3600+60x30`, []string{"OutboxOldTransaction"}},
	} {
		t.Run(name, func(t *testing.T) {
			series := replaced(t, test.series)
			var fired []string
			for _, r := range rules {
				if fires(t, series, r, start.Add(time.Hour)) {
					fired = append(fired, r.Alert)
				}
			}
			slices.Sort(fired)
			if !slices.Equal(fired, test.want) {
				t.Errorf("%q fire, want %q", fired, test.want)
			}
			for _, alert := range fired {
				delete(untried, alert)
			}
		})
	}
	if !t.Failed() && len(untried) > 0 {
		t.Errorf("no test makes these fire: %v", slices.Sorted(maps.Keys(untried)))
	}
}

// start is when the series begin.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // Immutable.

// healthyOf returns the healthy series of a name.
func healthyOf(name string) string {
	var found []string
	for line := range strings.Lines(healthy) {
		if strings.HasPrefix(line, name+"{") {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

// replaced returns healthy with other series in place of those of the same names.
func replaced(t *testing.T, by string) series {
	t.Helper()
	var result series
	names := make(map[string]bool)
	add := func(text string, skip map[string]bool) {
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			metric, values, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(line)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			name := metric.Get(model.MetricNameLabel)
			if skip[name] {
				continue
			}
			names[name] = true
			var samples []chunks.Sample
			for i, v := range values {
				if !v.Omitted {
					samples = append(samples, sample{start.Add(time.Duration(i) * time.Minute).UnixMilli(), v.Value})
				}
			}
			result = append(result, storage.NewListSeries(metric, samples))
		}
	}
	add(by, nil)
	add(healthy, maps.Clone(names))
	return result
}

// fires reports whether a rule, asked every minute, has been true for as long as it is to be.
func fires(t *testing.T, s series, r rulefmt.Rule, at time.Time) bool {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: parser.NewParser(parser.Options{})})
	defer engine.Close()
	var still map[string]bool // By labels; nil before the first look.
	for when := at.Add(-time.Duration(r.For)); !when.After(at); when = when.Add(time.Minute) {
		query, err := engine.NewInstantQuery(t.Context(), s, nil, r.Expr, when)
		if err != nil {
			t.Fatal(err)
		}
		result := query.Exec(t.Context())
		vector, err := result.Vector()
		if err != nil {
			t.Fatalf("%s: %v", r.Alert, err)
		}
		now := make(map[string]bool)
		for _, element := range vector {
			if id := element.Metric.String(); still == nil || still[id] {
				now[id] = true
			}
		}
		still = now
		query.Close()
	}
	return len(still) > 0
}

// series are what a Prometheus has stored.
type series []storage.Series

// Querier returns a Querier of all of them.
func (s series) Querier(int64, int64) (storage.Querier, error) { return querier{s}, nil }

type querier struct{ series series }

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{at: -1}
	for _, s := range q.series {
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Labels().Get(m.Name)) }) {
			set.series = append(set.series, s)
		}
	}
	return set
}

func (q querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (q querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (q querier) Close() error { return nil }

type seriesSet struct {
	series []storage.Series
	at     int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.series) }
func (s *seriesSet) At() storage.Series                { return s.series[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// sample is a number at a time in milliseconds.
type sample struct {
	t int64
	v float64
}

func (s sample) ST() int64                     { return 0 }
func (s sample) T() int64                      { return s.t }
func (s sample) F() float64                    { return s.v }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }
