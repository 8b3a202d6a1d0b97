package main

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// A stream's state is compared with its limits.
func TestDoctorComparesLimits(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	for name, test := range map[string]struct {
		change   func(*jetstream.StreamConfig)
		messages int
		code     int
		want     []string
	}{
		"none": {func(*jetstream.StreamConfig) {}, 3, 0, []string{"ok limits: the stream has none: it grows with its disk", "ok ordered batches: available"}},
		"age":  {func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, 3, 0, []string{"ok limits: the stream keeps messages for 1h0m0s (max_age)"}},
		"room": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 100, jetstream.DiscardNew }, 3, 0,
			[]string{"ok limits: the stream has 3 of 100 messages (max_msgs)"},
		},
		"nearly full": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 100, jetstream.DiscardNew }, 95, 0,
			[]string{"warning limits: nearly full, it has 95 of 100 messages (max_msgs): it makes no room by itself"},
		},
		"full": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 5, jetstream.DiscardNew }, 5, 1,
			[]string{"failure limits: the stream is full, it has 5 of 5 messages (max_msgs): it makes no room by itself, also not by consuming; run `nats stream edit OUTBOX --max-msgs=10`"},
		},
		"full, with an age": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard, c.MaxAge = 5, jetstream.DiscardNew, time.Hour }, 5, 1,
			[]string{"failure limits: room comes when messages become older than 1h0m0s (max_age)"},
		},
		"discards": {
			func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }, 20, 0,
			[]string{
				"ok limits: the stream has 10 of 10 messages (max_msgs), and makes room by discarding its oldest messages",
				"warning stream: keeps at most 10 messages (max_msgs): older messages are discarded, whether or not anybody has read them",
			},
		},
		"discards much": {func(c *jetstream.StreamConfig) { c.MaxBytes = 1 << 30 }, 20, 0, []string{"ok limits: bytes (max_bytes), and makes room", "no warning"}},
		"consumers":     {func(c *jetstream.StreamConfig) { c.MaxConsumers = 1 }, 0, 1, []string{"failure limits: 1 of 1 consumers (max_consumers)", "failure reading back"}},
		"no event fits": {
			func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100 }, 0, 1,
			[]string{"failure stream: takes messages of at most 100 bytes (max_msg_size), and the headers of the smallest event have", "no reading back"},
		},
		"consumers, and direct gets": {
			func(c *jetstream.StreamConfig) { c.MaxConsumers, c.AllowDirect = 1, true }, 3, 0,
			[]string{"ok limits: 1 of 1 consumers (max_consumers): without a further one the relay reads back by direct gets", "ok reading back: by direct gets", "no warning"},
		},
		"consumers, direct gets, and no message": {func(c *jetstream.StreamConfig) { c.MaxConsumers, c.AllowDirect = 1, true }, 0, 0, []string{"ok reading back: by direct gets"}},
	} {
		t.Run(name, func(t *testing.T) {
			broker := streamtest.Start(t)
			js := broker.JetStream(t)
			config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, Duplicates: time.Hour, AllowBatchPublish: true}
			test.change(&config)
			str, err := js.CreateStream(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			for range test.messages {
				if _, err := js.Publish(t.Context(), "outbox.a", nil); err != nil {
					t.Fatal(err)
				}
			}
			if config.MaxConsumers > 0 {
				if _, err := str.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "somebody"}); err != nil {
					t.Fatal(err)
				}
			}
			d := diagnose(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL()})
			expectCode(t, d.result, test.code)
			d.expect(t, test.want...)
		})
	}
}

// The subjects of the events that are pending are tried, without storing anything.
func TestDoctorTriesPendingSubjects(t *testing.T) {
	_, url, js := denying(t, "outbox.secret.>")
	str, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, Duplicates: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": url}
	expectCode(t, execute(t, env, "migrate"), 0)
	insert(t, dsn, "open", "A", "1", "E", "x")
	d := diagnose(t, env)
	expectCode(t, d.result, 0)
	d.expect(t, "ok publishing: permitted")
	insert(t, dsn, "secret", "A", "1", "E", "x")
	insert(t, dsn, "secret", "B", "1", "E", "x")
	d = diagnose(t, env)
	expectCode(t, d.result, 1)
	d.expect(t, `failure publishing: 2 of 3 kinds of pending events are denied to the relay's NATS user, and become dead letters: let it publish to outbox.>, such as "outbox.secret.A.1", "outbox.secret.B.1"`)
	if info, err := str.Info(t.Context()); err != nil || info.State.LastSeq > 0 {
		t.Errorf("doctor has stored a message (%v)", err)
	}
}
