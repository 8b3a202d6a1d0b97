package embedded_test

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/embedded"
)

func TestServerStoresOverARestart(t *testing.T) {
	var log syncBuilder
	opts := embedded.Options{
		Addr:     "127.0.0.1:0",
		StoreDir: filepath.Join(t.TempDir(), "made", "on", "demand"),
		Logger:   slog.New(slog.NewTextHandler(&log, nil)),
	}
	srv, err := embedded.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	js := client(t, srv)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "events", nil); err != nil {
		t.Fatal(err)
	}
	srv.Close()
	srv.Close() // a second call only waits

	if srv, err = embedded.Start(opts); err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	str, err := client(t, srv).Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	if got := str.CachedInfo().State.Msgs; got != 1 {
		t.Errorf("messages after a restart = %d, want 1", got)
	}
	if !strings.Contains(log.String(), "Server is ready") {
		t.Errorf("the log does not have the server's lines:\n%s", log.String())
	}
}

func TestServerTakesTheAddressAndLimitItIsGiven(t *testing.T) {
	listener := listen(t)
	addr := listener.Addr().String()
	listener.Close()

	srv, err := embedded.Start(embedded.Options{Addr: addr, StoreDir: t.TempDir(), MaxPayload: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	if got, want := srv.ClientURL(), "nats://"+addr; got != want {
		t.Errorf("ClientURL = %q, want %q", got, want)
	}
	if got := client(t, srv).Conn().MaxPayload(); got != 4096 {
		t.Errorf("max payload = %d, want 4096", got)
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	taken := listen(t)
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	for name, test := range map[string]struct {
		opts embedded.Options
		want string
	}{
		"port in use":        {embedded.Options{Addr: taken.Addr().String(), StoreDir: t.TempDir()}, "address already in use"},
		"store is a file":    {embedded.Options{Addr: "127.0.0.1:0", StoreDir: file}, file},
		"store unreachable":  {embedded.Options{Addr: "127.0.0.1:0", StoreDir: filepath.Join(file, "store")}, "not a directory"},
		"no store":           {embedded.Options{Addr: "127.0.0.1:0"}, "StoreDir: is empty"},
		"no port":            {embedded.Options{Addr: "127.0.0.1", StoreDir: t.TempDir()}, "want host:port"},
		"port out of range":  {embedded.Options{Addr: "127.0.0.1:65536", StoreDir: t.TempDir()}, "from 0 to 65535"},
		"negative payload":   {embedded.Options{Addr: "127.0.0.1:0", StoreDir: t.TempDir(), MaxPayload: -1}, "MaxPayload"},
		"negative patience":  {embedded.Options{Addr: "127.0.0.1:0", StoreDir: t.TempDir(), ReadyTimeout: -1}, "ReadyTimeout"},
		"not ready in time":  {embedded.Options{Addr: "127.0.0.1:0", StoreDir: t.TempDir(), ReadyTimeout: time.Nanosecond}, "not ready after 1ns"},
		"payload too large":  {embedded.Options{Addr: "127.0.0.1:0", StoreDir: t.TempDir(), MaxPayload: 1 << 30}, "max_payload"},
		"address of another": {embedded.Options{Addr: "192.0.2.1:0", StoreDir: t.TempDir()}, "192.0.2.1"},
	} {
		t.Run(name, func(t *testing.T) {
			srv, err := embedded.Start(test.opts)
			if err == nil {
				srv.Close()
				t.Fatalf("Start succeeded, want an error with %q", test.want)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("Start: %v; want an error with %q", err, test.want)
			}
		})
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func client(t *testing.T, srv *embedded.Server) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// syncBuilder is a strings.Builder for several goroutines.
type syncBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Two servers on one store would write over each other.
func TestAStoreHasOneServer(t *testing.T) {
	dir := t.TempDir()
	first, err := embedded.Start(embedded.Options{Addr: "127.0.0.1:0", StoreDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if second, err := embedded.Start(embedded.Options{Addr: "127.0.0.1:0", StoreDir: dir}); err == nil {
		second.Close()
		t.Error("a second server runs on the store of the first")
	} else if !strings.Contains(err.Error(), "another process runs a server on this store") {
		t.Errorf("got %v", err)
	}
	first.Close()
	third, err := embedded.Start(embedded.Options{Addr: "127.0.0.1:0", StoreDir: dir})
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	third.Close()
}
