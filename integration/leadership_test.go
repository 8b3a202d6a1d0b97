package integration_test

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/integration/harness"
)

var standsBy = regexp.MustCompile(`standing (by)`)

// A leader that has lost its broker makes way for a relay that has not, and stands by again once it has it back.
func TestBlindLeaderMakesWay(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	proxy := harness.NewProxy(t, strings.TrimPrefix(w.URL(), "nats://"))
	blind := w.Relay("OUTBOX_NATS_URL=nats://" + proxy.Address())
	blind.Leads()
	standby := w.Relay()
	standby.WaitFor(standsBy)
	conn := w.Connect()
	w.Exec(conn, insert, "a", []byte("0"))
	arrived(w, 1, 10*time.Second)

	proxy.Cut()
	at := time.Now()
	for range 100 {
		w.Exec(conn, insert, "a", []byte("x"))
	}
	arrived(w, 101, 10*time.Second)
	t.Logf("from the loss of the broker until all is published: %v", time.Since(at))
	standby.Leads()
	blind.WaitFor(regexp.MustCompile(`(made way)`))
	if code := blind.Get("/readyz"); code != 503 {
		t.Errorf("without a broker: /readyz is %d, want 503", code)
	}
	if code := blind.Get("/healthz"); code != 200 {
		t.Errorf("without a broker: /healthz is %d, want 200", code)
	}

	proxy.Mend()
	harness.Eventually(t, 15*time.Second, "it stands by", func() bool { return blind.Get("/readyz") == 200 })
	if standby.Said("no longer leading") {
		t.Error("the standby has given up its leadership, too")
	}
}

// Without a standby that could publish, the leader does not make way: the end of its term would not help.
func TestBlindLeaderStaysAlone(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	leader := w.Relay()
	leader.Leads()
	w.Relay("OUTBOX_NATS_URL=nats://127.0.0.1:1").WaitFor(regexp.MustCompile(`(not fit to lead)`))
	conn := w.Connect()
	w.NATS.Kill()
	w.Exec(conn, insert, "a", []byte("1"))
	leader.WaitFor(regexp.MustCompile(`(publishing paused)`))
	harness.Pause(t.Context(), 6*time.Second) // Longer than a blind leader waits.
	w.NATS.Start()
	arrived(w, 1, 10*time.Second)
	if leader.Said("no longer leading") {
		t.Error("it has given up its leadership, for nobody")
	}
}

// A relay that can never publish is never ready, does not lead, and says why.
func TestWrongURLIsNeverReady(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	for name, before := range map[string]func(){
		"alone":        func() {},
		"as a standby": func() { w.Relay().Leads() },
	} {
		before()
		wrong := w.Relay("OUTBOX_NATS_URL=nats://127.0.0.1:1")
		wrong.WaitFor(regexp.MustCompile(`(not fit to lead)`), "127.0.0.1:1")
		until := time.Now().Add(5 * time.Second)
		for time.Now().Before(until) {
			if code := wrong.Get("/readyz"); code != 503 {
				t.Fatalf("%s: /readyz is %d, want 503", name, code)
			}
			harness.Pause(t.Context(), 50*time.Millisecond)
		}
		if body := wrong.Body("/readyz"); !strings.Contains(body, `"trouble":"connect to NATS`) {
			t.Errorf("%s: /readyz does not give the reason: %s", name, body)
		}
		if wrong.Said("leading term") {
			t.Errorf("%s: it leads", name)
		}
		if code := wrong.Stop(); code != 0 {
			t.Errorf("%s: exit code %d after SIGTERM, want 0", name, code)
		}
	}
}

// A relay of the same table and another stream is refused, and doctor says so in both configurations.
func TestSecondStreamIsRefused(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	w.Relay().Leads()
	second := []string{"OUTBOX_STREAM=OTHER", "OUTBOX_SUBJECT=other.{topic}.{aggregate_type}.{aggregate_id}"}
	refused := w.Launch(second...)
	if code := refused.Ends(); code != 1 || !refused.Said(`OUTBOX`, `OTHER`, "OUTBOX_ADOPT_STREAM") {
		t.Errorf("exit code %d, want 1 and both streams named:\n%s", code, refused.Tail(4000))
	}
	doctor := func(settings []string) harness.Result { return w.Try(30*time.Second, settings, "doctor") }
	if got := doctor(second); got.Code != 1 || !strings.Contains(got.Stdout, `goes to stream "OUTBOX"`) || !strings.Contains(got.Stdout, `"OTHER"`) {
		t.Errorf("doctor of the second configuration: exit code %d\n%s", got.Code, got.Stdout)
	}
	if got := doctor(nil); got.Code != 0 {
		t.Errorf("doctor of the first configuration, while no relay of the second stands by: exit code %d\n%s", got.Code, got.Stdout)
	}

	adopting := w.Relay(append(second, "OUTBOX_ADOPT_STREAM=true")...)
	adopting.WaitFor(standsBy)
	harness.Eventually(t, 5*time.Second, "doctor of the first configuration fails", func() bool {
		got := doctor(nil)
		return got.Code == 1 && strings.Contains(got.Stdout, "another stream stands by") && strings.Contains(got.Stdout, `"OUTBOX"`)
	})
}

// A process that was frozen does not blame Postgres.
func TestFrozenRelayKnowsIt(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{})
	relay := w.Relay()
	relay.Leads()
	relay.Freeze()
	harness.Pause(t.Context(), 8*time.Second)
	relay.Thaw()
	relay.WaitFor(regexp.MustCompile(`(did not run for).*for=8\.`))
	relay.WaitFor(regexp.MustCompile(`(this process did not run for 8\.\d+s)`), "error=")
	relay.Leads()
}

// Whichever server does not answer, a relay that does not lead stops within a second. So does a leader with nothing in flight,
// with each kind of election.
func TestStopsWhileNobodyAnswers(t *testing.T) {
	t.Parallel()
	for _, election := range []string{"postgres", "jetstream"} {
		for _, leads := range []bool{true, false} {
			for _, mute := range []string{"Postgres", "NATS"} {
				name := fmt.Sprintf("elected by %s, leads=%v, without %s", election, leads, mute)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					w := harness.NewWorld(t, harness.Options{})
					elector := "OUTBOX_ELECTION=" + election
					postgres, nats := harness.NewProxy(t, addressOf(t, w.DSN)), harness.NewProxy(t, strings.TrimPrefix(w.URL(), "nats://"))
					if !leads {
						w.Relay(elector).Leads()
					}
					relay := w.Relay(elector, "OUTBOX_SHUTDOWN_TIMEOUT=200ms", "OUTBOX_NATS_URL=nats://"+nats.Address(),
						"OUTBOX_DATABASE_DSN="+strings.Replace(w.DSN, addressOf(t, w.DSN), postgres.Address(), 1))
					harness.Eventually(t, 20*time.Second, "it is ready", func() bool { return relay.Get("/readyz") == 200 })
					if mute == "NATS" {
						nats.Mute()
					} else {
						postgres.Mute()
					}
					harness.Pause(t.Context(), 3*time.Second) // Until it waits for an answer.
					at := time.Now()
					if code := relay.Stop(); code != 0 {
						t.Errorf("exit code %d after SIGTERM, want 0", code)
					}
					if took := time.Since(at); took > 1500*time.Millisecond {
						t.Errorf("it stopped after %v", took)
					} else {
						t.Logf("it stopped after %v", took)
					}
				})
			}
		}
	}
}

// addressOf returns host and port of a DSN.
func addressOf(t *testing.T, dsn string) string {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
}
