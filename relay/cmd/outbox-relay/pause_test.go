package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/relay/admin"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

const (
	pausedLine  = "paused by hand; events wait until somebody runs `outbox-relay resume`"
	resumedLine = "resumed by hand; events are published again"
)

// A pause stops an idle relay and a busy one, shows everywhere, outlives the leader, and costs neither an event nor the order.
func TestPauseByHand(t *testing.T) {
	broker := streamtest.Start(t)
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL()}
	leader := start(t, env)
	leader.logged("leading")
	standby := start(t, env)
	of, to := leader.base(), standby.base()
	eventually(t, "the standby is ready", func() bool { return get(t, to+"/readyz").code == http.StatusOK })
	stored := func() (n int) {
		for _, m := range broker.Messages(t, "OUTBOX") {
			if m.Header.Get("Outbox-Seq") != "" {
				n++
			}
		}
		return n
	}
	report := func(base string) (r admin.Report) {
		answer := get(t, base+"/readyz")
		if err := json.Unmarshal([]byte(answer.body), &r); err != nil || answer.code != http.StatusOK {
			t.Errorf("readyz = %d %s, %v: want a relay that is ready", answer.code, answer.body, err)
		}
		return r
	}
	insert(t, dsn, "users", "User", "0", "UserCreated", "0")
	eventually(t, "the first event is stored", func() bool { return stored() == 1 })

	// An idle relay.
	expectCode(t, execute(t, env, "pause"), 2)
	got := execute(t, env, "pause", "--reason", "the consumer is being mended", "--by", "ada")
	expectCode(t, got, 0)
	eventually(t, "the leader knows", func() bool { return report(of).Pause != nil })
	eventually(t, "the standby knows", func() bool {
		p := report(to).Pause
		return p != nil && p.Reason == "the consumer is being mended" && p.By == "ada"
	})
	for _, r := range []*running{leader, standby} {
		if line := r.logged(pausedLine); line["because"] != "the consumer is being mended" || line["by"] != "ada" {
			t.Errorf("the log says %v", line)
		}
	}
	leader.exposes(of, `outbox_relay_paused_by_hand 1`, `outbox_relay_ready 1`)
	standby.exposes(to, `outbox_relay_paused_by_hand 1`)
	sql(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 'users', 'User', (n % 5)::text, 'UserChanged', convert_to(n::text, 'UTF8') from generate_series(1, 200) n`)
	expectText(t, "status", execute(t, env, "status").stdout, "paused by hand  for ", "by ada: the consumer is being mended; `outbox-relay resume` ends it\n", "pending         200\n")
	expectText(t, "status --json", execute(t, env, "status", "--json").stdout, `"pause":{"reason":"the consumer is being mended","by":"ada","since_seconds":`)
	expectText(t, "doctor", execute(t, env, "doctor").stdout, "warning  paused by hand    ada has had all relays publish nothing for ", "the consumer is being mended: run `outbox-relay resume`")
	time.Sleep(1500 * time.Millisecond) // In which nothing may be published.
	if n := stored(); n != 1 {
		t.Fatalf("%d events are stored during a pause, want 1", n)
	}

	// It outlives the leader, and the next one publishes what has waited, in order.
	leader.stop()
	leader.wait()
	standby.logged("leading")
	time.Sleep(1500 * time.Millisecond) // Likewise.
	if n := stored(); n != 1 {
		t.Fatalf("%d events are stored by a new leader during a pause, want 1", n)
	}
	got = execute(t, env, "resume")
	expectCode(t, got, 0)
	expectText(t, "resume", got.stdout, "resumed, after ", ": the consumer is being mended\n")
	resumed := time.Now()
	eventually(t, "all events are stored", func() bool { return stored() == 201 })
	if took := time.Since(resumed); took > 3*time.Second {
		t.Errorf("events were published %v after the pause ended", took)
	}
	standby.logged(resumedLine)
	last := make(map[string]int)
	for _, m := range broker.Messages(t, "OUTBOX") {
		if m.Header.Get("Outbox-Seq") == "" {
			continue
		}
		n, err := strconv.Atoi(string(m.Data))
		if before := last[m.Subject]; err != nil || n < before {
			t.Errorf("%s: event %q after %d", m.Subject, m.Data, before)
		}
		last[m.Subject] = n
	}
	if got := execute(t, env, "resume"); got.stdout != "it was not paused\n" || got.code != 0 {
		t.Errorf("a second resume: %+v", got)
	}
}

// A relay that is busy with a backlog stops within about a second, too, with as much of it in memory as it may hold.
func TestPauseOfABusyRelay(t *testing.T) {
	broker := streamtest.Start(t)
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL(), "OUTBOX_BATCH_SIZE": "100"}
	relay := start(t, env)
	relay.logged("leading")
	inserting := make(chan struct{})
	go func() {
		defer close(inserting)
		for n := range 40 {
			if t.Context().Err() != nil {
				return
			}
			sql(t, dsn, fmt.Sprintf(`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 'users', 'User', (n %% 50)::text, 'E', convert_to((%d + n)::text, 'UTF8') from generate_series(1, 500) n`, 500*n))
		}
	}()
	left := func() int { return number(t, dsn, `select count(*) from outbox`) }
	eventually(t, "it publishes", func() bool { return number(t, dsn, `select count(*) from outbox_published`) > 500 })
	expectCode(t, execute(t, env, "pause", "--reason", "stop"), 0)
	relay.logged(pausedLine)
	<-inserting
	time.Sleep(500 * time.Millisecond) // For what was in flight.
	before := left()
	time.Sleep(1500 * time.Millisecond) // In which nothing may be published.
	if after := left(); after != before || after == 0 {
		t.Errorf("%d rows were left and then %d, want the same, and some", before, after)
	}
	expectCode(t, execute(t, env, "resume"), 0)
	eventually(t, "the outbox is empty", func() bool { return left() == 0 })
	if log := relay.stderr.String(); strings.Contains(log, "term ended") || strings.Contains(log, "publishing paused") {
		t.Errorf("the pause had a cost:\n%s", log)
	}
}
