package metrics_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"runtime"
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
	hooks.RoundTrip(relay.RoundTrip{Fetched: 5, Took: 3 * time.Millisecond})
	hooks.Published(relay.Published{Events: 3, Duplicates: 1, Bytes: 70, Ack: 30 * time.Millisecond, Created: []time.Time{time.Now()}})
	hooks.Refused(relay.Refused{Attempts: 1, Err: errors.New("too large")})
	for _, err := range []error{
		errors.New("has a payload of 9 bytes"), &stream.Error{Fault: stream.FaultRow, Err: errors.New("refused")},
		fmt.Errorf("publish: %w", &stream.Error{Fault: stream.FaultRow, Permanent: true, Err: errors.New("too large")}),
	} {
		hooks.Refused(relay.Refused{Attempts: 2, Dead: true, Err: err})
	}
	hooks.RoundTrip(relay.RoundTrip{Settled: 3, Fetched: 2, Asleep: true, Took: 40 * time.Millisecond})
	expect(t, registry, `outbox_relay_leader 1`, `outbox_relay_term 7`,
		`outbox_relay_published_total 3`, `outbox_relay_duplicates_total 1`,
		`outbox_relay_refused_total 4`, `outbox_relay_dead_total{reason="unfit"} 1`, `outbox_relay_dead_total{reason="attempts"} 1`, `outbox_relay_dead_total{reason="permanent"} 1`,
		`outbox_relay_bytes_published_total 70`, `outbox_relay_ack_seconds_count 1`, `outbox_relay_ack_seconds_bucket{le="0.02"} 0`, `outbox_relay_ack_seconds_bucket{le="0.05"} 1`,
		`outbox_relay_round_trip_seconds_count 2`, `outbox_relay_round_trip_seconds_bucket{le="0.005"} 1`, `outbox_relay_round_trip_errors_total 0`,
		`outbox_relay_round_trips_total 2`, `outbox_relay_fetched_total 7`, `outbox_relay_settled_total 3`)

	hooks.Recovered(relay.Recovered{Read: 9, Found: 4, Lost: 2, Took: time.Minute})
	expect(t, registry, `outbox_relay_recovery_seconds_sum 60`, `outbox_relay_recovery_seconds_bucket{le="30"} 0`, `outbox_relay_recoveries_total 1`, `outbox_relay_recovered_total 4`, `outbox_relay_lost_total 2`)

	const made, stopped = `outbox_relay_leadership_lost_total{reason="made_way"}`, `outbox_relay_leadership_lost_total{reason="stopped"}`
	expect(t, registry, `outbox_relay_elections_total 1`, made+` 0`, stopped+` 0`)
	hooks.RoundTrip(relay.RoundTrip{Took: time.Second, Err: errors.New("no answer")})
	hooks.Resigned(relay.EndMadeWay)
	expect(t, registry, `outbox_relay_leader 0`, `outbox_relay_term 7`, `outbox_relay_elections_total 1`, made+` 1`, stopped+` 0`, `outbox_relay_round_trip_errors_total 1`)
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
	hooks.Resigned(relay.EndLease)
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

	hooks.Resigned(relay.EndStopped)
	expect(t, registry, `outbox_relay_paused 0`)
	hooks.Elected(2)
	hooks.Paused(weather)
	expect(t, registry, `outbox_relay_paused 1`, weatherTotal+` 3`)
}

func TestLagIsTheAgeOfEachEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // For its clock, which stands still.
		registry, hooks := register(t)
		ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
		hooks.Published(relay.Published{Events: 3, Created: []time.Time{ago(3 * time.Millisecond), ago(time.Millisecond), ago(13 * time.Hour)}})
		hooks.Published(relay.Published{Events: 1, Created: []time.Time{ago(time.Minute)}})
		hooks.Published(relay.Published{Events: 5}) // The relay no longer held them.
		expect(t, registry, `outbox_relay_publish_lag_seconds_bucket{le="0.001"} 1`, `outbox_relay_publish_lag_seconds_bucket{le="0.005"} 2`,
			`outbox_relay_publish_lag_seconds_bucket{le="30"} 2`, `outbox_relay_publish_lag_seconds_bucket{le="60"} 3`,
			`outbox_relay_publish_lag_seconds_bucket{le="43200"} 3`, `outbox_relay_publish_lag_seconds_bucket{le="+Inf"} 4`,
			`outbox_relay_publish_lag_seconds_sum 46860.004`, `outbox_relay_publish_lag_seconds_count 4`)

		// The database's clock is ahead of ours.
		hooks.Published(relay.Published{Events: 1, Created: []time.Time{ago(-time.Hour)}})
		expect(t, registry, `outbox_relay_publish_lag_seconds_sum 46860.004`, `outbox_relay_publish_lag_seconds_count 5`)
	})
}

// A hook that allocated for each event would make the collector run.
func TestPublishedAllocatesNothing(t *testing.T) {
	_, hooks := register(t)
	created := make([]time.Time, 4096)
	for i := range created {
		created[i] = time.Now().Add(-time.Duration(i) * time.Second)
	}
	if n := testing.AllocsPerRun(100, func() { hooks.Published(relay.Published{Events: len(created), Created: created, Ack: time.Second}) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// How long pauses lasted shows while they last, and so does whose fault the present one is.
func TestPausesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry, hooks := register(t)
		const seconds, weather, setup = `outbox_relay_paused_seconds_total`, `outbox_relay_pause_fault{fault="weather"}`, `outbox_relay_pause_fault{fault="setup"}`
		expect(t, registry, seconds+` 0`, weather+` 0`, setup+` 0`)
		hooks.Paused(&stream.Error{Fault: stream.FaultWeather, Err: errors.New("connection lost")})
		time.Sleep(10 * time.Second)
		expect(t, registry, seconds+` 10`, weather+` 1`, setup+` 0`)
		hooks.Paused(&stream.Error{Fault: stream.FaultSetup, Err: errors.New("no such stream")})
		time.Sleep(10 * time.Second)
		expect(t, registry, seconds+` 20`, weather+` 0`, setup+` 1`)
		hooks.Resumed()
		time.Sleep(time.Minute)
		expect(t, registry, seconds+` 20`, weather+` 0`, setup+` 0`)
		hooks.Paused(&stream.Error{Fault: stream.FaultSetup, Err: errors.New("no such stream")})
		time.Sleep(time.Second)
		hooks.Resigned(relay.EndLease)
		time.Sleep(time.Second)
		expect(t, registry, seconds+` 21`, setup+` 0`)
	})
}

// Times are those of the events, not of the scrape.
func TestTimestamps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // Its clock begins at the year 2000.
		registry, hooks := register(t)
		const began, published = `outbox_relay_term_started_timestamp_seconds`, `outbox_relay_last_published_timestamp_seconds`
		expect(t, registry, began+` 0`, published+` 0`)
		hooks.Elected(1)
		time.Sleep(time.Second)
		hooks.Published(relay.Published{Events: 1})
		time.Sleep(time.Hour)
		expect(t, registry, began+` 9.466848e+08`, published+` 9.46684801e+08`)
	})
}

func TestState(t *testing.T) {
	registry, status := prometheus.NewRegistry(), relay.Status{State: relay.Campaigning, Standby: true}
	if err := metrics.State(registry, func() relay.Status { return status }); err != nil {
		t.Fatal(err)
	}
	expect(t, registry, `outbox_relay_ready 0`, `outbox_relay_standby 0`, `outbox_relay_postgres_up 0`, `outbox_relay_nats_up 0`, `outbox_relay_listening 0`)
	if n, err := testutil.GatherAndCount(registry, "outbox_relay_condition"); n != 0 || err != nil {
		t.Errorf("%d conditions before the stream was looked at: %v", n, err)
	}
	status.Pause = &store.Pause{}
	status.Fit, status.Postgres, status.Conditions = true, true, map[string]bool{"duplicate_window": false, "archive": true}
	expect(t, registry, `outbox_relay_ready 1`, `outbox_relay_standby 1`, `outbox_relay_postgres_up 1`, `outbox_relay_nats_up 0`, `outbox_relay_paused_by_hand 1`,
		`outbox_relay_condition{check="duplicate_window"} 0`, `outbox_relay_condition{check="archive"} 1`)
	status = relay.Status{State: relay.Leading, Publishing: true, NATS: true, Listening: true}
	expect(t, registry, `outbox_relay_ready 1`, `outbox_relay_standby 0`, `outbox_relay_nats_up 1`, `outbox_relay_listening 1`)
}

func TestBuild(t *testing.T) {
	registry := prometheus.NewRegistry()
	if err := metrics.Build(registry, "v1.2.3"); err != nil {
		t.Fatal(err)
	}
	expect(t, registry, `outbox_relay_build_info{goversion="`+runtime.Version()+`",version="v1.2.3"} 1`)
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
	status := func() relay.Status { return relay.Status{Conditions: map[string]bool{"archive": true}} }
	if err := errors.Join(metrics.Tables(registry, &reader{}), metrics.State(registry, status), metrics.Build(registry, ""), auditMetrics(registry)); err != nil {
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

func auditMetrics(registry *prometheus.Registry) error {
	_, err := metrics.Audit(registry)
	return err
}
