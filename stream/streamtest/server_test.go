package streamtest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestServerKeepsItsStoreAndPortOverAnOutage(t *testing.T) {
	srv := streamtest.Start(t)
	js := srv.JetStream(t)
	createStream(t, js, jetstream.LimitsPolicy)
	publish(t, js, "events.before")

	url := srv.URL()
	srv.Stop()
	srv.Stop() // a second call does nothing
	srv.Restart()
	if got := srv.URL(); got != url {
		t.Errorf("URL after Restart = %q, want %q", got, url)
	}
	publish(t, srv.JetStream(t), "events.after")

	var got []string
	for _, msg := range srv.Messages(t, "EVENTS") {
		got = append(got, fmt.Sprint(msg.Sequence, msg.Subject, string(msg.Data)))
	}
	want := []string{"1events.beforepayload", "2events.afterpayload"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Messages = %q, want %q", got, want)
	}
}

func TestMessagesOfAnyRetention(t *testing.T) {
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			srv := streamtest.Start(t)
			js := srv.JetStream(t)
			createStream(t, js, retention)
			if got := srv.Messages(t, "EVENTS"); len(got) != 0 {
				t.Errorf("Messages of an empty stream = %v, want none", got)
			}

			for i := range 3 {
				publish(t, js, fmt.Sprintf("events.%d", i))
			}
			str, err := js.Stream(t.Context(), "EVENTS")
			if err != nil {
				t.Fatal(err)
			}
			if err := str.DeleteMsg(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			for range 2 { // reading takes nothing away
				got := srv.Messages(t, "EVENTS")
				if len(got) != 2 || got[0].Subject != "events.0" || got[1].Subject != "events.2" {
					t.Errorf("Messages = %v, want those to events.0 and events.2", got)
				}
			}
		})
	}
}

func TestMaxPayload(t *testing.T) {
	srv := streamtest.Start(t, streamtest.MaxPayload(128))
	err := srv.Conn(t).Publish("events", make([]byte, 129))
	if !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("publish of 129 bytes: %v, want %v", err, nats.ErrMaxPayload)
	}
}

func createStream(t *testing.T, js jetstream.JetStream, retention jetstream.RetentionPolicy) {
	t.Helper()
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "EVENTS", Subjects: []string{"events.>"}, Retention: retention,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func publish(t *testing.T, js jetstream.JetStream, subject string) {
	t.Helper()
	if _, err := js.Publish(context.WithoutCancel(t.Context()), subject, []byte("payload")); err != nil {
		t.Fatal(err)
	}
}
