package main

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/examples/internal/logtest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestPrintsTheEventsOfItsTopic(t *testing.T) {
	nats := streamtest.Start(t)
	js := nats.JetStream(t)
	template, err := stream.ParseTemplate("")
	if err != nil {
		t.Fatal(err)
	}
	setup := stream.Setup{Stream: "EVENTS", Template: template, Create: true}
	if _, err := setup.Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	for i, topic := range []string{"users", "new users"} {
		msg, err := stream.Encoder{Template: template}.Message(&stream.Event{
			Seq: int64(i) + 1, ID: uuid.New(), Topic: topic, AggregateType: "User", AggregateID: "17",
			EventType: "UserCreated", Data: []byte(`{"id":17}`), CreatedAt: time.Now(),
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}

	env := map[string]string{"NATS_URL": nats.URL(), "NATS_STREAM": "EVENTS", "NATS_TOPIC": "new users", "HEALTH_ADDR": "127.0.0.1:0"}
	getenv := func(name string) string { return env[name] }
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	log := &logtest.Log{}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, nil, getenv, log) }()
	if got, want := log.Await(t, "msg=event"), `type=UserCreated aggregate=User/17 seq=2 payload="{\"id\":17}"`; !strings.HasSuffix(got, want) {
		t.Errorf("logged: %s\nwant: … %s", got, want)
	}

	env["HEALTH_ADDR"] = logtest.Value(log.Await(t, "serving health"), "addr")
	if err := run(t.Context(), []string{"healthcheck"}, getenv, io.Discard); err != nil {
		t.Errorf("healthcheck of a running consumer: %v", err)
	}
	nats.Stop()
	log.Await(t, "connection to NATS lost")
	if err := run(t.Context(), []string{"healthcheck"}, getenv, io.Discard); err == nil || !strings.Contains(err.Error(), "RECONNECTING") {
		t.Errorf("healthcheck without NATS: %v, want an error that says RECONNECTING", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the consumer ended with: %v", err)
	}
}

func TestRefusesArguments(t *testing.T) {
	err := run(t.Context(), []string{"consume"}, func(string) string { return "" }, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "consume") {
		t.Errorf("run: %v, want an error about consume", err)
	}
}
