package harness

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// binary is the outbox-relay that TestMain built.
var binary string //nolint:gochecknoglobals // Built once for all tests.

// Main is the body of a TestMain: it builds outbox-relay and runs the tests. In a process that NewWorld started it is
// a nats-server instead. M is a [testing.M], or something around one.
func Main(m interface{ Run() int }) {
	if file := os.Getenv(natsRole); file != "" {
		beNATS(file)
		return
	}
	dir, err := os.MkdirTemp("", "outbox-relay-")
	if err != nil {
		panic(err)
	}
	if binary, err = Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // This is the end of TestMain.
	}
	// The tests mostly wait for other processes. Without -parallel, more of them run at once than there are processors.
	flag.Parse()
	explicit := false
	flag.Visit(func(f *flag.Flag) { explicit = explicit || f.Name == "test.parallel" })
	if !explicit {
		if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code) //nolint:forbidigo // As above.
}

// Build builds outbox-relay into a directory and returns the program. Flags are further ones of go build.
func Build(ctx context.Context, dir string, flags ...string) (program string, err error) {
	program = filepath.Join(dir, "outbox-relay")
	build := exec.CommandContext(ctx, "go", slices.Concat([]string{"build"}, buildFlags, flags,
		[]string{"-o", program, "github.com/go-outbox/go-outbox/relay/cmd/outbox-relay"})...)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build outbox-relay: %w\n%s", err, out)
	}
	return program, nil
}

// World is a Postgres, a nats-server and any number of relays.
type World struct {
	testing.TB

	Postgres *storetest.Server // Nil for a database of the server that the tests share.
	DSN      string
	NATS     *NATS    // Nil for a cluster.
	Cluster  *Cluster // Nil for a single server.

	relay string // The outbox-relay program.
	quiet bool
}

// Options of a World.
type Options struct {
	// MaxPayload is the nats-server's max_payload; 0 for its default.
	MaxPayload int
	// NATSPassword is that of the user "relay"; empty lets everybody in.
	NATSPassword string
	NoNATS       bool // Until NATS.Start is called.
	// Permissions lets relays log in as RelayUser, whom NATS.Deny forbids subjects.
	Permissions bool
	// Deaf is Permissions, without the permission to hear that a stream was deleted.
	Deaf bool
	// TLS has the nats-server offer TLS; clients need not use it: see NATS.Encrypted.
	TLS bool
	// NATSProgram is a nats-server of another version: see NATSServer.
	NATSProgram string
	// Cluster asks for three nats-servers, which keep the stream on all of them.
	Cluster bool
	// SharedPostgres asks for a database on a server that is never stopped, which is there sooner.
	SharedPostgres bool
	// RelayProgram is an outbox-relay that Build made. Empty is the one that Main built.
	RelayProgram string
	// Quiet keeps the relays' logs out of the report of a failed test, for tests that report themselves.
	Quiet bool
}

// NewWorld starts a Postgres and a nats-server, which end with the test.
func NewWorld(tb testing.TB, options Options) *World {
	tb.Helper()
	w := &World{TB: tb, relay: cmp.Or(options.RelayProgram, binary), quiet: options.Quiet}
	if options.SharedPostgres {
		w.DSN = storetest.NewDatabase(tb)
	} else {
		w.Postgres = storetest.Start(tb)
		w.DSN = w.Postgres.DSN()
	}
	var nats interface{ Start() }
	if options.Cluster {
		w.Cluster = newCluster(tb, options)
		nats = w.Cluster
	} else {
		w.NATS = newNATS(tb, options)
		nats = w.NATS
	}
	if !options.NoNATS {
		nats.Start()
	}
	return w
}

// URL is where NATS listens.
func (w *World) URL() string {
	if w.Cluster != nil {
		return w.Cluster.URL()
	}
	return w.NATS.URL()
}

// Connect opens a producer's connection to Postgres.
func (w *World) Connect() *pgx.Conn {
	w.Helper()
	conn, err := pgx.Connect(w.Context(), w.DSN)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = conn.Close(context.WithoutCancel(w.Context())) })
	return conn
}

// Exec runs a statement.
func (w *World) Exec(conn *pgx.Conn, sql string, args ...any) {
	w.Helper()
	if _, err := conn.Exec(w.Context(), sql, args...); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
}

// EndSessions ends the relays' sessions in Postgres, and waits until they have ended.
func (w *World) EndSessions(conn *pgx.Conn) {
	w.Helper()
	Eventually(w.TB, 10*time.Second, "the relays' sessions have ended", func() bool {
		var ended int
		if err := conn.QueryRow(w.Context(), `
select count(pg_terminate_backend(pid)) from pg_stat_activity
 where application_name like 'outbox-relay%' and datname = current_database()`).Scan(&ended); err != nil {
			w.Fatal(err)
		}
		return ended == 0
	})
}

// JetStream opens a consumer's connection to NATS.
func (w *World) JetStream() jetstream.JetStream {
	w.Helper()
	nc, err := nats.Connect(w.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.IgnoreAuthErrorAbort())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		w.Fatal(err)
	}
	return js
}

// Relay starts an outbox-relay. Settings are environment variables as "NAME=value".
func (w *World) Relay(settings ...string) *Process {
	w.Helper()
	return w.RelayOf(w.relay, settings...)
}

// RelayOf is Relay for the outbox-relay of another version.
func (w *World) RelayOf(program string, settings ...string) *Process {
	w.Helper()
	p := w.start(program, settings, "run")
	p.httpAddr = p.WaitFor(regexp.MustCompile(`addr=(127\.0\.0\.1:\d+)`), "serving")
	return p
}

// Launch is Relay without waiting for anything, so that servers may be away; the process has no HTTP endpoints.
func (w *World) Launch(settings ...string) *Process {
	w.Helper()
	return w.start(w.relay, append([]string{"OUTBOX_HTTP_ADDR=off"}, settings...), "run")
}

// Command runs an outbox-relay command to its end and returns what it printed.
func (w *World) Command(args ...string) string {
	w.Helper()
	return w.CommandWith(nil, args...)
}

// CommandWith is Command with settings as Relay has them.
func (w *World) CommandWith(settings []string, args ...string) string {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), w.relay, args...)
	cmd.Env = w.environment(settings)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		w.Fatalf("outbox-relay %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Code           int // -1 if it was still running after a time, and was killed.
}

// Try runs an outbox-relay command to its end, whether it succeeds or fails, but no longer than within.
func (w *World) Try(within time.Duration, settings []string, args ...string) Result {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.relay, args...)
	cmd.Env = w.environment(settings)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.Fatalf("outbox-relay %s: %v", strings.Join(args, " "), err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Serve starts an outbox-relay as Relay does, and reports whether it served its endpoints within a time.
func (w *World) Serve(within time.Duration, settings ...string) (*Process, bool) {
	w.Helper()
	p := w.start(w.relay, settings, "run")
	if !p.Await(within, serving) {
		return p, false
	}
	p.httpAddr = p.WaitFor(serving)
	return p, true
}

var serving = regexp.MustCompile(`serving.*addr=(127\.0\.0\.1:\d+)`)

func (w *World) environment(settings []string) []string {
	environment := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"GORACE=atexit_sleep_ms=0", // With the race detector a process otherwise stays for another second.
		"OUTBOX_DATABASE_DSN=" + w.DSN, "OUTBOX_NATS_URL=" + w.URL(), "OUTBOX_HTTP_ADDR=127.0.0.1:0", "OUTBOX_LOGGING_LEVEL=debug",
	}
	if w.Cluster != nil {
		environment = append(environment, fmt.Sprintf("OUTBOX_STREAM_REPLICAS=%d", len(w.Cluster.Nodes)))
	}
	return append(environment, settings...)
}

func (w *World) start(program string, settings []string, args ...string) *Process {
	w.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(w.Context()), program, args...)
	cmd.Env = w.environment(settings)
	p := launch(w.TB, cmd)
	p.quiet = w.quiet
	return p
}

// Eventually waits until condition holds.
func Eventually(tb testing.TB, within time.Duration, what string, condition func() bool) {
	tb.Helper()
	deadline := time.Now().Add(within)
	for !condition() {
		if time.Now().After(deadline) {
			tb.Fatalf("not within %v: %s", within, what)
		}
		Pause(tb.Context(), 5*time.Millisecond)
	}
}

// Pause waits for d unless ctx ends first.
func Pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Messages reads everything that the stream OUTBOX holds, in order, but for what relays write for themselves.
func (w *World) Messages() []*jetstream.RawStreamMsg {
	w.Helper()
	return w.MessagesOf("OUTBOX")
}

// MessagesOf is Messages of another stream.
func (w *World) MessagesOf(name string) (messages []*jetstream.RawStreamMsg) {
	w.Helper()
	js := w.JetStream()
	var err error
	for range 120 { // A cluster that has just lost a node may fail to answer, for longer where there is much else to do.
		if messages, err = read(w.Context(), js, name); err == nil {
			return messages
		}
		Pause(w.Context(), 250*time.Millisecond)
	}
	w.Fatalf("read stream %s: %v", name, err)
	return nil
}

func read(ctx context.Context, js jetstream.JetStream, name string) ([]*jetstream.RawStreamMsg, error) {
	stream, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil || stream.CachedInfo().State.Msgs == 0 {
		return nil, err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	var messages []*jetstream.RawStreamMsg
	seen := uint64(0)
	for {
		batch, err := consumer.Fetch(1000, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			return nil, err
		}
		for m := range batch.Messages() {
			metadata, err := m.Metadata()
			if err != nil {
				return nil, err
			}
			if m.Headers().Get("Outbox-Term") == "" {
				messages = append(messages, &jetstream.RawStreamMsg{Subject: m.Subject(), Sequence: metadata.Sequence.Stream, Header: m.Headers(), Data: m.Data(), Time: metadata.Timestamp})
			}
			seen++
			if metadata.NumPending > 0 {
				continue
			}
			if all := stream.CachedInfo().State.Msgs; seen < all {
				// In a cluster, the consumer may be on a server that has just come back and is not up to date.
				return nil, fmt.Errorf("%d messages of %d that the stream's leader has", seen, all)
			}
			return messages, nil
		}
		if err := batch.Error(); err != nil {
			return nil, err
		}
	}
}
