package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/examples/consumer/inbox"
	"github.com/go-outbox/go-outbox/examples/internal/logtest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// patience is how long anything here may take before the test fails.
const patience = 20 * time.Second

func createStream(t *testing.T, js jetstream.JetStream, window time.Duration) {
	t.Helper()
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: window})
	if err != nil {
		t.Fatal(err)
	}
}

// publish stores the event with that seq as the relay does, and says whether the stream took it for a duplicate.
func publish(t *testing.T, js jetstream.JetStream, seq int64) (duplicate bool) {
	t.Helper()
	template, err := stream.ParseTemplate("")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.Encoder{Template: template}.Message(&stream.Event{
		Seq: seq, ID: uuid.NewSHA1(uuid.Nil, fmt.Append(nil, seq)), CreatedAt: time.Now(),
		Topic: "users", AggregateType: "User", AggregateID: "1", EventType: "UserChanged",
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	ack, err := js.PublishMsg(t.Context(), msg)
	if err != nil {
		t.Fatal(err)
	}
	return ack.Duplicate
}

// consumer is a running inbox.
type consumer struct {
	*inbox.Inbox

	log    *logtest.Log
	events chan int64 // The seq of each event that is handed to the handler.
	stop   func()     // Returns once Run has.
}

// start runs an inbox whose handler answers with the outcomes given, one after the other, and then with nil.
func start(t *testing.T, js jetstream.JetStream, outcomes ...error) *consumer {
	t.Helper()
	c := &consumer{log: &logtest.Log{}, events: make(chan int64, 100)}
	c.Inbox = inbox.New(js, inbox.Options{
		Stream: "OUTBOX", Filter: "outbox.users.>", Durable: "test",
		Handle: func(_ context.Context, event stream.Event) error {
			c.events <- event.Seq
			if len(outcomes) == 0 {
				return nil
			}
			var outcome error
			outcome, outcomes = outcomes[0], outcomes[1:]
			return outcome
		},
		Logger: slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Run(ctx)
	}()
	c.stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(func() {
		c.stop()
		t.Logf("log:\n%s", c.log)
	})
	return c
}

// expect waits for the next events and compares them.
func (c *consumer) expect(t *testing.T, want ...int64) {
	t.Helper()
	deadline := time.After(patience)
	var got []int64
	for range want {
		select {
		case seq := <-c.events:
			got = append(got, seq)
		case <-deadline:
			t.Fatalf("events within %v: %v, want %v", patience, got, want)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("events = %v, want %v", got, want)
	}
}

func TestWaitsForTheStream(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	c := start(t, js)
	c.log.Await(t, "waiting for the stream")
	if err := c.Check(t.Context()); err == nil {
		t.Error("Check without a stream: no error")
	}
	createStream(t, js, time.Minute)
	publish(t, js, 1)
	c.expect(t, 1)
	if err := c.Check(t.Context()); err != nil {
		t.Errorf("Check while consuming: %v", err)
	}
}

func TestFailuresKeepTheOrder(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	createStream(t, js, time.Minute)
	for seq := range int64(3) {
		publish(t, js, seq+1)
	}
	failure := errors.New("not now")
	c := start(t, js, nil, failure, failure)
	c.expect(t, 1, 2, 2, 2, 3)
}

func TestGoesOnWhereItStopped(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	createStream(t, js, time.Minute)
	publish(t, js, 1)
	first := start(t, js)
	first.expect(t, 1)
	first.stop()
	publish(t, js, 2)
	start(t, js).expect(t, 2)
}

func TestHandlesAnEventOnce(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	createStream(t, js, 100*time.Millisecond)
	c := start(t, js)
	publish(t, js, 1)
	for publish(t, js, 1) {
		// Until the stream has forgotten the first.
	}
	publish(t, js, 2)
	c.expect(t, 1, 2)
	c.log.Await(t, "event handled before")
}

func TestSkipsWhatIsNoEvent(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	createStream(t, js, time.Minute)
	damaged := nats.NewMsg("outbox.users.User.2")
	damaged.Header.Set(stream.HeaderSeq, "two")
	for _, msg := range []*nats.Msg{nats.NewMsg("outbox.users.User.1"), damaged} {
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, js, 1)
	c := start(t, js)
	c.expect(t, 1)
	c.log.Await(t, "message skipped")
}

func TestOutage(t *testing.T) {
	server := streamtest.Start(t)
	js := server.JetStream(t)
	createStream(t, js, time.Minute)
	c := start(t, js)
	publish(t, js, 1)
	c.expect(t, 1)

	lost := js.Conn().StatusChanged(nats.RECONNECTING)
	server.Stop()
	select {
	case <-lost:
	case <-time.After(patience):
		t.Fatalf("the connection was not lost within %v", patience)
	}
	if err := c.Check(t.Context()); err == nil {
		t.Error("Check in an outage: no error")
	}
	server.Restart()
	publish(t, server.JetStream(t), 2)
	c.expect(t, 2)
}
