package election_test

import (
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// relayed passes connections to a server on, until it is muted: then it takes connections and bytes, and nothing comes back.
type relayed struct {
	mu    sync.Mutex // Protects what follows.
	muted bool
	conns []net.Conn
}

// dialer returns a dialer that leads to the server through it.
func (r *relayed) dialer() nats.CustomDialer { return dial(r.dial) }

type dial func(network, address string) (net.Conn, error)

// Dial implements [nats.CustomDialer].
func (d dial) Dial(network, address string) (net.Conn, error) { return d(network, address) }

func (r *relayed) dial(network, address string) (net.Conn, error) {
	near, far := net.Pipe()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, near, far)
	if r.muted {
		return near, nil // Not even a write is taken, as by a peer with full buffers.
	}
	to, err := net.Dial(network, address) //nolint:noctx // The interface has none.
	if err != nil {
		return nil, err
	}
	r.conns = append(r.conns, to)
	go r.pass(far, to)
	go r.pass(to, far)
	return near, nil
}

func (r *relayed) pass(from, to net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			_ = to.Close()
			return
		}
		r.mu.Lock()
		muted := r.muted
		r.mu.Unlock()
		if muted {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// mute has nothing come back any more; breakOff closes the connections that there are, too.
func (r *relayed) mute(breakOff bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.muted = true
	if !breakOff {
		return
	}
	for _, conn := range r.conns {
		_ = conn.Close()
	}
	r.conns = nil
}

// Whatever NATS does, a candidate and a leader end within a second when they are stopped, and a leader's term ends with its
// lease.
func TestKeyValueWaitsEnd(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]func(*streamtest.Server, *relayed) error{
		"nothing is answered":                            func(_ *streamtest.Server, r *relayed) error { r.mute(false); return nil },
		"a new connection is taken, and nothing is said": func(_ *streamtest.Server, r *relayed) error { r.mute(true); return nil },
		"there is no JetStream":                          func(s *streamtest.Server, _ *relayed) error { return s.NATS().DisableJetStream() },
		"the server is gone":                             func(s *streamtest.Server, _ *relayed) error { s.Stop(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for who, test := range map[string]struct {
				leads bool
				after time.Duration // From the trouble to the stop.
			}{
				"a leader, at once":             {true, 0},
				"a leader, while it renews":     {true, 500 * time.Millisecond},
				"a leader that has lost":        {true, 3 * time.Second},
				"a standby, at once":            {false, 0},
				"a standby, while it looks":     {false, 900 * time.Millisecond},
				"a standby that looks for long": {false, 3 * time.Second},
			} {
				t.Run(who, func(t *testing.T) {
					t.Parallel()
					natsServer := streamtest.Start(t, func(o *server.Options) { o.ServerName = "unused" })
					options := election.KeyValueOptions{Lease: 2 * time.Second}
					proxy := &relayed{}
					muffled := newHolder(t, natsServer, options, nats.SetCustomDialer(proxy.dialer()), nats.PingInterval(time.Second))
					var c *candidate
					if test.leads {
						c = campaign(t, contender{elector: muffled})
						c.elected(t)
					} else {
						leader := newHolder(t, natsServer, options)
						campaign(t, contender{elector: leader}).elected(t)
						c = campaign(t, contender{elector: muffled})
						eventually(t, "it stands by", muffled.Standby)
					}
					if err := trouble(natsServer, proxy); err != nil {
						t.Fatal(err)
					}
					time.Sleep(test.after)
					c.stop()
					stopped := time.Now()
					err := await(t, "end of Run", c.done)
					if took := time.Since(stopped); err != nil || took > time.Second+patienceOnLoad {
						t.Errorf("it ended after %v, with %v", took, err)
					} else {
						t.Logf("it ended after %v", took)
					}
				})
			}
		})
	}
}

// patienceOnLoad is how much longer things may take on a machine that is busy with other tests.
const patienceOnLoad = 300 * time.Millisecond

// A server that takes connections and says nothing does not hold up a look at the bucket.
func TestVerifyBucketEnds(t *testing.T) {
	t.Parallel()
	natsServer := streamtest.Start(t)
	address, err := url.Parse(natsServer.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := &relayed{}
	conn, err := nats.Connect(address.String(), nats.SetCustomDialer(proxy.dialer()), nats.MaxReconnects(-1), nats.ReconnectWait(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	proxy.mute(true)
	for deadline := time.Now().Add(10 * time.Second); !conn.IsReconnecting(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the connection is not lost")
		}
	}
	begun := time.Now()
	err = election.VerifyBucket(t.Context(), conn, election.KeyValueOptions{Lease: time.Second})
	if took := time.Since(begun); err == nil || took > 2*time.Second {
		t.Errorf("VerifyBucket returned %v after %v, want an error within the time of a request", err, took)
	}
}
