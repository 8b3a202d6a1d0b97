package election_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// holder is a key-value elector that is given connections to a server.
type holder struct {
	*election.KeyValue

	line line
	dead atomic.Bool               // It gets no further connection.
	conn atomic.Pointer[nats.Conn] // The newest.
}

func newHolder(tb testing.TB, server *streamtest.Server, options election.KeyValueOptions, connect ...nats.Option) *holder {
	tb.Helper()
	url := server.URL()
	h := &holder{}
	connect = append([]nats.Option{
		nats.MaxReconnects(-1),
		nats.ReconnectWait(10 * time.Millisecond),
		nats.ReconnectJitter(0, 0),
		nats.ReconnectBufSize(-1),
		nats.SetCustomDialer(&h.line),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // The default one prints.
	}, connect...)
	elector, err := election.NewKeyValue(func(context.Context) (*nats.Conn, error) {
		if h.dead.Load() {
			return nil, errors.New("dead")
		}
		conn, err := nats.Connect(url, connect...)
		if err == nil {
			h.conn.Store(conn)
		}
		return conn, err
	}, options)
	if err != nil {
		tb.Fatal(err)
	}
	h.KeyValue = elector
	return h
}

// die cuts the holder off for good, without a word to anybody.
func (h *holder) die() {
	h.dead.Store(true)
	h.conn.Load().Close()
}

// line dials connections on which nothing is heard for a while.
type line struct {
	mu   sync.Mutex    // Protects what follows.
	deaf chan struct{} // Closed when it hears again; nil while it does.
}

// Dial implements [nats.CustomDialer].
func (l *line) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address) //nolint:noctx // The interface has none.
	if err != nil {
		return nil, err
	}
	return &ear{conn, l}, nil
}

// deafen has the connections hear nothing, until the function that it returns is called.
func (l *line) deafen() (hear func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	deaf := make(chan struct{})
	l.deaf = deaf
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.deaf = nil
		close(deaf)
	})
}

type ear struct {
	net.Conn

	line *line
}

func (e *ear) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	e.line.mu.Lock()
	deaf := e.line.deaf
	e.line.mu.Unlock()
	if deaf != nil {
		<-deaf
	}
	return n, err
}

// bucket returns the default bucket, for a test to look into and to meddle with.
func bucket(tb testing.TB, server *streamtest.Server) jetstream.KeyValue {
	tb.Helper()
	kv, err := server.JetStream(tb).KeyValue(tb.Context(), election.DefaultBucket)
	if err != nil {
		tb.Fatal(err)
	}
	return kv
}

// entry returns the entry that relays compete for by default.
func entry(tb testing.TB, kv jetstream.KeyValue) jetstream.KeyValueEntry {
	tb.Helper()
	e, err := kv.Get(tb.Context(), election.DefaultKey)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func TestKeyValue(t *testing.T) {
	conformOn(t, streamtest.Start(t), election.KeyValueOptions{})
}

// Replicas answer late, and refuse a write while another is in process.
func TestKeyValueOnACluster(t *testing.T) {
	conformOn(t, startCluster(t), election.KeyValueOptions{Replicas: 3})
}

// startCluster starts three servers and returns one of them.
func startCluster(t *testing.T) *streamtest.Server {
	t.Helper()
	var routes []*url.URL
	for range 3 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, &url.URL{Scheme: "nats", Host: listener.Addr().String()})
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var started *streamtest.Server
	for i, route := range routes {
		started = streamtest.Start(t, func(o *server.Options) {
			port, err := strconv.Atoi(route.Port())
			if err != nil {
				t.Fatal(err)
			}
			o.ServerName = fmt.Sprintf("streamtest-%d", i)
			o.Cluster = server.ClusterOpts{Name: "streamtest", Host: route.Hostname(), Port: port}
			o.Routes = routes
		})
	}
	return started
}

// conformOn verifies what electors promise on a server.
func conformOn(t *testing.T, server *streamtest.Server, options election.KeyValueOptions) {
	t.Helper()
	var places atomic.Int32 // All in one bucket, which the first contenders create at once.
	conformAmongRivals(t, func(t *testing.T) func(t *testing.T) contender {
		t.Helper()
		options := options
		options.Key = fmt.Sprintf("outbox.%d", places.Add(1))
		return func(t *testing.T) contender {
			t.Helper()
			h := newHolder(t, server, options)
			return contender{
				elector: h,
				waits:   h.Standby, // Known only once the entry is watched.
				kill: func() {
					if err := bucket(t, server).Delete(t.Context(), options.Key); err != nil {
						t.Error(err)
					}
				},
			}
		}
	})
}

func TestKeyValueEntry(t *testing.T) {
	t.Parallel()
	server := streamtest.Start(t)
	h := newHolder(t, server, election.KeyValueOptions{Name: "host/1"})
	if h.Standby() {
		t.Error("stands by before it campaigns")
	}
	c := campaign(t, contender{elector: h})
	c.elected(t)
	if h.Standby() {
		t.Error("a leader stands by")
	}
	kv := bucket(t, server)
	status, err := kv.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.TTL() != 0 || status.History() != 1 || status.Config().Replicas != 1 {
		t.Errorf("entries expire after %v, with %d older revisions and %d replicas, want never, 1 and 1", status.TTL(), status.History(), status.Config().Replicas)
	}
	first := entry(t, kv)
	var value struct {
		Leader string
		Lease  int `json:"lease_ms"`
	}
	if err := json.Unmarshal(first.Value(), &value); err != nil {
		t.Fatalf("%s: %v", first.Value(), err)
	}
	if value.Leader != "host/1" || value.Lease != 5000 {
		t.Errorf("the entry is %s, want it to name host/1 and a lease of 5 s", first.Value())
	}
	eventually(t, "the lease has been renewed", func() bool { return entry(t, kv).Revision() > first.Revision() })
	c.stop()
	if err := await(t, "end of Run", c.done); err != nil {
		t.Error(err)
	}
	// Given back before Run returns.
	if e, err := kv.Get(t.Context(), election.DefaultKey); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("the entry is %v with %v, want it deleted", e, err)
	}
	if !h.conn.Load().IsClosed() {
		t.Error("the connection is open after Run")
	}
}

func TestKeyValueOptions(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		options election.KeyValueOptions
		want    []string // Nothing, if they are good.
	}{
		"defaults":   {},
		"good":       {options: election.KeyValueOptions{Bucket: "A-b_9", Key: "a/b=c_d-e.F", Lease: time.Second, Retry: time.Second, Replicas: 5}},
		"bucket":     {election.KeyValueOptions{Bucket: "a.b"}, []string{`Bucket: "a.b"`}},
		"key":        {election.KeyValueOptions{Key: "a b"}, []string{`Key: "a b"`}},
		"wildcard":   {election.KeyValueOptions{Key: "a.*"}, []string{`Key: "a.*"`}},
		"first dot":  {election.KeyValueOptions{Key: ".a"}, []string{`Key: ".a"`}},
		"last dot":   {election.KeyValueOptions{Key: "a."}, []string{`Key: "a."`}},
		"two dots":   {election.KeyValueOptions{Key: "a..b"}, []string{`Key: "a..b"`}},
		"short":      {election.KeyValueOptions{Lease: time.Second - 1}, []string{"Lease: 999.999999ms is not from 1s to 1m0s"}},
		"long":       {election.KeyValueOptions{Lease: time.Minute + 1}, []string{"Lease: "}},
		"replicas":   {election.KeyValueOptions{Replicas: 6}, []string{"Replicas: 6"}},
		"all faults": {election.KeyValueOptions{Bucket: "ä", Retry: -1, Replicas: -1}, []string{"Bucket: ", "Retry: ", "Replicas: "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := election.NewKeyValue(func(context.Context) (*nats.Conn, error) { return nil, errors.New("unused") }, test.options)
			if (err != nil) != (test.want != nil) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			for _, want := range test.want {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
		})
	}
	if _, err := election.NewKeyValue(nil, election.KeyValueOptions{}); err == nil {
		t.Error("got no error without a way to connect")
	}
}

func TestKeyOf(t *testing.T) {
	t.Parallel()
	for want, names := range map[string][]string{
		"OUTBOX.app.public.outbox": {"OUTBOX", "app", "public", "outbox"},
		"a=2Eb":                    {"a.b"},
		"a.b":                      {"a", "b"},
		"=":                        {""},
		"=3D":                      {"="},
		"x.=.=C3=A4=20=2F":         {"x", "", "ä /"},
	} {
		if got := election.KeyOf(names...); got != want {
			t.Errorf("KeyOf(%q): got %q, want %q", names, got, want)
		}
	}
}

func FuzzKeyOf(f *testing.F) {
	f.Add("", "")
	f.Add("public", "out box")
	f.Add("a.", ".b=2E")
	f.Fuzz(func(t *testing.T, one, two string) {
		key := election.KeyOf(one, two)
		if _, err := election.NewKeyValue(func(context.Context) (*nats.Conn, error) { return nil, nil }, election.KeyValueOptions{Key: key}); err != nil {
			t.Errorf("%q is no key: %v", key, err)
		}
		// It can be read back, so no two names have the same.
		var names []string
		for token := range strings.SplitSeq(key, ".") {
			var name strings.Builder
			for rest := token; rest != "" && token != "="; {
				var b byte
				if _, err := fmt.Sscanf(rest, "=%02X", &b); err == nil && rest[0] == '=' {
					name.WriteByte(b)
					rest = rest[3:]
					continue
				}
				name.WriteByte(rest[0])
				rest = rest[1:]
			}
			names = append(names, name.String())
		}
		if len(names) != 2 || names[0] != one || names[1] != two {
			t.Errorf("%q: got %q, want %q and %q", key, names, one, two)
		}
	})
}

// A bucket in which two could lead is refused, and so is a key that is somebody else's.
func TestUnfitBucket(t *testing.T) {
	t.Parallel()
	server := streamtest.Start(t)
	js := server.JetStream(t)
	for name, test := range map[string]struct {
		make func(ctx context.Context, bucket string) error
		want string // Nothing, if it is fit.
	}{
		"expiring": {func(ctx context.Context, bucket string) error {
			_, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, TTL: 10 * time.Second})
			return err
		}, `bucket "expiring" is unfit for an election: its entries expire after 10s`},
		"expiring_later": {func(ctx context.Context, bucket string) error {
			_, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, TTL: time.Hour, History: 5, Storage: jetstream.MemoryStorage})
			return err
		}, ""},
		"mirror": {func(ctx context.Context, bucket string) error {
			_, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "origin"})
			if err == nil {
				_, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, Mirror: &jetstream.StreamSource{Name: "origin"}})
			}
			return err
		}, `bucket "mirror" is unfit for an election: it is a mirror`},
		"stream": {func(ctx context.Context, bucket string) error {
			_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "KV_" + bucket, Subjects: []string{"anything"}})
			return err
		}, `bucket "stream" is unfit for an election: its stream, KV_stream, is none that holds a bucket`},
		"foreign": {func(ctx context.Context, bucket string) error {
			kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket})
			if err == nil {
				_, err = kv.PutString(ctx, election.DefaultKey, "Ada")
			}
			return err
		}, `key leader of bucket "foreign": unfit for an election: it has a value that no elector wrote`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := test.make(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			c := campaign(t, contender{elector: newHolder(t, server, election.KeyValueOptions{Bucket: name})})
			if test.want == "" {
				c.elected(t)
				return
			}
			if err := await(t, "end of Run", c.done); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run returned %v, want %q in it", err, test.want)
			}
		})
	}
}

// Whoever may not create a bucket uses that which is there.
func TestKeyValueWithoutPermissionToCreate(t *testing.T) {
	t.Parallel()
	natsServer := streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "all", Password: "x"}, {Username: "some", Password: "x", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.CREATE.>", "$JS.API.CONSUMER.>"}},
		}}}
	})
	var refused atomic.Pointer[string]
	options := election.KeyValueOptions{Retry: 10 * time.Millisecond, Fatal: func(err error) bool {
		text := err.Error()
		refused.Store(&text)
		return false
	}}
	first := campaign(t, contender{elector: newHolder(t, natsServer, options, nats.UserInfo("some", "x"))})
	eventually(t, "the bucket is not created", func() bool { return refused.Load() != nil })
	if got, want := *refused.Load(), "permissions violation"; !strings.Contains(strings.ToLower(got), want) || !strings.Contains(got, election.DefaultBucket) {
		t.Errorf("it failed with %q, want the bucket and %q in it", got, want)
	}
	js := natsServer.JetStream(t, nats.UserInfo("all", "x"))
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: election.DefaultBucket}); err != nil {
		t.Fatal(err)
	}
	first.elected(t)
	// Nor may it watch, so it polls.
	h := newHolder(t, natsServer, options, nats.UserInfo("some", "x"))
	second := campaign(t, contender{elector: h})
	eventually(t, "the other stands by", h.Standby)
	first.stop()
	second.elected(t)
}

func TestKeyValueCampaignEndsWhenWaitingDoesNotHelp(t *testing.T) {
	t.Parallel()
	var attempts atomic.Int32
	hopeless := errors.New("the wrong kind of server")
	elector, err := election.NewKeyValue(func(context.Context) (*nats.Conn, error) { return nil, hopeless }, election.KeyValueOptions{
		// The first failures may be an outage.
		Fatal: func(error) bool { return attempts.Add(1) == 3 },
	})
	if err != nil {
		t.Fatal(err)
	}
	err = elector.Run(t.Context(), func(context.Context, *election.Lease) error {
		t.Error("elected")
		return nil
	})
	if !errors.Is(err, hopeless) || attempts.Load() != 3 {
		t.Errorf("got %v after %d attempts, want %v after 3", err, attempts.Load(), hopeless)
	}
}

// Without a server the lease ends by itself, and when it is back, one is elected.
func TestKeyValueOutlastsAnOutage(t *testing.T) {
	t.Parallel()
	server := streamtest.Start(t)
	options := election.KeyValueOptions{Lease: 2 * time.Second}
	watch := &watch{}
	all := []*candidate{
		watch.campaign(t, contender{elector: newHolder(t, server, options)}),
		watch.campaign(t, contender{elector: newHolder(t, server, options)}),
	}
	_, term := electedOf(t, all)
	server.Stop()
	stopped := time.Now()
	await(t, "end of the leader's context", term.ctx.Done())
	took := time.Since(stopped)
	if term.lease.Valid() {
		t.Error("the context ended with a valid lease")
	}
	if cause := context.Cause(term.ctx); !errors.Is(cause, election.ErrLeaseLost) {
		t.Errorf("the context ended for %v, want %v", cause, election.ErrLeaseLost)
	}
	if took > 2*options.Lease {
		t.Errorf("the context ended %v after the server, with a lease of %v", took, options.Lease)
	}
	server.Restart()
	_, term = electedOf(t, all)
	if !term.lease.Valid() {
		t.Error("elected without a valid lease")
	}
	for _, c := range all {
		c.stop()
		if err := await(t, "end of Run", c.done); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	}
	watch.verify(t)
}

// A restart of the server that takes less than the lease deposes nobody.
func TestKeyValueOutlastsARestart(t *testing.T) {
	t.Parallel()
	server := streamtest.Start(t)
	c := campaign(t, contender{elector: newHolder(t, server, election.KeyValueOptions{Lease: 10 * time.Second})})
	term := c.elected(t)
	before := entry(t, bucket(t, server)).Revision()
	server.Restart()
	kv := bucket(t, server)
	eventually(t, "the lease has been renewed", func() bool { return entry(t, kv).Revision() > before })
	if term.ctx.Err() != nil || !term.lease.Valid() {
		t.Errorf("the leader's context has ended for %v", context.Cause(term.ctx))
	}
}

// A server that kept the bucket in memory has forgotten who leads. Those who have seen it have not.
func TestKeyValueOutlastsAmnesia(t *testing.T) {
	t.Parallel()
	server := streamtest.Start(t)
	config := jetstream.KeyValueConfig{Bucket: election.DefaultBucket, Storage: jetstream.MemoryStorage}
	if _, err := server.JetStream(t).CreateKeyValue(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	options := election.KeyValueOptions{Lease: 2 * time.Second}
	silent, rival := newHolder(t, server, options), newHolder(t, server, options)
	term := campaign(t, contender{elector: silent}).elected(t)
	next := campaign(t, contender{elector: rival})
	eventually(t, "the other stands by", rival.Standby)
	silent.die()
	server.Restart()
	eventually(t, "the lease has run out", func() bool {
		if len(next.terms) > 0 && term.lease.Valid() {
			t.Fatal("another was elected while the lease was valid")
		}
		return !term.lease.Valid()
	})
	next.elected(t)
}

// Of a leader that fell silent nobody knows, until it can no longer believe that it leads.
func TestSilentHolderIsReplacedAfterItsLease(t *testing.T) {
	t.Parallel()
	server := streamtest.Start(t)
	silent := newHolder(t, server, election.KeyValueOptions{Lease: 2 * time.Second})
	leader := campaign(t, contender{elector: silent})
	term := leader.elected(t)
	// The lease is the leader's affair, whatever its rivals have.
	rival := newHolder(t, server, election.KeyValueOptions{Lease: time.Second})
	next := campaign(t, contender{elector: rival})
	eventually(t, "the other stands by", rival.Standby)
	start := time.Now()
	silent.die()
	eventually(t, "the lease has run out", func() bool {
		if len(next.terms) > 0 && term.lease.Valid() {
			t.Fatal("another was elected while the lease was valid")
		}
		return !term.lease.Valid()
	})
	ranOut := time.Since(start)
	next.elected(t)
	t.Logf("the lease ran out after %v, and the next was elected after %v", ranOut, time.Since(start))
	await(t, "end of the silent leader's context", term.ctx.Done())
	if term.lease.Valid() {
		t.Error("the lease is valid again")
	}
}

// An update that was stored but not answered is not taken for somebody else's.
func TestKeyValueKnowsItsOwnUpdate(t *testing.T) {
	t.Parallel()
	server := streamtest.Start(t)
	h := newHolder(t, server, election.KeyValueOptions{Lease: 8 * time.Second}) // An answer may take 2 s.
	c := campaign(t, contender{elector: h})
	term := c.elected(t)
	kv := bucket(t, server)
	first := entry(t, kv).Revision()
	hear := h.line.deafen()
	t.Cleanup(hear)
	eventually(t, "an update is stored", func() bool { return entry(t, kv).Revision() > first })
	unanswered, sent := entry(t, kv).Revision(), h.conn.Load().Stats().OutMsgs
	eventually(t, "it is given up and tried again", func() bool { return h.conn.Load().Stats().OutMsgs > sent })
	hear()
	eventually(t, "the lease is renewed", func() bool { return entry(t, kv).Revision() > unanswered })
	if term.ctx.Err() != nil || !term.lease.Valid() {
		t.Errorf("the leader's context has ended for %v", context.Cause(term.ctx))
	}
	c.stop()
	if err := await(t, "end of Run", c.done); err != nil {
		t.Error(err)
	}
	if e, err := kv.Get(t.Context(), election.DefaultKey); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("the entry is %v with %v, want it deleted", e, err)
	}
}

func TestVerifyBucketCreatesNone(t *testing.T) {
	t.Parallel()
	natsServer := streamtest.Start(t)
	conn := natsServer.Conn(t)
	for range 2 {
		if err := election.VerifyBucket(t.Context(), conn, election.KeyValueOptions{}); !errors.Is(err, jetstream.ErrBucketNotFound) {
			t.Errorf("without a bucket: got %v, want %v", err, jetstream.ErrBucketNotFound)
		}
	}
	campaign(t, contender{elector: newHolder(t, natsServer, election.KeyValueOptions{})}).elected(t)
	if err := election.VerifyBucket(t.Context(), conn, election.KeyValueOptions{}); err != nil {
		t.Errorf("with that of an elector: %v", err)
	}
	if err := election.VerifyBucket(t.Context(), conn, election.KeyValueOptions{Lease: time.Hour}); err == nil || !strings.Contains(err.Error(), "Lease") {
		t.Errorf("with a lease out of range: got %v", err)
	}
}

// An account may demand that each stream says how much it keeps, a bucket's too; and the bucket may be in another
// JetStream domain than the servers that the connection is to.
func TestBucketInOtherSurroundings(t *testing.T) {
	t.Parallel()
	t.Run("max_bytes demanded", func(t *testing.T) {
		t.Parallel()
		natsServer := streamtest.Start(t)
		limits := map[string]server.JetStreamAccountLimits{"": {MaxMemory: -1, MaxStore: 100 << 20, MaxStreams: -1, MaxConsumers: -1, MaxBytesRequired: true}}
		if err := natsServer.NATS().GlobalAccount().UpdateJetStreamLimits(limits); err != nil {
			t.Fatal(err)
		}
		campaign(t, contender{elector: newHolder(t, natsServer, election.KeyValueOptions{})}).elected(t)
	})
	t.Run("domain", func(t *testing.T) {
		t.Parallel()
		hub := streamtest.Start(t, func(o *server.Options) {
			o.JetStreamDomain, o.LeafNode.Host, o.LeafNode.Port = "hub", "127.0.0.1", -1
		})
		varz, err := hub.NATS().Varz(nil)
		if err != nil {
			t.Fatal(err)
		}
		remote := &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", varz.LeafNode.Port)}
		leaf := streamtest.Start(t, func(o *server.Options) {
			o.ServerName, o.JetStreamDomain = "leaf", "leaf"
			o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{remote}}}
		})
		for deadline := time.Now().Add(10 * time.Second); leaf.NATS().NumLeafNodes() == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the servers do not connect")
			}
		}
		campaign(t, contender{elector: newHolder(t, leaf, election.KeyValueOptions{Domain: "hub"})}).elected(t)
		conn := leaf.Conn(t)
		for domain, want := range map[string]error{"hub": nil, "leaf": jetstream.ErrBucketNotFound} {
			if err := election.VerifyBucket(t.Context(), conn, election.KeyValueOptions{Domain: domain}); !errors.Is(err, want) {
				t.Errorf("the bucket in domain %s: %v, want %v", domain, err, want)
			}
		}
	})
}
