package publisher_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// sized is event 1 with a payload of so many bytes.
func sized(bytes int) *stream.Event {
	ev := publishertest.Event(1)
	ev.Data = make([]byte, bytes)
	return ev
}

// smallest has the smallest headers that an event can have.
func smallest(bytes int) *stream.Event {
	ev := &stream.Event{ID: publishertest.Event(1).ID, CreatedAt: time.Unix(1, 0), Data: make([]byte, bytes)}
	return ev
}

// limitedStream creates the stream with a max_msg_size; 0 for none.
func limitedStream(t *testing.T, js jetstream.JetStream, maxMsgSize int32) {
	t.Helper()
	config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, AllowBatchPublish: true, MaxMsgSize: maxMsgSize}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}

// MaxData is just what fits, by the lower of both limits.
func TestMaxData(t *testing.T) {
	for name, test := range map[string]struct {
		maxPayload, maxMsgSize int32
	}{
		"the server's": {maxPayload: 4000},
		"the stream's": {maxPayload: 4000, maxMsgSize: 2000},
		"tiny":         {maxPayload: 4000, maxMsgSize: 10},
	} {
		t.Run(name, func(t *testing.T) {
			srv := streamtest.Start(t, streamtest.MaxPayload(test.maxPayload))
			limitedStream(t, srv.JetStream(t), test.maxMsgSize)
			opened, err := publisher.New(publisher.Options{Connect: stream.ConnectOptions{URL: srv.URL()}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(opened.Close)
			if got := opened.MaxData(); got != 0 {
				t.Errorf("before Open it is %d, want 0", got)
			}
			_, err = opened.Open(t.Context())
			if name == "tiny" { // Not even headers fit.
				if fault := stream.Classify(err); err == nil || fault.Fault != stream.FaultSetup || !strings.Contains(err.Error(), "takes messages of at most 10 bytes (max_msg_size)") {
					t.Errorf("opened with %v, want a fault of the set-up", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			most := opened.MaxData()
			p := publishertest.Begin(t, opened)
			// It does not fit into a batch's first message, which has more headers; but by itself.
			for i, send := range []func(*stream.Event) error{p.PublishOrdered, p.Publish} {
				if err := send(smallest(most)); err != nil {
					t.Fatalf("a payload of %d bytes: %v", most, err)
				}
				if o := publishertest.Collect(t, p, 1)[0]; i == 0 && !o.Retry || i == 1 && o.Err != nil {
					t.Errorf("a payload of %d bytes: %v, retry %v", most, o.Err, o.Retry)
				}
				if p.BatchWindow() != 0 {
					t.Error("it is to be sent in a batch again")
				}
			}
			err = p.Publish(smallest(most + 1))
			if err == nil {
				if fault := publishertest.Collect(t, p, 1)[0].Err; fault != nil {
					err = fault
				}
			}
			if err == nil {
				t.Errorf("a payload of %d bytes is stored, MaxData is %d", most+1, most)
			}
		})
	}
}

// It follows Verify and Open while the stream changes, and may be asked by anyone.
func TestMaxDataFollowsTheStream(t *testing.T) {
	srv := streamtest.Start(t)
	js := srv.JetStream(t)
	limitedStream(t, js, 0)
	p := publishertest.Open(t, srv)
	before := p.MaxData()
	var asking sync.WaitGroup
	asking.Go(func() {
		for range 1000 {
			_ = p.MaxData()
		}
	})
	for _, refresh := range []func() error{
		func() error { _, err := p.Open(t.Context()); return err },
		func() error { _, err := p.Verify(t.Context(), history.State{}, 0); return err },
	} {
		for _, size := range []int32{5000, -1} {
			str, err := js.Stream(t.Context(), "OUTBOX")
			if err != nil {
				t.Fatal(err)
			}
			config := str.CachedInfo().Config
			config.MaxMsgSize = size
			if _, err := js.UpdateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			if err := refresh(); err != nil {
				t.Fatal(err)
			}
			if got := p.MaxData(); (got < 5000) != (size == 5000) || size < 0 && got != before {
				t.Errorf("with max_msg_size %d it is %d, without it was %d", size, got, before)
			}
		}
	}
	asking.Wait()
}

// An event that is too large is refused for good, with both sizes, by whatever refuses it; in a batch, no other event is
// concerned.
func TestTooLargeIsPermanent(t *testing.T) {
	for name, test := range map[string]struct {
		maxPayload, maxMsgSize int32
		event                  *stream.Event
		want                   []string
	}{
		"for the server": {maxPayload: 65536, event: sized(100_000), want: []string{"payload of 100000 bytes with ", " bytes of headers exceeds the server's max_payload of 65536"}},
		"for the stream": {maxPayload: 1 << 20, maxMsgSize: 5000, event: sized(5001), want: []string{"payload of 5001 bytes with ", " bytes of headers exceeds the stream's max_msg_size of 5000"}},
		"by its headers": {maxPayload: 1 << 20, event: func() *stream.Event {
			ev := publishertest.Event(1)
			ev.Headers = []byte(`{"a":"` + strings.Repeat("x", 1<<16) + `"}`)
			return ev
		}(), want: []string{"headers of 65", " bytes exceed the 64512 that a message can carry"}},
	} {
		for way, ordered := range map[string]bool{"by itself": false, "in an ordered batch": true} {
			t.Run(name+", "+way, func(t *testing.T) {
				srv := streamtest.Start(t, streamtest.MaxPayload(test.maxPayload))
				limitedStream(t, srv.JetStream(t), test.maxMsgSize)
				p := publishertest.Open(t, srv)
				send, n := p.Publish, 1
				if ordered {
					send, n = p.PublishOrdered, 2
					publishertest.SendOrdered(t, p, publishertest.Event(2))
				}
				err := send(test.event)
				p.Finish()
				if err != nil {
					n--
				}
				outcomes := publishertest.Collect(t, p, n)
				if o, ok := outcomes[1]; err == nil && ok && o.Err != nil {
					err = o.Err
				}
				fault := stream.Classify(err)
				if fault == nil || fault.Fault != stream.FaultRow || !fault.Permanent || fault.Ambiguous() {
					t.Fatalf("got %+v, want a permanent refusal of the event", fault)
				}
				for _, want := range test.want {
					if !strings.Contains(fault.Error(), want) {
						t.Errorf("got %q, want %q in it", fault, want)
					}
				}
				if o, ok := outcomes[2]; ok && o.Err != nil {
					t.Errorf("the event before it: %v", o.Err)
				}
			})
		}
	}
}

// A server that lowers its max_payload tells nobody, and closes the connection of who sends more. Then the publisher
// connects anew, knows the limit, and goes on.
func TestMaxPayloadLoweredByReload(t *testing.T) {
	for way, ordered := range map[string]bool{"by itself": false, "in an ordered batch": true} {
		t.Run(way, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "nats.conf")
			configure := func(maxPayload string) {
				t.Helper()
				text := "listen: \"127.0.0.1:-1\"\nmax_payload: " + maxPayload + "\njetstream: {store_dir: \"" + t.TempDir() + "\"}\n"
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			configure("100000")
			options, err := server.ProcessConfigFile(file)
			if err != nil {
				t.Fatal(err)
			}
			options.NoSigs = true
			srv, err := server.NewServer(options)
			if err != nil {
				t.Fatal(err)
			}
			srv.Start()
			t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
			if !srv.ReadyForConnections(10 * time.Second) {
				t.Fatal("the server does not start")
			}
			opened, err := publisher.New(publisher.Options{
				Connect: stream.ConnectOptions{URL: srv.ClientURL()}, Setup: stream.Setup{Stream: "OUTBOX", Create: true},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(opened.Close)
			if _, err := opened.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			p := publishertest.Begin(t, opened)
			lowered := options.Clone()
			lowered.MaxPayload = 10_000
			if err := srv.ReloadOptions(lowered); err != nil {
				t.Fatal(err)
			}
			send := p.Publish
			if ordered {
				send = p.PublishOrdered
			}
			if err := send(sized(50_000)); err != nil {
				t.Fatal(err)
			}
			p.Finish()
			if o := publishertest.Collect(t, p, 1)[1]; o.Err == nil || o.Err.Fault == stream.FaultRow {
				t.Errorf("the connection ends, and the event's outcome is %+v", o)
			}
			deadline := time.Now().Add(10 * time.Second)
			for {
				if _, err := p.Open(t.Context()); err == nil {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("it does not come back: %v", err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			if got := p.MaxData(); got <= 0 || got >= 10_000 {
				t.Errorf("MaxData is %d, want what 10000 leave", got)
			}
			if err := stream.Classify(send(sized(50_000))); err == nil || !err.Permanent {
				t.Errorf("again: got %v, want a permanent refusal", err)
			}
			if err := send(publishertest.Event(2)); err != nil {
				t.Fatal(err)
			}
			p.Finish()
			if o := publishertest.Collect(t, p, 1)[2]; o.Err != nil {
				t.Errorf("the next event: %v", o.Err)
			}
		})
	}
}
