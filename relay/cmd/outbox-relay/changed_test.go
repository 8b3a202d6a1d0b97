package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// What somebody changes about the stream of a running relay is got through, or named in the log and by doctor alike; and once
// it is undone, what waits is published within 5 s.
func TestChangedStream(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*jetstream.StreamConfig)
		want   string // In the log, and of doctor's failures. Empty if events go on.
		warned string // Of doctor's warnings.
		good   bool   // Nothing undoes it.
	}{
		"no ack":           {change: func(c *jetstream.StreamConfig) { c.NoAck = true }, want: "does not acknowledge (no_ack)"},
		"sealed":           {change: func(c *jetstream.StreamConfig) { c.Sealed = true }, want: "is sealed", good: true},
		"other subjects":   {change: func(c *jetstream.StreamConfig) { c.Subjects = []string{"other.>"} }, want: "listens on"},
		"no fence subject": {change: func(c *jetstream.StreamConfig) { c.Subjects = []string{"outbox.>"} }},
		"some subjects":    {change: func(c *jetstream.StreamConfig) { c.Subjects = []string{"outbox.users.Other.>", "_outbox.OUTBOX.*"} }, want: "listens on"},
		"transform": {change: func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "outbox.>", Destination: "x.>"}
		}, want: "subject_transform"},
		"small messages": {change: func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100 }, want: "max_msg_size"},
		"republish": {change: func(c *jetstream.StreamConfig) {
			c.RePublish = &jetstream.RePublish{Source: "outbox.>", Destination: "copy.>"}
		}},
		"deny delete":   {change: func(c *jetstream.StreamConfig) { c.DenyDelete, c.DenyPurge = true, true }},
		"no batches":    {change: func(c *jetstream.StreamConfig) { c.AllowBatchPublish = false }},
		"no direct":     {change: func(c *jetstream.StreamConfig) { c.AllowDirect = false }},
		"one a subject": {change: func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }, warned: "at most 1 messages a subject"},
		"full":          {change: func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 3, jetstream.DiscardNew }, want: "is full"},
		"few consumers": {change: func(c *jetstream.StreamConfig) { c.ConsumerLimits.MaxAckPending = 1 }},
		"inactive":      {change: func(c *jetstream.StreamConfig) { c.ConsumerLimits.InactiveThreshold = time.Millisecond }},
		"age":           {change: func(c *jetstream.StreamConfig) { c.MaxAge, c.Duplicates = time.Second, time.Second }, warned: "duplicate window of 1s"},
		"sources":       {change: func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "FED"}} }},
		"ttl":           {change: func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true; c.SubjectDeleteMarkerTTL = time.Second }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := streamtest.Start(t)
			js := broker.JetStream(t)
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "FED", Subjects: []string{"fed.>"}}); err != nil {
				t.Fatal(err)
			}
			dsn := storetest.NewDatabase(t)
			env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL()}
			relay := start(t, env)
			relay.logged("leading")
			insert(t, dsn, "users", "User", "1", "UserCreated", "x")
			left := func() int { return number(t, dsn, `select count(*) from outbox`) }
			eventually(t, "the first event is settled", func() bool { return left() == 0 })
			str, err := js.Stream(t.Context(), "OUTBOX")
			if err != nil {
				t.Fatal(err)
			}
			before := str.CachedInfo().Config
			config := before
			tt.change(&config)
			if _, err := js.UpdateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			for n := range 6 {
				insert(t, dsn, "users", "User", fmt.Sprint(n%3), "UserChanged", "x")
			}
			waits := tt.want != ""
			if !waits {
				eventually(t, "the events are settled", func() bool { return left() == 0 })
			} else {
				relay.stderr.await(t, "the reason", func(text string) bool { return strings.Contains(text, tt.want) })
				eventually(t, "status says so", func() bool { return strings.Contains(execute(t, env, "status").stdout, tt.want) })
			}
			d := diagnose(t, env)
			if waits {
				expectCode(t, d.result, 1)
			}
			if said := d.failures(tt.want); waits == (len(said) == 0) {
				t.Errorf("doctor's failures: %q", d.failures(""))
			}
			if tt.warned != "" {
				d.expect(t, "warning stream: "+tt.warned)
			}
			second := start(t, env)
			relay.stop()
			relay.wait()
			if !waits {
				second.logged("leading")
				insert(t, dsn, "users", "User", "1", "UserChanged", "x")
				eventually(t, "a successor publishes", func() bool { return left() == 0 })
				return
			}
			if tt.good {
				return
			}
			if _, err := js.UpdateStream(t.Context(), before); err != nil {
				t.Fatal(err)
			}
			undone := time.Now()
			eventually(t, "all is settled", func() bool { return left() == 0 })
			if took := time.Since(undone); took > 5*time.Second {
				t.Errorf("that took %v", took)
			}
			if dead := number(t, dsn, `select count(*) from outbox_dead`); dead > 0 {
				t.Errorf("%d events were given up", dead)
			}
			if got := len(broker.Messages(t, "OUTBOX")); got != 7 {
				t.Errorf("the stream has %d events, want 7", got)
			}
		})
	}
}

// Servers that take nothing for the stream, although it is there, are named with what to do.
func TestNobodyTakesTheEvents(t *testing.T) {
	const nobody = "nobody takes what is sent to"
	for name, tt := range map[string]struct{ config, user, want, doctor string }{
		"mapped": {config: `jetstream: enabled, mappings: { "outbox.>": "shop.>" }`, want: nobody + ` the subjects of stream "OUTBOX"`, doctor: nobody},
		"not imported": {user: "relay:relay@", want: nobody + ` the subjects of stream "OUTBOX"`, doctor: nobody, config: `
			jetstream: enabled
			accounts {
				HUB { jetstream: enabled, users [ { user: hub, password: hub } ], exports [ { service: "$JS.API.>", response: stream } ] }
				APP { users [ { user: relay, password: relay } ], imports [ { service: { account: HUB, subject: "$JS.API.>" } } ] }
			}`},
		"no headers": {config: "jetstream: enabled, no_header_support: true", want: "takes no headers", doctor: "takes no headers"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := storetest.NewDatabase(t)
			url := strings.Replace(natsServer(t, tt.config, "").ClientURL(), "://", "://"+tt.user, 1)
			env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": url}
			relay := start(t, env)
			relay.logged("tables are up to date")
			insert(t, dsn, "users", "User", "1", "UserCreated", "x")
			relay.stderr.await(t, "the reason", func(text string) bool {
				return strings.Contains(strings.ReplaceAll(text, `\"`, `"`), tt.want)
			})
			d := diagnose(t, env)
			expectCode(t, d.result, 1)
			if len(d.failures(tt.doctor)) == 0 {
				t.Errorf("doctor says %q", d.failures(""))
			}
			time.Sleep(3 * time.Second) // In which nothing else may be told.
			if said := strings.Count(relay.stderr.String(), `"WARN"`); said > 3 {
				t.Errorf("that is told %d times:\n%.3000s", said, relay.stderr)
			}
		})
	}
}
