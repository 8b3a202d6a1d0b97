package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// hole passes connections on to a server. Each connection passes a number of bytes, and then nothing more: nobody hears
// that it is broken.
type hole struct {
	listener net.Listener
	to       string
	limit    atomic.Int64 // In bytes, of the connections from now on; negative for none.

	mu   sync.Mutex      // Protects left.
	left []*atomic.Int64 // What each connection still passes.
}

func dig(t *testing.T, to string) *hole {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hole{listener: listener, to: to}
	h.limit.Store(-1)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go h.serve(conn)
		}
	}()
	return h
}

func (h *hole) serve(conn net.Conn) {
	defer conn.Close()
	onward, err := new(net.Dialer).DialContext(context.Background(), "tcp", h.to)
	if err != nil {
		return
	}
	defer onward.Close()
	left := new(atomic.Int64)
	if left.Store(h.limit.Load()); left.Load() < 0 {
		left.Store(math.MaxInt64)
	}
	h.mu.Lock()
	h.left = append(h.left, left)
	h.mu.Unlock()
	done := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if err != nil {
				break
			}
			if left.Add(-int64(n)) < 0 {
				_, _ = io.Copy(io.Discard, from)
				break
			}
			if _, err := to.Write(buf[:n]); err != nil {
				break
			}
		}
		done <- struct{}{}
	}
	go pass(onward, conn)
	pass(conn, onward)
	<-done
}

// swallow makes the present connections pass nothing more.
func (h *hole) swallow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, left := range h.left {
		left.Store(0)
	}
}

// count returns how many connections there were.
func (h *hole) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.left)
}

// A path that loses everything, from the beginning or at any stage, is told once; and once another path is there, or new
// connections work and only the former ones stay dead, what waits is published within 5 s, plus the ack timeout of 5 s where
// only that tells.
func TestPathThatLosesEverything(t *testing.T) {
	const most = 5*time.Second + 5*time.Second
	for _, limit := range []int64{0, 500, 1000, 2000, 3000, 5000} {
		t.Run(fmt.Sprintf("after %d bytes", limit), func(t *testing.T) {
			t.Parallel()
			broker := streamtest.Start(t)
			path := dig(t, strings.TrimPrefix(broker.URL(), "nats://"))
			path.limit.Store(limit)
			dsn := storetest.NewDatabase(t)
			relay := start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": "nats://" + path.listener.Addr().String()})
			relay.logged("tables are up to date")
			publish := func(because string) {
				from := time.Now()
				eventually(t, "the events are settled after "+because, func() bool { return number(t, dsn, `select count(*) from outbox`) == 0 })
				if took := time.Since(from); took > most {
					t.Errorf("%v after %s", took, because)
				}
			}
			add := func() {
				for n := range 5 {
					insert(t, dsn, "users", "User", strconv.Itoa(n%3), "UserChanged", "x")
				}
			}
			add()
			relay.stderr.await(t, "a warning", func(text string) bool { return strings.Contains(text, `"WARN"`) })
			if limit == 0 {
				eventually(t, "further attempts", func() bool { return path.count() > 3 })
				if said := strings.Count(relay.stderr.String(), "not fit to lead"); said > 1 {
					t.Errorf("the same trouble was told %d times", said)
				}
			}
			path.limit.Store(-1)
			publish("the path was there again")
			path.swallow()
			add()
			publish("its connections had died")
			if got := len(broker.Messages(t, "OUTBOX")); got != 10 {
				t.Errorf("the stream has %d events, want 10", got)
			}
		})
	}
}
