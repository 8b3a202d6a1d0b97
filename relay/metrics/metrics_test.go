package metrics_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/metrics"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

func TestCountersFollowTheHooks(t *testing.T) {
	registry, hooks := register(t)

	expect(t, registry, `outbox_relay_leader 0`, `outbox_relay_term 0`, `outbox_relay_paused 0`, `outbox_relay_published_total 0`)

	hooks.Elected(7)
	hooks.RoundTrip(relay.RoundTrip{Fetched: 5})
	hooks.Published(relay.Published{Events: 3, Duplicates: 1, Oldest: time.Now()})
	hooks.Refused(relay.Refused{Attempts: 1, Err: errors.New("too large")})
	hooks.Refused(relay.Refused{Attempts: 2, Dead: true, Err: errors.New("too large")})
	hooks.RoundTrip(relay.RoundTrip{Settled: 3, Fetched: 2, Asleep: true})
	expect(t, registry, `outbox_relay_leader 1`, `outbox_relay_term 7`,
		`outbox_relay_published_total 3`, `outbox_relay_duplicates_total 1`,
		`outbox_relay_refused_total 2`, `outbox_relay_dead_total 1`,
		`outbox_relay_round_trips_total 2`, `outbox_relay_fetched_total 7`, `outbox_relay_settled_total 3`)

	hooks.Recovered(relay.Recovered{Read: 9, Found: 4, Lost: 2})
	expect(t, registry, `outbox_relay_recoveries_total 1`, `outbox_relay_recovered_total 4`, `outbox_relay_lost_total 2`)

	hooks.Resigned()
	expect(t, registry, `outbox_relay_leader 0`, `outbox_relay_term 7`)
}

// What the database's watcher finds is there as long as it lasts, or the term.
func TestGaugesFollowTheFindings(t *testing.T) {
	registry, hooks := register(t)
	const locks, oldest = `outbox_relay_database_findings_total{kind="lock"}`, `outbox_relay_oldest_transaction_seconds`
	expect(t, registry, locks+` 0`, `outbox_relay_lock_wait_seconds 0`, oldest+` 0`)
	hooks.Elected(1)
	hooks.Database(store.Finding{Kind: store.FindingLock, Waited: 2 * time.Second})
	hooks.Database(store.Finding{Kind: store.FindingLock, Waited: 3 * time.Second, Known: true})
	hooks.Database(store.Finding{Kind: store.FindingHorizon, Holder: store.Holder{Age: time.Hour}})
	hooks.Database(store.Finding{Kind: store.FindingSlow, Waited: time.Minute})
	expect(t, registry, locks+` 1`, `outbox_relay_lock_wait_seconds 3`, oldest+` 3600`, `outbox_relay_database_findings_total{kind="slow"} 1`)
	hooks.Database(store.Finding{Kind: store.FindingLock, Waited: 4 * time.Second, Over: true})
	expect(t, registry, locks+` 1`, `outbox_relay_lock_wait_seconds 0`, oldest+` 3600`)
	hooks.Resigned()
	expect(t, registry, oldest+` 0`)
}

func TestPausesCountOnceEachUnlessTheFaultChanges(t *testing.T) {
	registry, hooks := register(t)
	weather := &stream.Error{Fault: stream.FaultWeather, Err: errors.New("connection lost")}
	refused := &stream.Error{Fault: stream.FaultWeather, Err: errors.New("connection refused")}
	setup := &stream.Error{Fault: stream.FaultSetup, Err: errors.New("no such stream")}
	const weatherTotal, setupTotal = `outbox_relay_pauses_total{fault="weather"}`, `outbox_relay_pauses_total{fault="setup"}`

	// Both are there from the beginning: a series that begins with 1 has no rate.
	expect(t, registry, weatherTotal+` 0`, setupTotal+` 0`)

	hooks.Elected(1)
	hooks.Paused(weather)
	hooks.Paused(refused)
	expect(t, registry, `outbox_relay_paused 1`, weatherTotal+` 1`, setupTotal+` 0`)
	hooks.Paused(setup)
	expect(t, registry, `outbox_relay_paused 1`, weatherTotal+` 1`, setupTotal+` 1`)
	hooks.Resumed()
	expect(t, registry, `outbox_relay_paused 0`)
	hooks.Paused(weather)
	expect(t, registry, `outbox_relay_paused 1`, weatherTotal+` 2`)

	hooks.Resigned()
	expect(t, registry, `outbox_relay_paused 0`)
	hooks.Elected(2)
	hooks.Paused(weather)
	expect(t, registry, `outbox_relay_paused 1`, weatherTotal+` 3`)
}

func TestLagIsTheAgeOfTheOldestEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // For its clock, which stands still.
		registry, hooks := register(t)
		hooks.Published(relay.Published{Events: 9, Oldest: time.Now().Add(-3 * time.Millisecond)})
		hooks.Published(relay.Published{Events: 1, Oldest: time.Now().Add(-time.Minute)})
		expect(t, registry, `outbox_relay_publish_lag_seconds_bucket{le="0.002"} 0`, `outbox_relay_publish_lag_seconds_bucket{le="0.005"} 1`,
			`outbox_relay_publish_lag_seconds_bucket{le="30"} 1`, `outbox_relay_publish_lag_seconds_bucket{le="60"} 2`,
			`outbox_relay_publish_lag_seconds_sum 60.003`, `outbox_relay_publish_lag_seconds_count 2`)

		// The database's clock is ahead of ours.
		hooks.Published(relay.Published{Events: 1, Oldest: time.Now().Add(time.Hour)})
		expect(t, registry, `outbox_relay_publish_lag_seconds_sum 60.003`, `outbox_relay_publish_lag_seconds_count 3`)
	})
}

func TestTwoRelaysNeedTheirOwnLabels(t *testing.T) {
	registry, _ := register(t)
	if _, err := metrics.New(registry); err == nil {
		t.Error("a second relay was registered under the same names")
	}
	if _, err := metrics.New(prometheus.WrapRegistererWithPrefix("second_", registry)); err != nil {
		t.Errorf("a second relay under names of its own: %v", err)
	}
}

// What is exposed is what the documents list, under names that Prometheus recommends.
func TestEveryMetricIsDocumented(t *testing.T) {
	registry, _ := register(t)
	if err := metrics.Tables(registry, &reader{}); err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}

	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for document, row := range map[string]string{
		"doc.go":       `(?m)^//\t(outbox_relay_\w+)\S* +(\w+)`,
		"../README.md": "(?m)^\\| `(outbox_relay_\\w+)\\S*` \\| (\\w+)",
	} {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		documented := make(map[string]string)
		for _, line := range regexp.MustCompile(row).FindAllStringSubmatch(string(text), -1) {
			documented[line[1]] = line[2]
		}
		for _, family := range families {
			name, kind := family.GetName(), strings.ToLower(family.GetType().String())
			if got := documented[name]; got != kind {
				t.Errorf("%s documents %s as %q, it is a %s", document, name, got, kind)
			}
			delete(documented, name)
		}
		for name := range documented {
			t.Errorf("%s documents %s, which is not exposed", document, name)
		}
	}
}

func register(t *testing.T) (*prometheus.Registry, relay.Hooks) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	hooks, err := metrics.New(registry)
	if err != nil {
		t.Fatal(err)
	}
	return registry, hooks
}

// expect looks for lines of what Prometheus would scrape.
func expect(t *testing.T, registry *prometheus.Registry, lines ...string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	got := strings.Split(recorder.Body.String(), "\n")
	for _, line := range lines {
		if !slices.Contains(got, line) {
			t.Errorf("metrics lack the line %q:\n%s", line, recorder.Body)
		}
	}
}
