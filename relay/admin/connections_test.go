package admin_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/admin"
)

// limit is how many connections a server keeps.
const limit = 64

// serve runs a server until the test ends.
func serve(t *testing.T, metrics http.Handler) *admin.Server {
	t.Helper()
	leading := func() relay.Status { return relay.Status{State: relay.Leading} }
	server, err := admin.Listen(t.Context(), "127.0.0.1:0", admin.NewHandler(admin.Identity{}, leading, metrics), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	stopped := make(chan error, 1)
	go func() { stopped <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := within(t, stopped); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return server
}

func dial(t *testing.T, server *admin.Server) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// closed counts the connections that the server has closed, once there are so many.
func closed(t *testing.T, conns []net.Conn, want int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		n := 0
		for _, conn := range conns {
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				n++
			}
		}
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d connections are closed, want %d", n, len(conns), want)
		}
	}
}

func TestSilentConnectionsGiveWay(t *testing.T) {
	server := serve(t, http.NotFoundHandler())
	for name, says := range map[string]string{
		"without a word":   "",
		"within a request": "GET /healthz HTTP/1.1\r\nX-Half",
		"after a request":  "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conns := make([]net.Conn, 400)
			for i := range conns {
				conns[i] = dial(t, server)
				if _, err := io.WriteString(conns[i], says); err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(says, "\r\n\r\n") {
					drain(t, conns[i])
				}
			}
			closed(t, conns, len(conns)-limit)
			if code := get(t, "http://"+server.Addr()+"/healthz"); code != http.StatusOK {
				t.Errorf("GET /healthz = %d beside them, want 200", code)
			}
			for _, conn := range conns {
				conn.Close()
			}
		})
	}
}

// drain reads one answer.
func drain(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, answer.Body) // What is missing, the server's side would say.
	answer.Body.Close()
}

func TestAnAnswerUnderWayIsNotGivenUpForSilentConnections(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-release
		_, _ = io.WriteString(w, "outbox_relay_leader 1\n")
	}))
	conn := dial(t, server)
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	within(t, begun)
	silent := make([]net.Conn, 2*limit)
	for i := range silent {
		silent[i] = dial(t, server)
	}
	closed(t, silent, limit+1)
	close(release)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "outbox_relay_leader 1") {
		t.Errorf("the answer is %q (%v)", answer, err)
	}
}

func TestProbesAreAnsweredWhileAllConnectionsAreBusy(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	begun := make(chan struct{}, 2*limit)
	server := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	for range limit {
		if _, err := io.WriteString(dial(t, server), "GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		within(t, begun)
	}
	if code := get(t, "http://"+server.Addr()+"/healthz"); code != http.StatusOK {
		t.Errorf("GET /healthz = %d, want 200", code)
	}
}

func TestALargeHeaderIsRefused(t *testing.T) {
	server := serve(t, http.NotFoundHandler())
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+server.Addr()+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Large", strings.Repeat("x", 64<<10))
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return // Closed before all was sent, which is as good.
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d, want %d", answer.StatusCode, http.StatusRequestHeaderFieldsTooLarge)
	}
}
