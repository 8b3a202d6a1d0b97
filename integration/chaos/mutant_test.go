package chaos_test

import (
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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
	"github.com/go-outbox/go-outbox/integration/mutants"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

var (
	//nolint:gochecknoglobals // A flag.
	tryMutants = flag.Bool("mutants", false, "try what must give each mutant away, which takes minutes")
	//nolint:gochecknoglobals // A flag.
	scenario = flag.String("scenario", "", "the mutant whose scenario TestScenario goes through")
)

// scenarios show each mutant's fault: what happens to the relay, and one of the complaints that must follow. An intact relay
// survives the same without a complaint.
//
//nolint:gochecknoglobals // A table.
var scenarios = []struct {
	mutant    string // See package mutants.
	scenario  string
	complaint string

	// happens makes it happen to relays of this program; empty for the one that Main built.
	happens func(v *verdict, program string)
	// inside tells that it happens to parts of a relay in this process: the test itself is compiled as a mutant.
	inside bool
}{
	{
		"recover", "killed between publishing and settling, restarted past the duplicate window",
		"stored twice", killedBeforeSettling, false,
	},
	{
		"fence", "a leader's batch is 6 s late on the network; it is killed, and another publishes the same meanwhile",
		"stored twice", lateBatch, false,
	},
	{
		"lease", "a leader stops between two events for longer than lease and duplicate window; another leads meanwhile",
		"stored twice", stoppedBetweenEvents, true,
	},
	{
		"reconnect-buffer", "an event is published while nats-server is away, and given up before it comes back",
		"though given up", givenUpWhileAway, true,
	},
	{
		"one-in-flight", "the broker refuses an event because its subject is full, and takes it later",
		"is stored after", refusedForAWhile, false,
	},
	{
		"delete-by-key", "an event commits late, below others that are on their way",
		"is missing", committedLate, false,
	},
	{
		"duplicate-ack", "an event comes again under an id that the stream knows",
		"the outbox is empty", cameTwice, false,
	},
	{
		"verify", "somebody deletes the stream and creates it anew, while there is nothing to publish",
		"comes back", createdAnew, false,
	},
	{
		"in-process", "a cluster without a majority gets an event twice, then loses its leader",
		"acknowledged and not stored", neverCommitted, true,
	},
	{
		"fitness", "a leader loses its broker, while a standby has it",
		"the standby publishes", blindLeader, false,
	},
}

// Without a safeguard, something happens that the other tests must notice. With -duration, the mutants that would begin after
// that time are left out.
func TestMutants(t *testing.T) {
	if !*tryMutants {
		t.Skip("takes minutes: make chaos")
	}
	var mu sync.Mutex
	rows := make([]string, len(scenarios))
	began := time.Now()
	try := func(t *testing.T, i int) {
		t.Helper()
		if *duration > 0 && time.Since(began) >= *duration {
			t.Skipf("left out: %v are over", *duration)
		}
		s := scenarios[i]
		m, ok := mutants.Named(s.mutant)
		if !ok {
			t.Fatalf("package mutants has no %q", s.mutant)
		}
		t.Run("intact", func(t *testing.T) {
			if seen := seen(t, s.happens, ""); len(seen) > 0 {
				t.Errorf("an intact relay does not survive that %s:\n%s", s.scenario, strings.Join(seen, "\n"))
			}
		})
		t.Run("mutant", func(t *testing.T) {
			overlay, err := m.Overlay(root(t), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			var complaints []string
			if s.inside {
				complaints = seenInside(t, s.mutant, overlay)
			} else {
				program, err := harness.Build(t.Context(), t.TempDir(), "-overlay="+overlay)
				if err != nil {
					t.Fatal(err)
				}
				complaints = seen(t, s.happens, program)
			}
			telling := slices.IndexFunc(complaints, func(complaint string) bool { return strings.Contains(complaint, s.complaint) })
			if telling < 0 {
				t.Fatalf("it survives that %s, although %s; seen: %q, want %q", s.scenario, m.Without, complaints, s.complaint)
			}
			mu.Lock()
			defer mu.Unlock()
			rows[i] = fmt.Sprintf("| %s | %s | %s | %s |", m.Name, m.Without, s.scenario, complaints[telling])
		})
	}
	t.Run("inside", func(t *testing.T) {
		for i, s := range scenarios {
			if s.inside {
				t.Run(s.mutant, func(t *testing.T) { try(t, i) })
			}
		}
	})
	t.Run("outside", func(t *testing.T) {
		for i, s := range scenarios {
			if !s.inside {
				t.Run(s.mutant, func(t *testing.T) {
					t.Parallel()
					try(t, i)
				})
			}
		}
	})
	t.Logf("the kill table:\n\n| mutant | without the safeguard | killed by | what was seen |\n|---|---|---|---|\n%s\n",
		strings.Join(slices.DeleteFunc(rows, func(row string) bool { return row == "" }), "\n"))
}

// TestScenario goes through one mutant's scenario, with the code as this test is compiled. TestMutants runs it in a test
// that is compiled as the mutant.
func TestScenario(t *testing.T) {
	if *scenario == "" {
		t.Skip("for TestMutants")
	}
	for _, s := range scenarios {
		if s.mutant == *scenario {
			for _, complaint := range seen(t, s.happens, "") {
				t.Error(complaint)
			}
			return
		}
	}
	t.Fatalf("no scenario of %q", *scenario)
}

// seenInside returns the complaints of TestScenario in a test that is compiled with an overlay.
func seenInside(t *testing.T, mutant, overlay string) (complaints []string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "chaos.test")
	arguments := []string{"test", "-c", "-overlay=" + overlay, "-o", binary}
	if harness.Racing {
		arguments = append(arguments, "-race")
	}
	if out, err := exec.CommandContext(t.Context(), "go", append(arguments, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("compile the mutant: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.run=^TestScenario$", "-test.count=1", "-test.timeout=5m", "-scenario="+mutant)
	cmd.Env = append(os.Environ(), "GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+overlay) // The relay that it builds is a mutant, too.
	out, err := cmd.CombinedOutput()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		t.Fatal(err)
	}
	complaint := regexp.MustCompile(`^ +mutant_test\.go:\d+: `)
	for line := range strings.Lines(string(out)) {
		if where := complaint.FindString(line); where != "" {
			complaints = append(complaints, strings.TrimSpace(line[len(where):]))
		}
	}
	if err != nil && len(complaints) == 0 {
		t.Fatalf("it failed without a complaint: %v\n%s", err, out)
	}
	return complaints
}

// root is the module's root.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// verdict collects a test's complaints, instead of failing.
type verdict struct {
	testing.TB

	mu   sync.Mutex // Protects seen.
	seen []string
}

func (v *verdict) Errorf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seen = append(v.seen, fmt.Sprintf(format, args...))
}

func (v *verdict) Error(args ...any) { v.Errorf("%s", fmt.Sprint(args...)) }

func (v *verdict) Fatalf(format string, args ...any) {
	v.Errorf(format, args...)
	runtime.Goexit()
}

func (v *verdict) Fatal(args ...any) { v.Fatalf("%s", fmt.Sprint(args...)) }

// seen returns the complaints of a scenario that happens to relays of a program.
func seen(t *testing.T, happens func(v *verdict, program string), program string) []string {
	t.Helper()
	v := &verdict{TB: t}
	done := make(chan struct{})
	go func() { // Fatal ends it.
		defer close(done)
		happens(v, program)
	}()
	<-done
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen
}

// window is a duplicate window so short that it protects from nothing here. pastWindow is longer.
const (
	window     = 2 * time.Second
	pastWindow = window + 500*time.Millisecond
)

// shortWindow is the relay's setting for window.
const shortWindow = "OUTBOX_DUPLICATE_WINDOW=2s"

func killedBeforeSettling(v *verdict, program string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, RelayProgram: program})
	conn, holder := w.Connect(), w.Connect()
	const rows = 500
	b := w.Backlog().Migrate().Add(conn, rows)
	w.Exec(holder, `begin; select from outbox for update`) // Rows can be read and not removed.
	first := w.Relay(shortWindow)
	b.Reaches(rows)
	first.Kill()
	w.EndSessions(conn) // Otherwise what it asked for is still done.
	w.Exec(holder, `rollback`)
	harness.Pause(v.Context(), pastWindow) // Until the ids are forgotten.
	w.Relay(shortWindow)
	b.Audit(conn)
}

func lateBatch(v *verdict, program string) {
	const late = 6 * time.Second
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, RelayProgram: program})
	conn := w.Connect()
	b := w.Backlog().Migrate().Add(conn, 1)
	line := harness.NewProxy(v, w.NATS.Address())
	slow := w.Relay(shortWindow, "OUTBOX_NATS_URL=nats://"+line.Address())
	b.Audit(conn)
	line.Delay(late)
	sent := time.Now()
	b.Add(conn, 400) // Enough for a batch.
	harness.Pause(v.Context(), time.Second)
	slow.Kill()
	w.Relay(shortWindow)
	b.Reaches(401)
	harness.Pause(v.Context(), time.Until(sent.Add(late+2*time.Second))) // Until what was late is there.
	b.Audit(conn)
}

func stoppedBetweenEvents(v *verdict, program string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, RelayProgram: program})
	conn := w.Connect()
	b := w.Backlog().Migrate().Add(conn, 200)

	outbox, err := store.Open(w.DSN, store.Options{})
	if err != nil {
		v.Fatal(err)
	}
	template, err := stream.ParseTemplate(stream.DefaultTemplate)
	if err != nil {
		v.Fatal(err)
	}
	sender, err := publisher.New(publisher.Options{
		Connect:   stream.ConnectOptions{URL: w.URL()},
		Setup:     stream.Setup{Template: template, Create: true, DuplicateWindow: window},
		NoBatches: true, // A batch would have the fence as well.
	})
	if err != nil {
		v.Fatal(err)
	}
	stopping := &stoppingPublisher{Publisher: relay.PublisherOf(sender), after: 10, stopped: make(chan struct{}), thawed: make(chan struct{})}
	elector := relay.AdvisoryLock(outbox, relay.DefaultAdvisoryLock, nil)
	stopped, err := relay.Assemble(relay.Parts{Store: relay.StoreOf(outbox), Publisher: stopping, Elector: elector}, relay.Options{})
	if err != nil {
		v.Fatal(err)
	}
	ctx, stop := context.WithCancel(v.Context())
	ended := make(chan error, 1)
	go func() { ended <- stopped.Run(ctx) }()
	<-stopping.stopped
	w.EndSessions(conn)
	w.Relay(shortWindow).Leads()
	b.Reaches(200)
	w.Settled(conn, 20*time.Second)
	harness.Pause(v.Context(), pastWindow) // Until the ids are forgotten.
	close(stopping.thawed)
	harness.Pause(v.Context(), time.Second) // Until it has done what it would do.
	stop()
	if err := <-ended; err != nil {
		v.Error(err)
	}
	_ = outbox.Close(context.WithoutCancel(v.Context())) // Its session was ended.
	b.Audit(conn)
}

// stoppingPublisher behaves like the publisher of a process that is frozen after it has sent some events, until it is thawed.
type stoppingPublisher struct {
	relay.Publisher

	after           int
	stopped, thawed chan struct{}
}

func (p *stoppingPublisher) Begin(ctx context.Context, outbox string, term int64, first bool) (relay.Session, history.Fence, error) {
	session, fence, err := p.Publisher.Begin(ctx, outbox, term, first)
	return stoppingSession{session, p}, fence, err
}

// stoppingSession is a session of a stoppingPublisher.
type stoppingSession struct {
	relay.Session

	p *stoppingPublisher
}

func (s stoppingSession) Publish(event *stream.Event) error {
	err := s.Session.Publish(event)
	if s.p.after--; s.p.after == 0 {
		close(s.p.stopped)
		<-s.p.thawed
	}
	return err
}

// Close is called when the lease has ended; a process that thaws gets to it some time later.
func (p *stoppingPublisher) Close() {
	select {
	case <-p.stopped:
		<-p.thawed
		harness.Pause(context.Background(), 200*time.Millisecond)
	default:
	}
	p.Publisher.Close()
}

func givenUpWhileAway(v *verdict, _ string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
	p := opened(v, publisher.Options{
		Connect: stream.ConnectOptions{URL: w.URL()}, Setup: stream.Setup{Create: true}, AckTimeout: 500 * time.Millisecond,
	})
	w.NATS.Kill()
	p.troubled()
	event := anEvent()
	err := p.Publish(event)
	if err == nil {
		if outcome := p.outcomeOf(event.Seq); outcome.Err != nil {
			err = outcome.Err
		}
	}
	w.NATS.Start()
	js := w.JetStream()
	harness.Pause(v.Context(), 2*time.Second) // Until it is connected again.
	if stored := w.StoredIn(js, stream.DefaultStream); err != nil && stored > 0 {
		v.Errorf("stored when nats-server was back, though given up before: %v", err)
	}
}

func neverCommitted(v *verdict, _ string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, Cluster: true})
	setup := stream.Setup{Create: true, Replicas: 3}
	opened(v, publisher.Options{Connect: stream.ConnectOptions{URL: w.URL()}, Setup: setup})
	js := w.JetStream()
	w.Cluster.Healthy(js)
	leader := w.Cluster.Leader(js)
	p := opened(v, publisher.Options{Connect: stream.ConnectOptions{URL: leader.URL()}, Setup: setup, AckTimeout: time.Second})
	var others []*harness.NATS
	for _, n := range w.Cluster.Nodes {
		if n != leader {
			others = append(others, n)
			n.Kill()
		}
	}
	event := anEvent()
	again := *event
	again.Seq++
	for _, e := range []*stream.Event{event, &again} {
		if err := p.Publish(e); err != nil {
			v.Fatal(err)
		}
	}
	outcome := p.outcomeOf(again.Seq)
	leader.Kill()
	for _, n := range others {
		n.Revive()
	}
	w.Cluster.Leader(js)
	if stored := w.StoredIn(js, stream.DefaultStream); outcome.Err == nil && stored == 0 {
		v.Errorf("acknowledged and not stored")
	} else if outcome.Err != nil && outcome.Err.Code != stream.CodeDuplicateInProcess {
		v.Errorf("this shows nothing: the answer was %v", outcome.Err)
	}
}

// aPublisher returns an open publisher, which is closed when the test ends.
type aPublisher struct {
	testing.TB
	*publisher.Publisher
	*publisher.Session
}

func opened(v *verdict, options publisher.Options) aPublisher {
	v.Helper()
	p, err := publisher.New(options)
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(p.Close)
	harness.Eventually(v, 20*time.Second, "the stream is there", func() bool {
		ctx, cancel := context.WithTimeout(v.Context(), 2*time.Second)
		defer cancel()
		_, err = p.Open(ctx)
		return err == nil
	})
	session, _, err := p.Begin(v.Context(), "one", 1, true)
	if err != nil {
		v.Fatal(err)
	}
	return aPublisher{v, p, session}
}

// outcomeOf waits for the outcome of an event.
func (p aPublisher) outcomeOf(seq int64) publisher.Outcome {
	p.Helper()
	deadline := time.After(20 * time.Second)
	for {
		outcomes, _ := p.Collect(nil)
		for _, outcome := range outcomes {
			if outcome.Seq == seq {
				return outcome
			}
		}
		select {
		case <-p.Outcomes():
		case <-deadline:
			p.Fatalf("no outcome of event %d", seq)
		}
	}
}

// troubled waits until the connection is lost.
func (p aPublisher) troubled() {
	p.Helper()
	deadline := time.After(20 * time.Second)
	for {
		if _, trouble := p.Collect(nil); trouble != nil {
			return
		}
		select {
		case <-p.Outcomes():
		case <-deadline:
			p.Fatal("no trouble with the connection")
		}
	}
}

func anEvent() *stream.Event {
	return &stream.Event{
		Seq: 1, ID: uuid.New(), Topic: "t", AggregateType: "A", AggregateID: "a", EventType: "E", Data: []byte("1"), CreatedAt: time.Now(),
	}
}

func refusedForAWhile(v *verdict, program string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, RelayProgram: program})
	conn, js := w.Connect(), w.JetStream()
	b := w.Backlog().Migrate()
	settings := []string{"OUTBOX_MAX_ATTEMPTS=1000", "OUTBOX_RETRY_BACKOFF=300ms", "OUTBOX_RETRY_BACKOFF_MAX=300ms"}
	first := w.Relay(settings...)
	// A topic has subjects of its own, and is no part of an aggregate.
	b.Topic = "full"
	b.Add(conn, 2).Audit(conn)
	first.Kill()
	harness.Eventually(v, 10*time.Second, "the stream takes one message a subject", func() bool { return oneASubject(w, js, true) })
	b.Add(conn, 2) // The second is refused: its subject is full.
	b.Topic = "t"
	b.Add(conn, 10) // The second of them is of the same aggregate.
	w.Relay(settings...)
	b.Reaches(2 + 1 + 5) // Those of the other aggregates.
	harness.Pause(v.Context(), 500*time.Millisecond)
	harness.Eventually(v, 10*time.Second, "the stream is without limits", func() bool { return oneASubject(w, js, false) })
	b.Audit(conn)
}

// oneASubject limits a stream to one message a subject, of which it refuses further ones, or lifts that limit.
func oneASubject(w *harness.World, js jetstream.JetStream, limited bool) bool {
	info, err := js.Stream(w.Context(), stream.DefaultStream)
	if err != nil {
		return false
	}
	config := info.CachedInfo().Config
	config.MaxMsgsPerSubject, config.Discard, config.DiscardNewPerSubject = -1, jetstream.DiscardOld, false
	if limited {
		config.MaxMsgsPerSubject, config.Discard, config.DiscardNewPerSubject = 1, jetstream.DiscardNew, true
	}
	_, err = js.UpdateStream(w.Context(), config)
	return err == nil
}

func committedLate(v *verdict, program string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, RelayProgram: program})
	conn, late := w.Connect(), w.Connect()
	b := w.Backlog().Migrate()
	w.Relay("OUTBOX_BATCH_SIZE=1", "OUTBOX_RETAIN=0s") // Two pages in hand, so two events; no archive that puts anything back.
	b.Add(conn, 2).Audit(conn)                         // So that it is ready.
	w.Exec(late, `begin`)
	b.Add(late, 1)
	w.NATS.Freeze()
	b.Add(conn, 3)
	harness.Pause(v.Context(), time.Second) // Until it has fetched and sent what it can.
	w.Exec(late, `commit`)
	w.NATS.Thaw()
	b.Audit(conn)
}

func cameTwice(v *verdict, program string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, RelayProgram: program})
	conn := w.Connect()
	w.Backlog().Migrate()
	w.Relay().Leads()
	id := uuid.New()
	for range 2 {
		w.Exec(conn, `insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data) values ($1, 't', 'A', 'a', 'E', '1')`, id)
		w.Settled(conn, 10*time.Second)
	}
	if n := len(w.Messages()); n != 1 {
		v.Errorf("stored %d times", n)
	}
}

func createdAnew(v *verdict, program string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, RelayProgram: program, Deaf: true}) // Otherwise the server tells.
	conn, js := w.Connect(), w.JetStream()
	const rows = 200
	b := w.Backlog().Migrate()
	w.Relay("OUTBOX_NATS_URL=" + w.NATS.RelayURL()).Leads()
	b.Add(conn, rows)
	b.Audit(conn)
	info, err := js.Stream(v.Context(), stream.DefaultStream)
	if err != nil {
		v.Fatal(err)
	}
	config := info.CachedInfo().Config
	harness.Pause(v.Context(), 6*time.Second) // Until it has looked at it.
	if err := js.DeleteStream(v.Context(), stream.DefaultStream); err != nil {
		v.Fatal(err)
	}
	if _, err := js.CreateStream(v.Context(), config); err != nil {
		v.Fatal(err)
	}
	harness.Eventually(v, 15*time.Second, "what it held comes back", func() bool { return b.Stored() >= rows })
	b.Audit(conn)
}

func blindLeader(v *verdict, program string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, RelayProgram: program})
	conn := w.Connect()
	b := w.Backlog().Migrate()
	proxy := harness.NewProxy(v, strings.TrimPrefix(w.URL(), "nats://"))
	w.Relay("OUTBOX_NATS_URL=nats://" + proxy.Address()).Leads()
	standby := w.Relay()
	standby.WaitFor(regexp.MustCompile(`standing (by)`))
	const rows = 100
	proxy.Cut()
	b.Add(conn, rows)
	harness.Eventually(v, 10*time.Second, "the standby publishes", func() bool { return b.Stored() >= rows })
	b.Audit(conn)
}
