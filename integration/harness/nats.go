package harness

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// natsRole is the environment variable that makes this test binary a nats-server. Its value is the file that has the role,
// in JSON. So the tests can kill a server without another program being installed, and change what it permits while it runs.
const natsRole = "OUTBOX_TEST_BE_NATS"

// RelayUser is the user of relays, and its password, where Options.Permissions is set.
const RelayUser = "relay"

// role is how a nats-server is to be.
type role struct {
	Name           string
	Port           int
	Store          string
	MaxPayload     int32
	User, Password string

	Cert, Key string // Files; empty for no TLS.

	// Permissions adds RelayUser, who may publish to all subjects but Denied. A client that does not log in may do everything.
	Permissions bool
	Deaf        bool // RelayUser may not subscribe to what servers tell of streams.
	Denied      []string

	Storage int64 // What the account may store; 0 for no limit.

	ClusterPort int // 0 for a server that is alone.
	Routes      []string
}

// NATS is a nats-server that can be killed, frozen and started again on the same port and store.
type NATS struct {
	testing.TB

	// Program is what runs from the next start on; empty for the version that this module requires. See NATSServer.
	Program string

	role    role
	file    string // What tells the running server its role.
	quiet   bool
	running *Process
}

func newNATS(tb testing.TB, options Options) *NATS {
	tb.Helper()
	n := &NATS{TB: tb, Program: options.NATSProgram, quiet: options.Quiet, role: role{Name: "test", Port: freePorts(tb, 1)[0], Store: tb.TempDir(), MaxPayload: int32(options.MaxPayload)}}
	if n.role.MaxPayload == 0 {
		n.role.MaxPayload = server.MAX_PAYLOAD_SIZE
	}
	n.role.Permissions, n.role.Deaf = options.Permissions || options.Deaf, options.Deaf
	n.file = filepath.Join(tb.TempDir(), "role.json")
	if options.TLS {
		ca := streamtest.NewAuthority(tb)
		n.role.Cert, n.role.Key = ca.File, ca.KeyFile
	}
	if options.NATSPassword != "" {
		n.Login("relay", options.NATSPassword)
	}
	return n
}

// freePorts returns n different ports that are free just now.
func freePorts(tb testing.TB, count int) []int {
	tb.Helper()
	var ports []int
	var listeners []net.Listener
	for range count {
		listener, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		listeners = append(listeners, listener)
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port) //nolint:errcheck // It is TCP.
	}
	for _, listener := range listeners { // Not sooner, so that they differ.
		_ = listener.Close()
	}
	return ports
}

// RelayURL is where the server listens for RelayUser.
func (n *NATS) RelayURL() string {
	return (&url.URL{Scheme: "nats", Host: n.Address(), User: url.UserPassword(RelayUser, RelayUser)}).String()
}

// Address is where the server listens; it stays the same over kills and starts.
func (n *NATS) Address() string { return fmt.Sprintf("127.0.0.1:%d", n.role.Port) }

// URL is where the server listens, with what it takes to log in.
func (n *NATS) URL() string {
	u := url.URL{Scheme: "nats", Host: n.Address()}
	if n.role.User != "" {
		u.User = url.UserPassword(n.role.User, n.role.Password)
	}
	return u.String()
}

// Encrypted returns settings by which a relay uses TLS, and nothing else.
func (n *NATS) Encrypted() []string {
	return []string{"OUTBOX_NATS_URL=" + strings.Replace(n.URL(), "nats:", "tls:", 1), "OUTBOX_NATS_TLS_CA=" + n.role.Cert}
}

// Login sets who may connect, from the next start on.
func (n *NATS) Login(user, password string) { n.role.User, n.role.Password = user, password }

// Start returns once JetStream answers.
func (n *NATS) Start() {
	n.Helper()
	n.launch()
	n.ready()
}

func (n *NATS) launch() {
	n.Helper()
	cmd := n.ours()
	if n.Program != "" {
		cmd = n.released()
	}
	n.running = launch(n.TB, cmd)
	n.running.quiet = n.quiet
}

// ours is the command that runs the nats-server within this test binary.
func (n *NATS) ours() *exec.Cmd {
	n.Helper()
	n.tellRole()
	cmd := exec.CommandContext(context.WithoutCancel(n.Context()), os.Args[0])
	cmd.Env = append(os.Environ(), natsRole+"="+n.file)
	return cmd
}

// tellRole writes the role where the server reads it.
func (n *NATS) tellRole() {
	n.Helper()
	text, err := json.Marshal(n.role)
	if err != nil {
		n.Fatal(err)
	}
	if err := replaceFile(n.file, text); err != nil {
		n.Fatal(err)
	}
}

// replaceFile writes a file that another process may be reading.
func replaceFile(name string, content []byte) error {
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// Deny reloads the server so that RelayUser may not publish to some subjects. Like the limits below, that stays over kills. It
// comes into force soon after the server runs; see Reloaded.
func (n *NATS) Deny(subjects ...string) {
	n.Helper()
	n.role.Denied = subjects
	n.tellRole()
}

// LimitPayload reloads the server with another max_payload; 0 for its default.
func (n *NATS) LimitPayload(bytes int32) {
	n.Helper()
	n.role.MaxPayload = cmp.Or(bytes, server.MAX_PAYLOAD_SIZE)
	n.tellRole()
}

// LimitStorage limits what the account may store; 0 lifts the limit.
func (n *NATS) LimitStorage(bytes int64) {
	n.Helper()
	n.role.Storage = bytes
	n.tellRole()
}

// Reloaded waits until what was changed on the running server is in force.
func (n *NATS) Reloaded() {
	n.Helper()
	Eventually(n.TB, 10*time.Second, "the server has reloaded", func() bool {
		want, err := os.ReadFile(n.file)
		if err != nil {
			n.Fatal(err)
		}
		got, _ := os.ReadFile(n.file + reloadedSuffix) // Absent at first.
		return string(want) == string(got)
	})
}

// reloadedSuffix added to the name of a role's file gives the name of the file with the role that is in force.
const reloadedSuffix = ".reloaded"

func (n *NATS) ready() {
	n.Helper()
	Eventually(n.TB, 20*time.Second, "nats-server answers", func() bool {
		nc, err := nats.Connect(n.URL())
		if err != nil {
			return false
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return false
		}
		ctx, cancel := context.WithTimeout(n.Context(), time.Second)
		defer cancel()
		_, err = js.AccountInfo(ctx)
		return err == nil
	})
}

// Revive is Start without waiting until JetStream answers.
func (n *NATS) Revive() {
	n.Helper()
	n.launch()
}

// Kill ends the server without its consent.
func (n *NATS) Kill() { n.running.Kill() }

// Freeze stops the server until Thaw, in the middle of whatever it does.
func (n *NATS) Freeze() { n.running.Freeze() }

// Thaw lets a frozen server go on.
func (n *NATS) Thaw() { n.running.Thaw() }

// Copy copies the server's store, which must not be written meanwhile, and returns where to.
func (n *NATS) Copy() string {
	n.Helper()
	to := n.TempDir()
	if err := os.CopyFS(to, os.DirFS(n.role.Store)); err != nil {
		n.Fatal(err)
	}
	return to
}

// Restore puts a copy of the store in its place, while the server does not run.
func (n *NATS) Restore(copied string) {
	n.Helper()
	n.role.Store = copied
}

// beNATS runs a nats-server until the process is killed. The role is in a file; when that changes the server is reloaded.
func beNATS(file string) {
	r, text := readRole(file)
	s, err := server.NewServer(r.options())
	if err != nil {
		panic(err)
	}
	s.Start()
	for storage := int64(0); ; {
		for r.Storage != storage && limitStorage(s, r.Storage) != nil {
			Pause(context.Background(), roleEvery) // JetStream is not ready yet.
		}
		storage = r.Storage
		if err := replaceFile(file+reloadedSuffix, []byte(text)); err != nil {
			panic(err)
		}
		for old := text; text == old; r, text = readRole(file) {
			Pause(context.Background(), roleEvery)
		}
		if err := s.ReloadOptions(r.options()); err != nil {
			panic(err)
		}
	}
}

// limitStorage limits what the account may store; 0 for no limit. Without a configuration file, no reload changes that.
func limitStorage(s *server.Server, bytes int64) error {
	return s.GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
		"": {MaxMemory: -1, MaxStore: cmp.Or(bytes, -1), MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1},
	})
}

// roleEvery is how often a server looks at its role.
const roleEvery = 10 * time.Millisecond

func readRole(file string) (r role, text string) {
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		os.Exit(0) //nolint:forbidigo // The test has ended, and removes its files before it kills its servers.
	}
	if err == nil {
		err = json.Unmarshal(content, &r)
	}
	if err != nil {
		panic(err)
	}
	return r, string(content)
}

// options are those of a server with this role.
func (r role) options() *server.Options {
	options := &server.Options{
		ServerName: r.Name, Host: "127.0.0.1", Port: r.Port, MaxPayload: r.MaxPayload, Username: r.User, Password: r.Password,
		JetStream: true, StoreDir: r.Store, NoLog: true, NoSigs: true,
	}
	if r.Permissions {
		const anybody = "anybody"
		permissions := &server.Permissions{Publish: &server.SubjectPermission{Deny: r.Denied}}
		if r.Deaf {
			permissions.Subscribe = &server.SubjectPermission{Deny: []string{"$JS.EVENT.>"}}
		}
		options.Users = []*server.User{
			{Username: anybody, Password: anybody},
			{Username: RelayUser, Password: RelayUser, Permissions: permissions},
		}
		options.NoAuthUser = anybody
	}
	if r.Cert != "" {
		pair, err := tls.LoadX509KeyPair(r.Cert, r.Key)
		if err != nil {
			panic(err)
		}
		options.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		options.AllowNonTLS, options.TLSTimeout = true, 2
	}
	if r.ClusterPort > 0 {
		options.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: r.ClusterPort, NoAdvertise: true} // A client that was sent through a proxy stays there.
		options.Routes = server.RoutesFromStr(strings.Join(r.Routes, ","))
	}
	return options
}

// Cluster is three nats-servers, each of which can be killed, frozen and started again.
type Cluster struct {
	testing.TB

	Nodes []*NATS
}

func newCluster(tb testing.TB, options Options) *Cluster {
	tb.Helper()
	const size = 3
	c := &Cluster{TB: tb}
	ports := freePorts(tb, 2*size)
	var routes []string
	for _, port := range ports[size:] {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", port))
	}
	for i := range size {
		n := newNATS(tb, options)
		n.role.Name, n.role.Port, n.role.ClusterPort, n.role.Routes = fmt.Sprintf("n%d", i+1), ports[i], ports[size+i], routes
		c.Nodes = append(c.Nodes, n)
	}
	return c
}

// URL names all nodes.
func (c *Cluster) URL() string {
	var urls []string
	for _, n := range c.Nodes {
		urls = append(urls, n.URL())
	}
	return strings.Join(urls, ",")
}

// Start returns once JetStream answers at each node.
func (c *Cluster) Start() {
	c.Helper()
	for _, n := range c.Nodes {
		n.launch()
	}
	for _, n := range c.Nodes {
		n.ready()
	}
}

// Leader waits until the stream OUTBOX has a leader and returns its node.
func (c *Cluster) Leader(js jetstream.JetStream) *NATS {
	c.Helper()
	var leader *NATS
	Eventually(c.TB, 20*time.Second, "the stream has a leader", func() bool {
		ctx, cancel := context.WithTimeout(c.Context(), time.Second)
		defer cancel()
		stream, err := js.Stream(ctx, "OUTBOX")
		if err != nil {
			return false
		}
		for _, n := range c.Nodes {
			if cluster := stream.CachedInfo().Cluster; cluster != nil && cluster.Leader == n.role.Name {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

// Healthy waits until all replicas of the stream OUTBOX are current.
func (c *Cluster) Healthy(js jetstream.JetStream) {
	c.Helper()
	Eventually(c.TB, 20*time.Second, "the stream's replicas are current", func() bool {
		ctx, cancel := context.WithTimeout(c.Context(), time.Second)
		defer cancel()
		stream, err := js.Stream(ctx, "OUTBOX")
		if err != nil || stream.CachedInfo().Cluster == nil {
			return false
		}
		cluster := stream.CachedInfo().Cluster
		current := 0
		for _, peer := range cluster.Replicas {
			if peer.Current && !peer.Offline {
				current++
			}
		}
		return cluster.Leader != "" && current == len(c.Nodes)-1
	})
}

// StoredIn returns how many events a stream holds, 0 if it does not exist. A cluster may take some time to answer.
func (w *World) StoredIn(js jetstream.JetStream, name string) (events int) {
	w.Helper()
	Eventually(w.TB, 20*time.Second, "JetStream answers", func() bool {
		ctx, cancel := context.WithTimeout(w.Context(), 2*time.Second)
		defer cancel()
		stream, err := js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return true
		}
		if err != nil {
			return false
		}
		// The relay's own messages have other subjects than events, or this token.
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
		if err != nil {
			return false
		}
		events = 0
		for subject, messages := range info.State.Subjects {
			if !strings.HasPrefix(subject, "_outbox.") && !strings.Contains(subject, "%fence") {
				events += int(messages)
			}
		}
		return true
	})
	return events
}
