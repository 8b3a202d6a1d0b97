package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// denying starts a server whose user "me" may not publish to some subjects.
func denying(t *testing.T, subjects ...string) (broker *streamtest.Server, url string, js jetstream.JetStream) {
	t.Helper()
	broker = streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "all", Password: "right"}, {Username: "me", Password: "right", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: subjects},
		}}}
	})
	return broker, strings.Replace(broker.URL(), "://", "://me:right@", 1), broker.JetStream(t, nats.UserInfo("all", "right"))
}

// fences returns how many messages the relay wrote for itself.
func fences(t *testing.T, js jetstream.JetStream) uint64 {
	t.Helper()
	str, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	info, err := str.Info(t.Context(), jetstream.WithSubjectFilter("_outbox.>"))
	if err != nil {
		t.Fatal(err)
	}
	sum := uint64(0)
	for _, n := range info.State.Subjects {
		sum += n
	}
	return sum
}

// lateOnes returns how many events of the trickle were stored more than 100 ms after their insert.
func lateOnes(t *testing.T, broker *streamtest.Server) (late int) {
	t.Helper()
	for _, m := range broker.Messages(t, "OUTBOX", nats.UserInfo("all", "right")) {
		if created, err := time.Parse(time.RFC3339Nano, m.Header.Get("Outbox-Created-At")); err == nil && m.Header.Get("Outbox-Topic") == "trickle" && m.Time.Sub(created) > 100*time.Millisecond {
			late++
		}
	}
	return late
}

// Events that the relay's user may not publish cost nobody else anything: they are tried as often as any refused event, and
// then given up, with the reason.
func TestDeniedEventsCostNobodyElse(t *testing.T) {
	for name, events := range map[string]struct{ denied, others int }{
		"one subject":  {1, 3000},
		"forty":        {40, 3380},
		"thousands":    {3000, 2000},
		"nothing else": {50, 0},
	} {
		t.Run(name, func(t *testing.T) {
			broker, url, js := denying(t, "outbox.secret.>")
			dsn := storetest.NewDatabase(t)
			env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": url, "OUTBOX_MAX_ATTEMPTS": "3", "OUTBOX_RETRY_BACKOFF": "500ms"}
			relay := start(t, env)
			relay.logged("leading")
			insert(t, dsn, "users", "User", "first", "UserCreated", "x")
			eventually(t, "the first event is stored", func() bool { return len(broker.Messages(t, "OUTBOX", nats.UserInfo("all", "right"))) == 1 })
			const trickle = 100
			pour := func() {
				for n := range trickle {
					insert(t, dsn, "trickle", "B", strconv.Itoa(n), "E", "x")
					time.Sleep(20 * time.Millisecond)
				}
			}
			pour() // How many are late without the denied ones: others use this machine, too.
			before, usual := fences(t, js), lateOnes(t, broker)
			denied, all := strconv.Itoa(events.denied), strconv.Itoa(events.denied+events.others)
			// The denied ones are spread over the others.
			sql(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
				select case when n * `+denied+` / `+all+` > (n - 1) * `+denied+` / `+all+` then 'secret' else 'open' end, 'A', (n % 5000)::text, 'E', convert_to(n::text, 'UTF8')
				from generate_series(1, `+all+`) n`)
			pour()
			want := 1 + events.others + 2*trickle
			eventually(t, "all others are stored", func() bool { return len(broker.Messages(t, "OUTBOX", nats.UserInfo("all", "right"))) == want })
			if late := lateOnes(t, broker) - usual; late > trickle/lateShare+3*usual {
				t.Errorf("%d of %d events were late by more than 100 ms, and %d without the denied ones", late, trickle, usual)
			}
			eventually(t, "the denied ones are dead letters", func() bool {
				return number(t, dsn, `select count(*) from outbox_dead`) == events.denied
			})
			if got := fences(t, js) - before; got > 3 {
				t.Errorf("%d recoveries, want 3 at most", got)
			}
			log := relay.stderr.String()
			if got := strings.Count(log, "publishing paused"); got > 0 {
				t.Errorf("publishing paused %d times:\n%.2000s", got, log)
			}
			if lines := strings.Count(log, "\n"); lines > 60 {
				t.Errorf("%d lines of log", lines)
			}
			expectText(t, "dead list", execute(t, env, "dead", "list").stdout, "may not publish to outbox.secret.A.")
		})
	}
}

// A user who may publish no event at all is no reason to give all events up: they wait until a person permits it.
func TestDeniedEverything(t *testing.T) {
	_, url, _ := denying(t, "outbox.>")
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": url, "OUTBOX_MAX_ATTEMPTS": "2", "OUTBOX_RETRY_BACKOFF": "50ms", "OUTBOX_RETRY_BACKOFF_MAX": "100ms"}
	relay := start(t, env)
	relay.logged("leading")
	for n := range 20 {
		insert(t, dsn, "users", "User", strconv.Itoa(n), "UserCreated", "x")
	}
	relay.logged("event refused; trying again later")
	refusals := regexp.MustCompile(`(?m)^outbox_relay_refused_total\S* (\d+)$`)
	base := relay.base()
	eventually(t, "twenty attempts of each", func() bool {
		found := refusals.FindStringSubmatch(get(t, base+"/metrics").body)
		if found == nil {
			return false
		}
		n, err := strconv.Atoi(found[1])
		return err == nil && n >= 20*20
	})
	if got := number(t, dsn, `select count(*) from outbox_dead`); got > 0 {
		t.Errorf("%d events were given up", got)
	}
	if got := number(t, dsn, `select count(*) from outbox where attempts > 0`); got != 20 {
		t.Errorf("%d events were tried, want 20", got)
	}
	expectText(t, "doctor", execute(t, env, "doctor").stdout, "outbox.users.User.")
}
