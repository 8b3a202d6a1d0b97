package history_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// directly has all reading back go without a consumer: the stream takes none.
func directly(t *testing.T, server *streamtest.Server) {
	t.Helper()
	js := server.JetStream(t)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, AllowDirect: true, AllowBatchPublish: true, MaxConsumers: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(t.Context(), "OUTBOX", jetstream.ConsumerConfig{Durable: "only"}); err != nil {
		t.Fatal(err)
	}
}

// A message with a header that servers use in their own answers, or with headers
// that nobody can read, is a message like others.
func TestScanPassesAnyMessage(t *testing.T) {
	for _, way := range []string{"consumer", "direct"} {
		t.Run(way, func(t *testing.T) {
			server := streamtest.Start(t)
			if way == "direct" {
				directly(t, server)
			}
			p := publishertest.Open(t, server)
			publishertest.Fence(t, p, 1)
			conn := server.Conn(t)
			stored := 0
			next := func() {
				stored++
				if err := p.Publish(publishertest.Event(int64(stored))); err != nil {
					t.Fatal(err)
				}
				publishertest.Collect(t, p, 1)
			}
			next()
			for _, status := range []string{"100", "204", "400", "404", "408", "409", "423", "503", "0", "x", ""} {
				for _, data := range []string{"", "payload"} {
					for _, further := range []nats.Header{{}, {"Description": {"Consumer Deleted"}}, {"Nats-Pending-Messages": {"1000000"}}, {"Nats-Last-Sequence": {"1000000"}, "Nats-Num-Pending": {"0"}}} {
						msg := nats.NewMsg("outbox.t.A.1")
						msg.Header, msg.Data = further, []byte(data)
						msg.Header.Set("Status", status)
						if _, err := conn.RequestMsg(msg, 5*time.Second); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			for _, head := range []string{"NATS/1.0 503\r\nnonsense\r\n\r\n", "NATS/1.0 204\r\n\r\n", "NATS/1.0\r\n: \r\n\r\n", "NATS/1.0\r\n\r\n"} {
				raw(t, server, fmt.Sprintf("HPUB outbox.t.A.1 %d %d\r\n%s\r\n", len(head), len(head), head))
			}
			raw(t, server, "PUB outbox.t.A.1 0\r\n\r\n")
			next()

			if got := publishertest.Scan(t, p, 0, publishertest.Fence(t, p, 1)); len(got) != 2 || got[0] != 1 || got[1] != 2 {
				t.Errorf("scanned %v, want events 1 and 2", got)
			}
		})
	}
}

// raw writes to a server past any client.
func raw(t *testing.T, server *streamtest.Server, text string) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(server.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, "CONNECT {\"headers\":true}\r\n%sPING\r\n", text); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	answers, buf := []byte(nil), make([]byte, 4096)
	for !bytes.Contains(answers, []byte("PONG")) {
		n, err := conn.Read(buf)
		if err != nil || bytes.Contains(buf[:n], []byte("-ERR")) {
			t.Fatalf("the server answered %q, %v", append(answers, buf[:n]...), err)
		}
		answers = append(answers, buf[:n]...)
	}
}

// The stream is read back within whatever limits a server, a stream or an account
// has for consumers, or the error names the limit.
func TestScanWithinLimits(t *testing.T) {
	limits := func(l server.JSLimitOpts) func(*server.Options) {
		return func(o *server.Options) { o.JetStreamLimits = l }
	}
	plain := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, AllowBatchPublish: true}
	with := func(change func(*jetstream.StreamConfig)) jetstream.StreamConfig {
		config := plain
		change(&config)
		return config
	}
	for _, tt := range []struct {
		name     string
		server   func(*server.Options)
		stream   jetstream.StreamConfig
		occupied int    // So many consumers are there already.
		want     string // In the error; empty for none.
	}{
		{name: "requests for 500", server: limits(server.JSLimitOpts{MaxRequestBatch: 500}), stream: plain},
		{name: "requests for 1", server: limits(server.JSLimitOpts{MaxRequestBatch: 1}), stream: plain},
		{name: "one pending acknowledgement", server: limits(server.JSLimitOpts{MaxAckPending: 1}), stream: plain},
		{name: "short idleness", server: limits(server.JSLimitOpts{}), stream: with(func(c *jetstream.StreamConfig) {
			c.ConsumerLimits = jetstream.StreamConsumerLimits{InactiveThreshold: 2 * time.Second, MaxAckPending: 1}
		})},
		{
			name: "no consumers, direct gets", server: limits(server.JSLimitOpts{}), occupied: 1,
			stream: with(func(c *jetstream.StreamConfig) { c.MaxConsumers, c.AllowDirect = 1, true }),
		},
		{
			name: "no consumers", server: limits(server.JSLimitOpts{}), occupied: 1, want: "as many consumers as",
			stream: with(func(c *jetstream.StreamConfig) { c.MaxConsumers = 1 }),
		},
		{
			name: "the server's default", server: limits(server.JSLimitOpts{DefaultMaxConsumers: 2}), occupied: 2, want: "--allow-direct",
			stream: plain,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := streamtest.Start(t, tt.server)
			js := server.JetStream(t)
			if _, err := js.CreateStream(t.Context(), tt.stream); err != nil {
				t.Fatal(err)
			}
			for i := range tt.occupied {
				if _, err := js.CreateConsumer(t.Context(), "OUTBOX", jetstream.ConsumerConfig{Durable: fmt.Sprintf("c%d", i)}); err != nil {
					t.Fatal(err)
				}
			}
			p := publishertest.Open(t, server)
			publishertest.Fence(t, p, 1)
			const n = 10_500
			for seq := int64(1); seq <= n; seq++ {
				publishertest.SendOrdered(t, p, publishertest.Event(seq))
				if seq%1500 == 0 {
					p.Finish()
					publishertest.Collect(t, p, 1500)
				}
			}
			end := publishertest.Fence(t, p, 1)
			if tt.want != "" {
				err := p.History().Scan(t.Context(), 0, end, func(history.Found) error { return nil })
				var fault *stream.Error
				if !errors.As(err, &fault) || fault.Fault != stream.FaultSetup || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want a set-up fault with %q", err, tt.want)
				}
				return
			}
			got := publishertest.Scan(t, p, 0, end)
			if len(got) != n || got[0] != 1 || got[n-1] != n {
				t.Errorf("scanned %d events, want 1 to %d in order", len(got), n)
			}
			str, err := js.Stream(t.Context(), "OUTBOX")
			if err != nil {
				t.Fatal(err)
			}
			streamtest.Eventually(t, func() bool {
				info, err := str.Info(t.Context())
				return err == nil && info.State.Consumers == tt.occupied
			})
		})
	}
}
