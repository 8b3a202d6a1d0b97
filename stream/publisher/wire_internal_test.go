package publisher

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/streamtest"
	"github.com/go-outbox/go-outbox/stream/wire"
)

// The raw writer writes what nats.go would have written, but for the order of the headers.
func TestWireEqualsNATS(t *testing.T) {
	plain := stream.Event{
		Seq: 7, ID: uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), Topic: "t", AggregateType: "A", AggregateID: "a.b\r\n", EventType: "",
		Data: []byte("x\r\ny"), CreatedAt: time.Unix(1, 5),
	}
	own, several, empty, large, huge, nobody := plain, plain, plain, plain, plain, plain
	own.Headers = []byte(`{"Trace": "1", "Content-Type": "text/plain"}`)
	several.Headers = []byte(`{"Trace": ["1", "2"], "N": 3}`)
	empty.Data = nil
	large.Data = bytes.Repeat([]byte("x"), wire.CopySize+1)
	huge.AggregateID = strings.Repeat("x", stream.MaxHeader)
	nobody.ID = uuid.Nil
	events := map[string]stream.Event{"plain": plain, "own headers": own, "several values": several, "no payload": empty, "large": large, "huge header": huge, "no ID": nobody}
	fence := []headerLine{{"Fence", "1"}, {"Fence-Subject", "s"}}
	template, err := stream.ParseTemplate(stream.DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	for _, encoder := range []stream.Encoder{{Template: template}, {Template: template, CloudEventsSource: "/s"}} {
		for name, ev := range events {
			for _, further := range [][]headerLine{nil, fence} {
				t.Run(fmt.Sprintf("%s, source %q, %d further", name, encoder.CloudEventsSource, len(further)), func(t *testing.T) {
					want, wantErr := encoder.Message(&ev, "r.1")
					c := stream.NewReusingEncoder(encoder)
					subject, head, err := c.RawMessage(&ev, blockOf(further))
					if !reflect.DeepEqual(err, wantErr) {
						t.Fatalf("got error %v, want %v", err, wantErr)
					}
					if err != nil {
						return
					}
					sent := &sink{}
					w := &wire.Writer{}
					w.Begin(wire.NewConn(sent, nil), 1<<20)
					if err := errors.Join(w.Send(subject, []byte("r.1"), head, ev.Data), w.Flush()); err != nil {
						t.Fatal(err)
					}
					got := parse(t, &sent.Buffer)
					if got.Subject != want.Subject || got.Reply != want.Reply || !bytes.Equal(got.Data, want.Data) {
						t.Errorf("got %+v, want %+v", got, want)
					}
					if want = fenced(want, further); !reflect.DeepEqual(got.Header, want.Header) {
						t.Errorf("got headers %q, want %q", got.Header, want.Header)
					}
				})
			}
		}
	}
}

// parse reads one HPUB, and nothing may follow it.
func parse(t *testing.T, sent *bytes.Buffer) *nats.Msg {
	t.Helper()
	line, err := sent.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	msg := &nats.Msg{}
	var head, all int
	if _, err := fmt.Sscanf(line, "HPUB %s %s %d %d\r\n", &msg.Subject, &msg.Reply, &head, &all); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if msg.Header, err = nats.DecodeHeadersMsg(sent.Next(head)); err != nil {
		t.Fatal(err)
	}
	msg.Data = bytes.Clone(sent.Next(all - head))
	if end := sent.String(); end != "\r\n" {
		t.Errorf("the message ends with %q", end)
	}
	return msg
}

// sink is a connection that keeps what is written to it.
type sink struct {
	net.Conn
	bytes.Buffer
}

func (s *sink) Read([]byte) (int, error)         { return 0, io.EOF }
func (s *sink) Close() error                     { return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }
func (s *sink) Write(b []byte) (int, error) {
	return s.Buffer.Write(b)
}

// Ordered batches work over whatever a connection may be: those that are framed are nats.go's to write.
func TestBatchOverAnyConnection(t *testing.T) {
	ca := streamtest.NewAuthority(t)
	cert, key := ca.Issue(t, time.Now().Add(time.Hour))
	secure := &tls.Config{Certificates: []tls.Certificate{streamtest.LoadPair(t, cert, key)}, MinVersion: tls.VersionTLS12}
	mutual := secure.Clone()
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool(t)
	withTLS := func(config *tls.Config, more ...func(*server.Options)) func(*server.Options) {
		return func(o *server.Options) {
			o.TLSConfig, o.TLSTimeout = config, 2
			for _, change := range more {
				change(o)
			}
		}
	}
	encrypted := func(s *streamtest.Server) string { return strings.Replace(s.URL(), "nats:", "tls:", 1) }
	for _, tt := range []struct {
		name      string
		connect   stream.ConnectOptions
		configure func(*server.Options)
		url       func(*streamtest.Server) string
		raw       bool
	}{
		{"TCP", stream.ConnectOptions{}, func(*server.Options) {}, (*streamtest.Server).URL, true},
		{"TLS", stream.ConnectOptions{TLSCA: ca.File}, withTLS(secure), (*streamtest.Server).URL, true},
		{"TLS by scheme", stream.ConnectOptions{TLSCA: ca.File}, withTLS(secure), encrypted, true},
		{
			"TLS that the server only offers",
			stream.ConnectOptions{TLSCA: ca.File},
			withTLS(secure, func(o *server.Options) { o.AllowNonTLS = true }), encrypted, true,
		},
		{
			"TLS first",
			stream.ConnectOptions{TLSCA: ca.File, TLSFirst: true},
			withTLS(secure, func(o *server.Options) { o.TLSHandshakeFirst = true }), (*streamtest.Server).URL, true,
		},
		{"TLS of both sides", stream.ConnectOptions{TLSCA: ca.File, TLSCert: cert, TLSKey: key}, withTLS(mutual), (*streamtest.Server).URL, true},
		{"WebSocket over TLS", stream.ConnectOptions{TLSCA: ca.File}, func(o *server.Options) {
			o.Websocket = server.WebsocketOpts{Host: "127.0.0.1", Port: -1, TLSConfig: secure}
		}, func(s *streamtest.Server) string { return s.NATS().WebsocketURL() }, false},
		{"WebSocket", stream.ConnectOptions{}, func(o *server.Options) {
			o.Websocket = server.WebsocketOpts{Host: "127.0.0.1", Port: -1, NoTLS: true}
		}, func(s *streamtest.Server) string { return s.NATS().WebsocketURL() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := streamtest.Start(t, tt.configure)
			connect := tt.connect
			connect.URL = tt.url(srv)
			p, err := New(Options{
				Connect: connect,
				Setup:   stream.Setup{Stream: "OUTBOX", Create: true},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)
			if _, err := p.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, _, err := p.Begin(t.Context(), "o", 1, true); err != nil {
				t.Fatal(err)
			}
			// All the while nats.go sends on the same connection.
			stop, sending := make(chan struct{}), sync.WaitGroup{}
			conn := p.requests.Current()
			sending.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_ = conn.Publish("elsewhere", make([]byte, 100))
					}
				}
			})
			const events = 2000
			sizes := []int{0, wire.CopySize, wire.CopySize + 1, 2 * wire.BufferSize}
			for i := range events {
				size := 300
				if i%10 < len(sizes) {
					size = sizes[i%10]
				}
				ev := stream.Event{Seq: int64(i + 1), ID: uuid.New(), Topic: "t", AggregateType: "A", AggregateID: "1", Data: make([]byte, size), CreatedAt: time.Now()}
				if err := p.session.PublishOrdered(&ev); err != nil {
					t.Fatal(err)
				}
				if p.mu.Lock(); i == 0 && p.batches.open.raw != tt.raw {
					t.Errorf("past nats.go: %v, want %v", p.batches.open.raw, tt.raw)
				}
				p.mu.Unlock()
			}
			p.session.Finish()
			deadline := time.After(15 * time.Second)
			for done := 0; done < events; {
				select {
				case <-p.Outcomes():
				case <-deadline:
					t.Fatalf("%d of %d outcomes", done, events)
				}
				outcomes, _ := p.Collect(nil)
				for _, o := range outcomes {
					if done++; o.Err != nil || o.Seq != int64(done) {
						t.Fatalf("outcome %d is of event %d: %v", done, o.Seq, o.Err)
					}
				}
			}
			close(stop)
			sending.Wait()
			if !tt.raw {
				connect = stream.ConnectOptions{URL: srv.URL()}
			} else if secure := connect.TLSCA != ""; secure != overTLS(p) {
				t.Errorf("TLS: %v, want %v", !secure, secure)
			}
			for i, msg := range srv.Messages(t, "OUTBOX", tlsOf(connect)...) {
				if ev, err := stream.Decode(msg.Header, msg.Data); err != nil || ev.Seq != int64(i+1) {
					t.Fatalf("message %d is event %d: %v", i+1, ev.Seq, err)
				}
			}
		})
	}
}

// overTLS reports whether a publisher's connection is under TLS.
func overTLS(p *Publisher) bool {
	_, secure := p.link.dialer.Raw().TLS()
	return secure
}

// tlsOf returns the options of another client that connects to the same server.
func tlsOf(connect stream.ConnectOptions) (options []nats.Option) {
	if connect.TLSCA != "" {
		options = append(options, nats.RootCAs(connect.TLSCA))
	}
	if connect.TLSCert != "" {
		options = append(options, nats.ClientCert(connect.TLSCert, connect.TLSKey))
	}
	if connect.TLSFirst {
		options = append(options, nats.TLSHandshakeFirst())
	}
	return options
}

// Events that are buffered when the lease ends are not sent any more, and they are in doubt.
func TestBatchIsNotSentWithoutTheLease(t *testing.T) {
	t.Run("TCP", func(t *testing.T) { batchWithoutLease(t, stream.ConnectOptions{}, func(*server.Options) {}) })
	ca := streamtest.NewAuthority(t)
	cert, key := ca.Issue(t, time.Now().Add(time.Hour))
	t.Run("TLS", func(t *testing.T) {
		batchWithoutLease(t, stream.ConnectOptions{TLSCA: ca.File}, func(o *server.Options) {
			o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{streamtest.LoadPair(t, cert, key)}, MinVersion: tls.VersionTLS12}
			o.TLSTimeout = 2
		})
	})
}

func batchWithoutLease(t *testing.T, connect stream.ConnectOptions, configure func(*server.Options)) {
	t.Helper()
	srv := streamtest.Start(t, configure)
	connect.URL = srv.URL()
	p, err := New(Options{Connect: connect, Setup: stream.Setup{Stream: "OUTBOX", Create: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	var ended atomic.Bool
	p.Guard(func() bool { return !ended.Load() })
	if _, err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Begin(t.Context(), "o", 1, true); err != nil {
		t.Fatal(err)
	}
	ev := stream.Event{Seq: 1, ID: uuid.New(), CreatedAt: time.Now()}
	if err := p.session.PublishOrdered(&ev); err != nil {
		t.Fatal(err)
	}
	ended.Store(true)
	p.session.Flush()
	var outcomes []Outcome
	for deadline := time.After(5 * time.Second); len(outcomes) == 0; { // Trouble with the connection may come first.
		select {
		case <-p.Outcomes():
		case <-deadline:
			t.Fatal("no outcome")
		}
		outcomes, _ = p.Collect(nil)
	}
	if outcome := outcomes[0]; len(outcomes) != 1 || outcome.Seq != 1 || outcome.Err == nil || !outcome.Err.Ambiguous() {
		t.Errorf("got %+v, want event 1 in doubt", outcome)
	}
	if n := len(srv.Messages(t, "OUTBOX", tlsOf(connect)...)); n > 0 {
		t.Errorf("the stream holds %d messages", n)
	}
}

// BenchmarkWire compares what an event costs to publish past nats.go with what it costs through it: both to a server
// that reads and forgets.
func BenchmarkWire(b *testing.B) {
	template, err := stream.ParseTemplate(stream.DefaultTemplate)
	if err != nil {
		b.Fatal(err)
	}
	c := stream.NewReusingEncoder(stream.Encoder{Template: template})
	reply := []byte("_INBOX.jZlFXGGkGVLOzvXBGGY4Dl.jZlFXGGkGVLOzvXBGGY4Fg.500.fail.12345.1.$FI")
	ev := stream.Event{Seq: 1_234_567, ID: uuid.New(), Topic: "users", AggregateType: "User", AggregateID: "12345", EventType: "UserCreated", Data: make([]byte, 256), CreatedAt: time.Now()}
	b.Run("past nats.go", func(b *testing.B) {
		w := &wire.Writer{}
		w.Begin(wire.NewConn(forget(b), nil), 1<<20)
		b.ReportAllocs()
		for b.Loop() {
			subject, head, err := c.RawMessage(&ev, nil)
			if err != nil {
				b.Fatal(err)
			}
			if err := w.Send(subject, reply, head, ev.Data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("through nats.go", func(b *testing.B) {
		nc, err := nats.Connect("", nats.InProcessServer(forgetful{b}))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(nc.Close)
		b.ReportAllocs()
		for b.Loop() {
			msg, err := c.Message(&ev, string(reply))
			if err != nil {
				b.Fatal(err)
			}
			if err := nc.PublishMsg(msg); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// forgetful is a server that answers the first PING and nothing else.
type forgetful struct{ b *testing.B }

func (f forgetful) InProcessConn() (net.Conn, error) { return forget(f.b), nil }

// forget returns a connection to such a server.
func forget(b *testing.B) net.Conn {
	b.Helper()
	listener, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = listener.Close() })
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, `INFO {"headers":true,"max_payload":1048576}`+"\r\n")
		in := bufio.NewReader(conn)
		for line := ""; err == nil && line != "PING\r\n" && !strings.HasPrefix(line, "HPUB"); {
			line, err = in.ReadString('\n')
		}
		_, _ = io.WriteString(conn, "PONG\r\n")
		_, _ = io.Copy(io.Discard, in)
	}()
	conn, err := new(net.Dialer).DialContext(b.Context(), "tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return conn
}
