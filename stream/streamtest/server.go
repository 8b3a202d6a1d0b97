package streamtest

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// patience is how long anything here may take before the test fails.
const patience = 10 * time.Second

// A Server is a nats-server for one test.
type Server struct {
	tb        testing.TB
	configure []func(*server.Options)
	storeDir  string
	port      int // fixed by the first start

	server *server.Server // nil while stopped
}

// Start starts a server. The functions, if any, change its options, say to
// limit MaxPayload or to demand a password; they run at each Restart too.
func Start(tb testing.TB, configure ...func(*server.Options)) *Server {
	tb.Helper()
	s := &Server{tb: tb, configure: configure, storeDir: tb.TempDir(), port: server.RANDOM_PORT}
	tb.Cleanup(s.Stop)
	s.Restart()
	return s
}

// MaxPayload makes a server that refuses messages larger than so many bytes.
func MaxPayload(bytes int32) func(*server.Options) {
	return func(o *server.Options) { o.MaxPayload = bytes }
}

// Restart starts the server again, on the same port and with the same store.
// A running one is stopped first.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	opts := &server.Options{
		ServerName: "streamtest",
		Host:       "127.0.0.1",
		Port:       s.port,
		JetStream:  true,
		StoreDir:   s.storeDir,
		NoLog:      true,
		NoSigs:     true,
	}
	for _, change := range s.configure {
		change(opts)
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		s.tb.Fatalf("start NATS server: %v", err)
	}
	ns.Start()
	if !ns.ReadyForConnections(patience) {
		ns.Shutdown()
		s.tb.Fatalf("start NATS server: not ready after %v", patience)
	}
	s.server = ns
	addr, ok := ns.Addr().(*net.TCPAddr)
	if !ok {
		s.tb.Fatalf("start NATS server: listens on %v", ns.Addr())
	}
	s.port = addr.Port
}

// Stop stops the server and waits until it has stopped. Clients see an outage.
func (s *Server) Stop() {
	if s.server == nil {
		return
	}
	s.server.Shutdown()
	s.server.WaitForShutdown()
	s.server = nil
}

// URL is where clients connect. It stays the same over a Restart.
func (s *Server) URL() string {
	s.tb.Helper()
	return s.running().ClientURL()
}

// NATS returns the running server itself, for tests that look inside.
func (s *Server) NATS() *server.Server {
	s.tb.Helper()
	return s.running()
}

func (s *Server) running() *server.Server {
	s.tb.Helper()
	if s.server == nil {
		s.tb.Fatal("the NATS server is stopped")
	}
	return s.server
}

// Conn returns a connection that is closed when the test ends. It reconnects
// for ever, as fast as an outage test wants it to. Options may add to that.
func (s *Server) Conn(tb testing.TB, options ...nats.Option) *nats.Conn {
	tb.Helper()
	options = append([]nats.Option{
		nats.Name(tb.Name()),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(10 * time.Millisecond),
		nats.ReconnectJitter(0, 0),
		nats.IgnoreAuthErrorAbort(),
		// The default handler prints.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, options...)
	nc, err := nats.Connect(s.URL(), options...)
	if err != nil {
		tb.Fatalf("connect to the NATS server: %v", err)
	}
	tb.Cleanup(nc.Close)
	return nc
}

// JetStream returns a JetStream client on a connection of its own.
func (s *Server) JetStream(tb testing.TB, options ...nats.Option) jetstream.JetStream {
	tb.Helper()
	js, err := jetstream.New(s.Conn(tb, options...))
	if err != nil {
		tb.Fatalf("JetStream client: %v", err)
	}
	return js
}

// termHeader tells a message that a relay wrote for itself.
const termHeader = "Outbox-Term"

// Messages returns all messages that a stream holds just now, in order, but for
// those that a relay wrote for itself. Options are those of Conn.
func (s *Server) Messages(tb testing.TB, stream string, options ...nats.Option) []*jetstream.RawStreamMsg {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	str, err := s.JetStream(tb, options...).Stream(ctx, stream)
	if err != nil {
		tb.Fatalf("stream %s: %v", stream, err)
	}
	if str.CachedInfo().State.Msgs == 0 {
		return nil
	}
	read := consume
	if str.CachedInfo().Config.Retention != jetstream.LimitsPolicy {
		read = get // a consumer might be refused, or take the messages away
	}
	messages, err := read(ctx, str)
	if err != nil {
		tb.Fatalf("stream %s: after %d messages: %v", stream, len(messages), err)
	}
	return slices.DeleteFunc(messages, func(m *jetstream.RawStreamMsg) bool { return m.Header.Get(termHeader) != "" })
}

// consume reads a stream through an ordered consumer, which is fast.
func consume(ctx context.Context, str jetstream.Stream) ([]*jetstream.RawStreamMsg, error) {
	var messages []*jetstream.RawStreamMsg
	consumer, err := str.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	iterator, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	defer iterator.Stop()
	for {
		msg, err := iterator.Next(jetstream.NextContext(ctx))
		if err != nil {
			return messages, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return messages, err
		}
		messages = append(messages, &jetstream.RawStreamMsg{
			Subject:  msg.Subject(),
			Sequence: meta.Sequence.Stream,
			Header:   msg.Headers(),
			Data:     msg.Data(),
			Time:     meta.Timestamp,
		})
		if meta.NumPending == 0 {
			return messages, nil
		}
	}
}

// get reads a stream message by message, without a consumer.
func get(ctx context.Context, str jetstream.Stream) ([]*jetstream.RawStreamMsg, error) {
	var messages []*jetstream.RawStreamMsg
	state := str.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
		msg, err := str.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // deleted
		}
		if err != nil {
			return messages, err
		}
		messages = append(messages, msg)
	}
	return messages, nil
}
