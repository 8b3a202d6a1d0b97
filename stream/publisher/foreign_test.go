package publisher_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// replaceStream makes another stream take the place of OUTBOX under a connected publisher, with some messages in it.
func replaceStream(t *testing.T, js jetstream.JetStream, name string, messages int) {
	t.Helper()
	old, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	config := old.CachedInfo().Config
	config.Name = name
	if err := js.DeleteStream(t.Context(), "OUTBOX"); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	for i := range messages {
		if _, err := js.Publish(t.Context(), fmt.Sprintf("outbox.x.y.%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
}

// deafPublisher is a publisher that does not hear that its stream was deleted, and its server.
func deafPublisher(t *testing.T) (*publishertest.Publisher, *streamtest.Server) {
	t.Helper()
	srv := streamtest.Start(t, withoutPermission(nil, []string{"$JS.EVENT.>"}))
	p := restricted(t, srv, true)
	if _, err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.FirstFence(t.Context(), publishertest.Outbox, 1); err != nil {
		t.Fatal(err)
	}
	return p, srv
}

// What another stream answers settles nothing, and is the set-up's fault; a batch is not even stored there.
func TestAnotherStreamAnswers(t *testing.T) {
	for way, ordered := range map[string]bool{"by itself": false, "in an ordered batch": true} {
		t.Run(way, func(t *testing.T) {
			p, srv := deafPublisher(t)
			js := srv.JetStream(t)
			send := p.Publish
			if ordered {
				send = p.PublishOrdered
			}
			replaceStream(t, js, "OTHER", 0)
			for seq := range int64(3) {
				if err := send(publishertest.Event(seq)); err != nil {
					t.Fatal(err)
				}
			}
			p.Finish()
			for seq, o := range publishertest.Collect(t, p, 3) {
				if o.Err == nil || !o.Err.Ambiguous() || o.Err.Fault != stream.FaultSetup || !strings.Contains(o.Err.Error(), `another stream, "OTHER"`) {
					t.Errorf("event %d: %+v, want doubt, and that another stream answers", seq, o)
				}
			}
			if n := len(srv.Messages(t, "OTHER")); ordered && n > 0 {
				t.Errorf("the other stream holds %d messages of the batch", n)
			}
		})
	}
}

// A stream that is replaced is noticed without an event, unless the server may not tell of it: nothing else is sent.
func TestStreamReplacedIsTold(t *testing.T) {
	srv := streamtest.Start(t)
	p := publishertest.Open(t, srv)
	for seq := range int64(5) {
		if err := p.Publish(publishertest.Event(seq)); err != nil {
			t.Fatal(err)
		}
	}
	publishertest.Collect(t, p, 5)
	replaceStream(t, srv.JetStream(t), "OUTBOX", 0)
	_, trouble := collectAll(t, p, 0, true)
	if _, lost := errors.AsType[*stream.LostError](trouble); !lost {
		t.Errorf("trouble is %v, want that the stream was deleted", trouble)
	}
	if err := p.Publish(publishertest.Event(5)); err == nil || stream.Classify(err).Ambiguous() {
		t.Errorf("the next event: %v, want that it is not sent", err)
	}
	if n := len(srv.Messages(t, "OUTBOX")); n > 0 {
		t.Errorf("the new stream holds %d messages", n)
	}
	if _, err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(publishertest.Event(5)); err != nil {
		t.Fatal(err)
	}
	if o := publishertest.Collect(t, p, 1)[5]; o.Err != nil {
		t.Error(o.Err)
	}
}

// A stream that was created anew acknowledges a sequence that the former one had given, and nothing is sent after that.
func TestStreamCreatedAnew(t *testing.T) {
	for way, ordered := range map[string]bool{"by itself": false, "in an ordered batch": true} {
		t.Run(way, func(t *testing.T) {
			p, srv := deafPublisher(t)
			send := p.Publish
			if ordered {
				send = p.PublishOrdered
			}
			for seq := range int64(5) {
				if err := send(publishertest.Event(seq)); err != nil {
					t.Fatal(err)
				}
			}
			p.Finish()
			publishertest.Collect(t, p, 5)
			replaceStream(t, srv.JetStream(t), "OUTBOX", 1)
			if err := send(publishertest.Event(5)); err != nil {
				t.Fatal(err)
			}
			p.Finish()
			outcomes, trouble := collectAll(t, p, 1, true)
			var lost *stream.LostError
			if o := outcomes[0]; o.Err == nil || !o.Err.Ambiguous() || !errors.As(o.Err, &lost) || !errors.As(trouble, &lost) {
				t.Errorf("got %+v and trouble %v, want that the stream has lost something", o, trouble)
			}
			if err := send(publishertest.Event(6)); err == nil || stream.Classify(err).Ambiguous() {
				t.Errorf("the next event: %v, want that it is not sent", err)
			}
			// It goes on once the stream has been opened or fenced.
			if _, err := p.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := send(publishertest.Event(6)); err != nil {
				t.Fatal(err)
			}
			p.Finish()
			if o := publishertest.Collect(t, p, 1)[6]; o.Err != nil {
				t.Error(o.Err)
			}
		})
	}
}

// A stream that was replaced while nothing was published stores nothing of what comes next if it has no fence of ours,
// however far it has got, and one event at most if it has.
func TestStreamReplacedWhileIdle(t *testing.T) {
	for way, ordered := range map[string]bool{"by itself": false, "in an ordered batch": true} {
		for name, messages := range map[string]int{"empty": 0, "ahead": 50} {
			t.Run(way+", "+name, func(t *testing.T) {
				t.Parallel()
				p, srv := deafPublisher(t)
				publishertest.Fence(t, p, 1)
				send := p.Publish
				if ordered {
					send = p.PublishOrdered
				}
				for seq := range int64(5) {
					if err := send(publishertest.Event(seq)); err != nil {
						t.Fatal(err)
					}
				}
				p.Finish()
				publishertest.Collect(t, p, 5)
				if p.Alone() {
					t.Error("an event is to go alone just after others")
				}
				replaceStream(t, srv.JetStream(t), "OUTBOX", messages)
				streamtest.Eventually(t, p.Alone)
				if err := send(publishertest.Event(5)); err != nil {
					t.Fatal(err)
				}
				p.Finish()
				if o := publishertest.Collect(t, p, 1)[5]; o.Err == nil {
					t.Errorf("the next event is stored: %+v", o)
				}
				if n := len(srv.Messages(t, "OUTBOX")); n != messages {
					t.Errorf("the stream holds %d messages, want the %d that were there", n, messages)
				}
				if !p.Alone() {
					t.Error("a refusal proves that it is the stream that was known")
				}
				// After the read-back, all goes on.
				if _, err := p.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
				publishertest.Fence(t, p, 1)
				if p.Alone() {
					t.Error("an event is to go alone just after the fence")
				}
				if err := send(publishertest.Event(5)); err == nil || stream.Classify(err).Ambiguous() {
					t.Errorf("the session before that fence: %v, want that it does not send", err)
				}
				send = p.Publish
				if ordered {
					send = p.PublishOrdered
				}
				if err := send(publishertest.Event(5)); err != nil {
					t.Fatal(err)
				}
				p.Finish()
				if o := publishertest.Collect(t, p, 1)[5]; o.Err != nil {
					t.Error(o.Err)
				}
			})
		}
	}
}

// Without a fence, no batch begins after idleness before an event by itself was acknowledged.
func TestFirstFenceBatchAfterIdleness(t *testing.T) {
	srv := streamtest.Start(t)
	p := publishertest.Open(t, srv)
	if _, err := p.FirstFence(t.Context(), publishertest.Outbox, 1); err != nil {
		t.Fatal(err)
	}
	if p.BatchWindow() == 0 {
		t.Fatal("no batch may begin")
	}
	streamtest.Eventually(t, p.Alone)
	if p.BatchWindow() != 0 {
		t.Error("a batch may begin")
	}
	if err := p.Publish(publishertest.Event(1)); err != nil {
		t.Fatal(err)
	}
	if o := publishertest.Collect(t, p, 1)[1]; o.Err != nil {
		t.Error(o.Err)
	}
	if p.Alone() || p.BatchWindow() == 0 {
		t.Error("after an acknowledgement, no batch may begin")
	}
}
