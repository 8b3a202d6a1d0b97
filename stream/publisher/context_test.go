package publisher_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// patience is how much longer than its context anything may take.
const patience = 250 * time.Millisecond

// A blackHole passes bytes on to a server until it is shut; then it takes
// connections and all that comes, and says nothing.
type blackHole struct {
	listener net.Listener
	server   string

	mu    sync.Mutex
	shut  bool
	conns []net.Conn
}

func newBlackHole(t *testing.T, server *streamtest.Server) *blackHole {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	h := &blackHole{listener: listener, server: u.Host}
	t.Cleanup(func() {
		_ = listener.Close()
		h.breakOff()
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			h.take(conn)
		}
	}()
	return h
}

func (h *blackHole) URL() string { return "nats://" + h.listener.Addr().String() }

func (h *blackHole) take(conn net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, conn)
	if h.shut {
		return
	}
	to, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", h.server)
	if err != nil {
		_ = conn.Close()
		return
	}
	h.conns = append(h.conns, to)
	go h.pass(conn, to)
	go h.pass(to, conn)
}

func (h *blackHole) pass(from, to net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		h.mu.Lock()
		shut := h.shut
		h.mu.Unlock()
		if shut {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (h *blackHole) Shut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shut = true
}

// taken reports whether there is a connection since the latest breakOff.
func (h *blackHole) taken() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns) > 0
}

// breakOff closes all connections; new ones are taken.
func (h *blackHole) breakOff() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, conn := range h.conns {
		_ = conn.Close()
	}
	h.conns = nil
}

// Whatever a server does, no call takes much longer than its context, nor does Close.
func TestEveryWaitEndsWithItsContext(t *testing.T) {
	for _, trouble := range []struct {
		name string
		// begin makes the trouble.
		begin func(t *testing.T, server *streamtest.Server, hole *blackHole)
	}{
		{"the server says nothing more", func(_ *testing.T, _ *streamtest.Server, hole *blackHole) { hole.Shut() }},
		{"a new connection is taken, and nothing is said", func(t *testing.T, _ *streamtest.Server, hole *blackHole) {
			t.Helper()
			hole.Shut()
			hole.breakOff()
			streamtest.Eventually(t, hole.taken)
		}},
		{"there is no JetStream", func(t *testing.T, srv *streamtest.Server, _ *blackHole) {
			t.Helper()
			if err := srv.NATS().DisableJetStream(); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			t.Parallel()
			srv := streamtest.Start(t)
			for _, call := range []struct {
				name string
				do   func(ctx context.Context, p *publishertest.Publisher, f history.Fence) error
			}{
				{"Open", func(ctx context.Context, p *publishertest.Publisher, _ history.Fence) error {
					_, err := p.Open(ctx)
					return err
				}},
				{"Scan", func(ctx context.Context, p *publishertest.Publisher, f history.Fence) error {
					return p.History().Scan(ctx, 0, f, func(history.Found) error { return nil })
				}},
				{"Scan under way", func(ctx context.Context, p *publishertest.Publisher, f history.Fence) error {
					f.Sequence += 100
					return p.History().Scan(ctx, 0, f, func(history.Found) error { return nil })
				}},
				{"Verify", func(ctx context.Context, p *publishertest.Publisher, _ history.Fence) error {
					_, err := p.Verify(ctx, history.State{}, 0)
					return err
				}},
				{"Fence", func(ctx context.Context, p *publishertest.Publisher, _ history.Fence) error {
					_, err := p.Fence(ctx, "o", 2)
					return err
				}},
				{"FirstFence", func(ctx context.Context, p *publishertest.Publisher, _ history.Fence) error {
					_, err := p.FirstFence(ctx, "o", 2)
					return err
				}},
				{"Find", func(ctx context.Context, p *publishertest.Publisher, _ history.Fence) error {
					_, err := p.Find(ctx, 1)
					return err
				}},
			} {
				t.Run(call.name, func(t *testing.T) {
					if srv.NATS().JetStreamEnabled() == false {
						srv.Restart()
					}
					hole := newBlackHole(t, srv)
					opened, err := publisher.New(publisher.Options{
						Connect: stream.ConnectOptions{URL: hole.URL()}, Setup: stream.Setup{Stream: "OUTBOX", Create: true},
					})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(opened.Close)
					if _, err := opened.Open(t.Context()); err != nil {
						t.Fatal(err)
					}
					p := publishertest.Begin(t, opened)
					if err := p.Publish(publishertest.Event(1)); err != nil {
						t.Fatal(err)
					}
					publishertest.Collect(t, p, 1)
					end := publishertest.Fence(t, p, 1)

					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if call.name != "Scan under way" {
						trouble.begin(t, srv, hole)
					}
					done := make(chan error, 1)
					go func() { done <- call.do(ctx, p, end) }()
					time.Sleep(200 * time.Millisecond) // Somewhere within the call: no event tells where it waits.
					if call.name == "Scan under way" {
						trouble.begin(t, srv, hole)
						time.Sleep(200 * time.Millisecond)
					}
					cancel()
					ended := time.Now()
					err = <-done
					if took := time.Since(ended); took > patience {
						t.Errorf("returned %v after its context had ended, want %v at most: %v", took, patience, err)
					}
					if err == nil {
						t.Error("returned no error")
					}
					closing := time.Now()
					p.Close()
					if took := time.Since(closing); took > patience {
						t.Errorf("Close took %v, want %v at most", took, patience)
					}
				})
			}
		})
	}
}

// A server that takes connections and says nothing does not hold up Open, nor
// does a second one that cannot be reached.
func TestConnectEndsWithItsContext(t *testing.T) {
	srv := streamtest.Start(t, func(o *server.Options) { o.ServerName = "unused" })
	hole := newBlackHole(t, srv)
	hole.Shut()
	p, err := publisher.New(publisher.Options{Connect: stream.ConnectOptions{URL: hole.URL() + "," + hole.URL()}})
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("the term has ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(why) })
	begun := time.Now()
	_, err = p.Open(ctx)
	if took := time.Since(begun); took > 100*time.Millisecond+patience || !errors.Is(err, why) {
		t.Errorf("Open returned after %v: %v, want after 100ms: %v", took, err, why)
	}
	// Close ends it, too.
	time.AfterFunc(100*time.Millisecond, p.Close)
	begun = time.Now()
	_, err = p.Open(t.Context())
	if took := time.Since(begun); took > 100*time.Millisecond+patience || err == nil {
		t.Errorf("Open returned %v after %v, want an error after Close", err, took)
	}
}
