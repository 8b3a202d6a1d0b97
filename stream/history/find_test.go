package history_test

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// Find tells apart events, other messages, and none.
func TestFind(t *testing.T) {
	srv := streamtest.Start(t)
	p := publishertest.Open(t, srv)
	f := publishertest.Fence(t, p, 1)
	msg := nats.NewMsg("outbox.x.y.z")
	msg.Header.Set(stream.HeaderSeq, "1")
	msg.Header.Set(stream.HeaderMsgID, "no UUID")
	ack, err := srv.JetStream(t).PublishMsg(t.Context(), msg)
	if err != nil {
		t.Fatal(err)
	}
	for _, sequence := range []uint64{0, f.Sequence, ack.Sequence, ack.Sequence + 1, 1 << 63} {
		if found, err := p.Find(t.Context(), sequence); err != nil || found.Event {
			t.Errorf("at %d: %+v, %v, want no event", sequence, found, err)
		}
	}
	p.Close()
	var fault *stream.Error
	if _, err := p.Find(t.Context(), 1); !errors.As(err, &fault) {
		t.Errorf("without a connection: %v", err)
	}
}
