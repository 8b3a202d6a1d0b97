package main

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// exposes waits until the relay's metrics have these lines, which are written without the outbox's labels.
func (r *running) exposes(base string, lines ...string) {
	r.t.Helper()
	for _, line := range lines {
		name, value, _ := strings.Cut(line, " ")
		name, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
		eventually(r.t, "the metrics have "+line, func() bool {
			for got := range strings.Lines(get(r.t, base+"/metrics").body) {
				if strings.HasPrefix(got, name+"{") && strings.Contains(got, labels) && strings.HasSuffix(got, " "+value+"\n") {
					return true
				}
			}
			return false
		})
	}
}

// What a leader and a standby can do, what they reach and what they cannot promise is in their metrics.
func TestMetricsOfTwoRelays(t *testing.T) {
	broker := streamtest.Start(t)
	if _, err := broker.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, Duplicates: time.Second,
	}); err != nil {
		t.Fatal(err)
	}
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL()}
	leader := start(t, env)
	leader.logged("leading")
	standby := start(t, env)
	of, to := leader.base(), standby.base()

	leader.exposes(of, `outbox_relay_ready 1`, `outbox_relay_standby 0`, `outbox_relay_postgres_up 1`, `outbox_relay_nats_up 1`, `outbox_relay_listening 1`,
		`outbox_relay_condition{check="duplicate_window"} 0`, `outbox_relay_condition{check="limits"} 1`, `outbox_relay_condition{check="archive"} 1`,
		`outbox_relay_elections_total 1`, `outbox_relay_last_published_timestamp_seconds 0`)
	standby.exposes(to, `outbox_relay_ready 1`, `outbox_relay_standby 1`, `outbox_relay_postgres_up 1`, `outbox_relay_nats_up 1`, `outbox_relay_listening 0`,
		`outbox_relay_condition{check="duplicate_window"} 0`, `outbox_relay_tables_up 1`, `outbox_relay_elections_total 0`)

	insert(t, dsn, "users", "User", "17", "UserCreated", "12345")
	leader.exposes(of, `outbox_relay_bytes_published_total 5`, `outbox_relay_ack_seconds_count 1`, `outbox_relay_publish_lag_seconds_count 1`)

	broker.Stop()
	leader.exposes(of, `outbox_relay_nats_up 0`, `outbox_relay_pause_fault{fault="weather"} 1`, `outbox_relay_ready 0`, `outbox_relay_postgres_up 1`)
	standby.exposes(to, `outbox_relay_nats_up 0`, `outbox_relay_ready 0`, `outbox_relay_standby 0`)
	broker.Restart()
	leader.exposes(of, `outbox_relay_nats_up 1`, `outbox_relay_pause_fault{fault="weather"} 0`)

	leader.stop()
	leader.wait()
	standby.exposes(to, `outbox_relay_elections_total 1`, `outbox_relay_listening 1`, `outbox_relay_standby 0`)
	sql(t, dsn, `select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'outbox-relay%'`)
	standby.exposes(to, `outbox_relay_elections_total 2`)
	if body := get(t, to+"/metrics").body; !strings.Contains(body, `reason="postgres",stream="OUTBOX",table="public.outbox"} 1`) &&
		!strings.Contains(body, `reason="lease",stream="OUTBOX",table="public.outbox"} 1`) {
		t.Errorf("no reason why the leadership was lost:\n%s", body)
	}
}
