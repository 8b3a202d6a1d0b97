package relay_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	osexec "os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// The parts that the packages make are parts of a relay, and so is what embeds one.
var (
	_ relay.Store     = relay.StoreOf(nil)
	_ relay.Term      = (*store.Term)(nil)
	_ relay.Publisher = relay.PublisherOf(nil)
	_ relay.Session   = (*publisher.Session)(nil)
	_ relay.Elector   = (*election.AdvisoryLock)(nil)
	_ relay.Elector   = (*election.KeyValue)(nil)
	_ relay.Elector   = election.Always{}
)

// tracedPublisher and tracedElector wrap a part, as for tracing.
type (
	tracedPublisher struct{ relay.Publisher }
	tracedElector   struct{ relay.Elector }
)

// plainSender sends each event by itself.
type plainSender struct {
	*publisher.Publisher

	session *publisher.Session
}

func (s *plainSender) Open(ctx context.Context) (warnings []stream.Warning, err error) {
	if warnings, err = s.Publisher.Open(ctx); err == nil {
		s.session, _, err = s.Begin(ctx, "plain", 1, true)
	}
	return warnings, err
}

func (s *plainSender) Publish(event *stream.Event) error { return s.session.Publish(event) }

// logbook collects log records as text.
type logbook struct {
	mu   sync.Mutex // Protects text.
	text bytes.Buffer
}

func (l *logbook) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logbook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// assembled is a relay of parts, with what it says and how often it has read the stream back.
type assembled struct {
	*running

	log       *logbook
	recovered chan relay.Recovered
}

// assembleParts runs a relay whose publisher is wrapped, on a database without tables.
func assembleParts(t *testing.T, natsURL string, options store.Options, wrap func(*publisher.Publisher) relay.Publisher) *assembled {
	t.Helper()
	dsn := storetest.NewDatabase(t)
	outbox, err := store.Open(dsn, options)
	if err != nil {
		t.Fatal(err)
	}
	broker, err := publisher.New(publisher.Options{Connect: stream.ConnectOptions{URL: natsURL}, Setup: stream.Setup{Create: true}})
	if err != nil {
		t.Fatal(err)
	}
	a := &assembled{log: &logbook{}, recovered: make(chan relay.Recovered, 100)}
	r, err := relay.Assemble(relay.Parts{
		Store: relay.StoreOf(outbox), Publisher: wrap(broker), Elector: tracedElector{relay.AdvisoryLock(outbox, relay.DefaultAdvisoryLock, nil)},
	}, relay.Options{Logger: a.log.logger(), Hooks: relay.Hooks{Recovered: func(r relay.Recovered) { a.recovered <- r }}})
	if err != nil {
		t.Fatal(err)
	}
	a.running = run(t, r)
	a.await("it publishes", publishing)
	insertOne(t, dsn)
	a.await("the event is published", func(s relay.Status) bool { return s.Published == 1 })
	return a
}

func insertOne(t *testing.T, dsn string) {
	t.Helper()
	exec(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`)
}

// weakened returns what the log says of guarantees.
func (a *assembled) weakened() (lines []string) {
	for line := range strings.Lines(a.log.String()) {
		if strings.Contains(line, "a guarantee is weakened") {
			lines = append(lines, line)
		}
	}
	return lines
}

// A part that is wrapped keeps all that the guarantees rest on, and nothing is given up.
func TestWrappedPartsGiveNothingUp(t *testing.T) {
	a := assembleParts(t, streamtest.Start(t).URL(), store.Options{Retain: time.Minute}, func(p *publisher.Publisher) relay.Publisher { return tracedPublisher{relay.PublisherOf(p)} })
	if lines := a.weakened(); len(lines) > 0 {
		t.Errorf("it gives up %s", lines)
	}
	select {
	case <-a.recovered:
	default:
		t.Error("it has not read the stream back")
	}
}

// What is given up by the choice of the parts, the relay says.
func TestWhatIsGivenUpIsSaid(t *testing.T) {
	a := assembleParts(t, streamtest.Start(t).URL(), store.Options{}, func(p *publisher.Publisher) relay.Publisher { return relay.PublishOnly(&plainSender{Publisher: p}) })
	said := strings.Join(a.weakened(), "")
	for _, want := range []string{"cannot read the stream back", "does not ask for the lease", "retain is 0"} {
		if strings.Count(said, want) != 1 {
			t.Errorf("it says %q, want %q in it, once", said, want)
		}
	}
	select {
	case <-a.recovered:
		t.Error("it reads the stream back")
	default:
	}
}

// A relay of parts looks at the duplicate window like one of a configuration.
func TestAssembledRelayChecksTheWindow(t *testing.T) {
	nats := streamtest.Start(t)
	_, err := nats.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	a := assembleParts(t, nats.URL(), store.Options{Retain: time.Minute}, func(p *publisher.Publisher) relay.Publisher { return relay.PublisherOf(p) })
	if said := strings.Join(a.weakened(), ""); !strings.Contains(said, "duplicate window of 1s is less than 22s") {
		t.Errorf("it says %q", said)
	}
}

func TestAssembleNeedsAllParts(t *testing.T) {
	if _, err := relay.Assemble(relay.Parts{Elector: election.Always{}}, relay.Options{}); err == nil {
		t.Error("there is a relay without a store and a publisher")
	}
}

func TestPrepareStream(t *testing.T) {
	nats := streamtest.Start(t)
	c := configure(storetest.NewDatabase(t), nats.URL())
	r := assemble(t, c)
	if err := r.PrepareStream(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := nats.JetStream(t).Stream(t.Context(), "OUTBOX"); err != nil {
		t.Errorf("the stream is not there: %v", err)
	}
	if s := r.Status(); s.State != relay.Campaigning || s.Trouble != "its tables are not ready yet" {
		t.Errorf("then the status is %+v", s)
	}
	if err := r.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := r.Status(); s.State != relay.Campaigning || s.Trouble != "it has not been started" {
		t.Errorf("with the tables the status is %+v", s)
	}
	running := run(t, r)
	running.await("it publishes", publishing)
	if err := r.PrepareStream(t.Context()); !errors.Is(err, relay.ErrRunning) {
		t.Errorf("while the relay runs: %v, want %v", err, relay.ErrRunning)
	}
	running.stop()
	if err := running.end(); err != nil {
		t.Error(err)
	}
	if err := r.PrepareStream(t.Context()); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestPrepareStreamWaitsAndStops(t *testing.T) {
	r := assemble(t, configure("postgres://127.0.0.1:1/nowhere", "nats://127.0.0.1:1"))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.PrepareStream(ctx) }()
	for deadline := time.Now().Add(patience); !strings.Contains(r.Status().Trouble, "NATS"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the status is %+v", r.Status())
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("PrepareStream: %v, want %v", err, context.Canceled)
	}

	nats := streamtest.Start(t)
	_, err := nats.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c := configure("postgres://127.0.0.1:1/nowhere", nats.URL())
	c.Strict = true
	if err := assemble(t, c).PrepareStream(t.Context()); !errors.Is(err, stream.ErrRefused) {
		t.Errorf("with a stream of a short window: %v, want %v", err, stream.ErrRefused)
	}
}

// Who has the relay built in links no decoder of files, no server, and no command line.
func TestEmbeddersLinkLittle(t *testing.T) {
	deps, err := osexec.CommandContext(t.Context(), "go", "list", "-deps", "github.com/go-outbox/go-outbox/relay").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"pelletier/go-toml", "go-outbox/config", "nats-server", "spf13/cobra", "prometheus", "go-outbox/stream/embedded", "storetest"} {
		if strings.Contains(string(deps), path) {
			t.Errorf("package relay needs %s", path)
		}
	}
}
