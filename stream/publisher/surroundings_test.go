package publisher_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
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

// serverWith starts a nats-server with a configuration as operators write it. What is left out is added: any free
// port and a store of its own.
func serverWith(t *testing.T, config string) *server.Server {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	opts.Host, opts.Port, opts.NoLog, opts.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, true
	if opts.JetStream {
		opts.StoreDir = t.TempDir()
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server is not ready")
	}
	return s
}

// does everything that a relay does with a stream.
func everything(t *testing.T, options publisher.Options) *publishertest.Publisher {
	t.Helper()
	opened, err := publisher.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	if _, err := opened.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := &publishertest.Publisher{Publisher: opened}
	publishertest.Fence(t, p, 1)
	if err := p.Publish(publishertest.Event(1)); err != nil {
		t.Fatal(err)
	}
	stored := publishertest.Collect(t, p, 1)[1]
	publishertest.SendOrdered(t, p, publishertest.Event(2), publishertest.Event(3))
	p.Finish()
	for seq, o := range publishertest.Collect(t, p, 2) {
		if o.Err != nil {
			t.Errorf("event %d: %v", seq, o.Err)
		}
	}
	if stored.Err != nil {
		t.Fatal(stored.Err)
	}
	if found, err := p.Find(t.Context(), stored.Stored); err != nil || found.Seq != 1 {
		t.Errorf("found %+v, %v, want event 1", found, err)
	}
	sight, err := p.Verify(t.Context(), history.State{}, 0)
	if err != nil {
		t.Error(err)
	}
	if _, err := p.Verify(t.Context(), sight, sight.Last); err != nil {
		t.Error(err)
	}
	if got := publishertest.Scan(t, p, 0, publishertest.Fence(t, p, 1)); len(got) != 3 {
		t.Errorf("scanned %v, want events 1 to 3", got)
	}
	return p
}

// refused opens a publisher that must be told what to set.
func refused(t *testing.T, options publisher.Options, want string) {
	t.Helper()
	p, err := publisher.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	begun := time.Now()
	_, err = p.Open(t.Context())
	var fault *stream.Error
	if !errors.As(err, &fault) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want an error with %q", err, want)
	}
	if took := time.Since(begun); took > 6*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestJetStreamDomain(t *testing.T) {
	hub := serverWith(t, `
		jetstream { domain: hub }
		leafnodes { listen: "127.0.0.1:-1" }`)
	for name, config := range map[string]string{
		"a leaf node without JetStream":        ``,
		"a leaf node with a domain of its own": `jetstream { domain: leaf }`,
	} {
		t.Run(name, func(t *testing.T) {
			leaf := serverWith(t, config+fmt.Sprintf(`
				server_name: leaf
				leafnodes { remotes: [ { url: "nats://%s" } ] }`, leafAddress(t, hub)))
			streamtest.Eventually(t, func() bool { return leaf.NumLeafNodes() == 1 })
			options := publisher.Options{
				Connect: stream.ConnectOptions{URL: leaf.ClientURL()},
				Setup:   stream.Setup{Stream: strings.ToUpper(strings.ReplaceAll(name, " ", "-"))},
			}
			template, err := stream.ParseTemplate(strings.ToLower(options.Setup.Stream) + ".{topic}.{aggregate_type}.{aggregate_id}")
			if err != nil {
				t.Fatal(err)
			}
			options.Setup.Template = template
			refused(t, options, "nats_domain")

			options.Connect.Domain = "elsewhere"
			refused(t, options, "nats_domain")

			options.Connect.Domain, options.Setup.Create = "hub", true
			p := everything(t, options)
			if n := streams(t, leaf); n > 0 {
				t.Errorf("the leaf node has %d streams of its own", n)
			}
			p.Close()
		})
	}
}

// streams returns how many streams a server keeps.
func streams(t *testing.T, srv *server.Server) int {
	t.Helper()
	info, err := srv.Jsz(&server.JSzOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return info.Streams
}

// leafAddress returns where a hub listens for leaf nodes.
func leafAddress(t *testing.T, hub *server.Server) string {
	t.Helper()
	varz, err := hub.Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(varz.LeafNode.Port))
}

func TestInboxPrefix(t *testing.T) {
	srv := serverWith(t, `
		jetstream: enabled
		authorization { users: [ {
			user: relay, password: relay
			permissions { publish: ">", subscribe: "_INBOX_relay.>" }
		} ] }`)
	options := publisher.Options{
		Connect: stream.ConnectOptions{URL: strings.Replace(srv.ClientURL(), "nats://", "nats://relay:relay@", 1)},
		Setup:   stream.Setup{Create: true},
	}
	refused(t, options, "nats_inbox_prefix")
	options.Connect.InboxPrefix = "_INBOX_other"
	refused(t, options, "nats_inbox_prefix")
	options.Connect.InboxPrefix = "_INBOX_relay"
	everything(t, options)
}

func TestSubscriptionsAreLimited(t *testing.T) {
	srv := serverWith(t, `
		jetstream: enabled
		max_subscriptions: 1`)
	refused(t, publisher.Options{Connect: stream.ConnectOptions{URL: srv.ClientURL()}, Setup: stream.Setup{Create: true}}, "max_subscriptions")
}

func TestTLSFirst(t *testing.T) {
	ca := streamtest.NewAuthority(t)
	cert, key := ca.File, ca.KeyFile
	const secure = `
		jetstream: enabled
		tls { cert_file: %q, key_file: %q, timeout: 2%s }`
	first := serverWith(t, fmt.Sprintf(secure, cert, key, ", handshake_first: true"))
	options := publisher.Options{Connect: stream.ConnectOptions{URL: first.ClientURL(), TLSCA: cert}, Setup: stream.Setup{Create: true}}
	refused(t, options, "nats_tls_first")
	options.Connect.TLSFirst = true
	everything(t, options)

	later := serverWith(t, fmt.Sprintf(secure, cert, key, ""))
	options.Connect.URL = later.ClientURL()
	refused(t, options, "leave out nats_tls_first")
	options.Connect.TLSFirst = false
	everything(t, options)
}

// What a server or an account demands of a stream is named with the setting that gives it.
func TestStreamLimits(t *testing.T) {
	account := func(limits string) string {
		return `
			jetstream: enabled
			accounts { A { jetstream { ` + limits + ` }, users: [ { user: relay, password: relay } ] } }
			no_auth_user: relay`
	}
	for _, tt := range []struct {
		name, config string
		setup        stream.Setup
		want         string // In the error; empty for none.
	}{
		{"max_bytes demanded", account(`max_file: 100M, max_mem: 0, max_bytes_required: true`), stream.Setup{}, "set stream_max_bytes"},
		{"max_bytes given", account(`max_file: 100M, max_mem: 0, max_bytes_required: true`), stream.Setup{MaxBytes: 10 << 20}, ""},
		{"too many bytes for a stream", account(`max_file: 100M, disk_max_stream_bytes: 1M`), stream.Setup{MaxBytes: 10 << 20}, "set a lower one"},
		{"too many bytes for the account", account(`max_file: 1M`), stream.Setup{MaxBytes: 10 << 20}, "stream_max_bytes"},
		{"short window", `jetstream { limits { duplicate_window: "1m" } }`, stream.Setup{}, "set duplicate_window"},
		{"short window obeyed", `jetstream { limits { duplicate_window: "1m" } }`, stream.Setup{DuplicateWindow: time.Minute}, ""},
		{"replicas without a cluster", `jetstream: enabled`, stream.Setup{Replicas: 3}, "stream_replicas = 1"},
		{"compressed", `jetstream: enabled`, stream.Setup{Compress: true}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := serverWith(t, tt.config)
			tt.setup.Create = true
			options := publisher.Options{Connect: stream.ConnectOptions{URL: srv.ClientURL()}, Setup: tt.setup}
			if tt.want != "" {
				refused(t, options, tt.want)
				return
			}
			everything(t, options)
			conn, err := stream.Connect(t.Context(), options.Connect)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(conn.Close)
			js, err := options.Connect.JetStream(conn)
			if err != nil {
				t.Fatal(err)
			}
			str, err := js.Stream(t.Context(), stream.DefaultStream)
			if err != nil {
				t.Fatal(err)
			}
			got := str.CachedInfo().Config
			if compressed := got.Compression == jetstream.S2Compression; compressed != tt.setup.Compress || max(got.MaxBytes, 0) != tt.setup.MaxBytes {
				t.Errorf("the stream has compression %v and max_bytes %d", got.Compression, got.MaxBytes)
			}
		})
	}
}

// Of servers in a cluster those keep the stream that have the tags.
func TestPlacementTags(t *testing.T) {
	ports := make([]int, 3)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr, _ := l.Addr().(*net.TCPAddr)
		ports[i] = addr.Port
		_ = l.Close()
	}
	var servers []*server.Server
	for i, port := range ports {
		tags := `[disk: hdd]`
		if i == 1 {
			tags = `["ssd", "eu"]`
		}
		servers = append(servers, serverWith(t, fmt.Sprintf(`
			server_name: n%d
			server_tags: %s
			jetstream: enabled
			cluster { name: c, listen: "127.0.0.1:%d", routes: [ "nats://127.0.0.1:%d", "nats://127.0.0.1:%d", "nats://127.0.0.1:%d" ] }`,
			i, strings.ReplaceAll(tags, "[disk: hdd]", `["hdd"]`), port, ports[0], ports[1], ports[2])))
	}
	streamtest.Eventually(t, func() bool {
		return servers[0].JetStreamIsLeader() || servers[1].JetStreamIsLeader() || servers[2].JetStreamIsLeader()
	})
	options := publisher.Options{
		Connect: stream.ConnectOptions{URL: servers[0].ClientURL()},
		Setup:   stream.Setup{Create: true, PlacementTags: []string{"ssd", "mars"}},
	}
	refused(t, options, "stream_placement_tags")
	options.Setup.PlacementTags = []string{"ssd", "eu"}
	p, err := publisher.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	streamtest.Eventually(t, func() bool { // Servers of a new cluster do not know each other's tags at once.
		_, err := p.Open(t.Context())
		return err == nil
	})
	if streams(t, servers[1]) != 1 {
		t.Error("the stream is not on the server with the tags")
	}
}

// What cannot work is refused before anything is connected to.
func TestConnectOptionsAreChecked(t *testing.T) {
	for want, options := range map[string]stream.ConnectOptions{
		"Domain: ":      {Domain: "a.b"},
		"InboxPrefix: ": {InboxPrefix: "_INBOX."},
		"TLSFirst: ":    {URL: "wss://127.0.0.1:1", TLSFirst: true},
	} {
		if options.URL == "" {
			options.URL = "nats://127.0.0.1:1"
		}
		if _, err := publisher.New(publisher.Options{Connect: options}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	for want, setup := range map[string]stream.Setup{
		"MaxBytes: ":      {MaxBytes: -1},
		"PlacementTags: ": {PlacementTags: []string{"a,b", ""}},
	} {
		if err := setup.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}
