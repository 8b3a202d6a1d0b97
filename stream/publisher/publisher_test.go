package publisher_test

import (
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

func TestNewTellsAllFaults(t *testing.T) {
	_, err := publisher.New(publisher.Options{
		Connect:    stream.ConnectOptions{URL: "http://127.0.0.1"},
		Setup:      stream.Setup{Stream: "A.B", Replicas: -1},
		Encoder:    stream.Encoder{CloudEventsSource: "%"},
		AckTimeout: -time.Second,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"unknown scheme", "Stream: ", "Replicas: ", "CloudEvents source", "AckTimeout: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want an error with %q", err, want)
		}
	}
}
