//go:build mutants

package chaos_test

import (
	"context"
	"fmt"
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
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// mutant is a relay without one of its safeguards, and what must give it away. An intact relay survives the same.
type mutant struct {
	safeguard string // As packages relay, store and stream call it.
	without   string // What is switched off.
	scenario  string // What happens then,
	complaint string // and what must be complained about, among others.

	// happens makes it happen to relays with these settings. Inside: to parts of a relay in this process.
	happens func(v *verdict, settings ...string)
	inside  bool
}

// mutants are all there are.
//
//nolint:gochecknoglobals // A table.
var mutants = []mutant{
	{
		"recover", "the stream is not read back at the beginning of a term",
		"killed between publishing and settling, restarted past the duplicate window",
		"stored twice", killedBeforeSettling, false,
	},
	{
		"fence", "an ordered batch begins without the fence's header",
		"a leader's batch is 6 s late on the network; it is killed, and another publishes the same meanwhile",
		"stored twice", lateBatch, false,
	},
	{
		"lease", "the lease is not looked at before an event or a write",
		"a leader stops between two events for longer than lease and duplicate window; another leads meanwhile",
		"stored twice", stoppedBetweenEvents, true,
	},
	{
		"reconnect-buffer", "nats.go keeps its buffer of 8 MiB for times without a connection",
		"an event is published while nats-server is away, and given up before it comes back",
		"though given up", givenUpWhileAway, true,
	},
	{
		"one-in-flight", "an aggregate's next event is sent before the outcome of the one before is known",
		"the broker refuses an event for its size, and takes it later",
		"is stored after", refusedForAWhile, false,
	},
	{
		"delete-by-key", "what is published is removed by range",
		"an event commits late, below others that are on their way",
		"is missing", committedLate, false,
	},
	{
		"duplicate-ack", "that the stream has an event already counts as a failure",
		"an event comes again under an id that the stream knows",
		"the outbox is empty", cameTwice, false,
	},
	{
		"audit", "what a look at the stream finds is ignored",
		"somebody deletes the stream and creates it anew, while there is nothing to publish",
		"comes back", createdAnew, false,
	},
	{
		"in-process", "that an event is being stored (10158) counts as success",
		"a cluster without a majority gets an event twice, then loses its leader",
		"acknowledged and not stored", neverCommitted, true,
	},
	{
		"fitness", "a leader that cannot publish stays",
		"a leader loses its broker, while a standby has it",
		"the standby publishes", blindLeader, false,
	},
}

// Each safeguard is there for a reason: without it, something happens that the other tests are there to notice. With
// -duration, those whose turn comes after that are left out.
func TestMutants(t *testing.T) {
	var mu sync.Mutex
	rows := make([]string, len(mutants))
	began := time.Now()
	try := func(t *testing.T, i int) {
		t.Helper()
		m := mutants[i]
		if *duration > 0 && time.Since(began) >= *duration {
			t.Skipf("left out: %v are over", *duration)
		}
		for _, safeguard := range []string{"", m.safeguard} {
			t.Run("MUTANT="+safeguard, func(t *testing.T) {
				if m.inside {
					t.Setenv("MUTANT", safeguard)
				}
				seen := seen(t, m, "MUTANT="+safeguard)
				switch {
				case safeguard == "" && len(seen) > 0:
					t.Errorf("an intact relay does not survive that %s:\n%s", m.scenario, strings.Join(seen, "\n"))
				case safeguard == "":
				default:
					telling := slices.IndexFunc(seen, func(complaint string) bool { return strings.Contains(complaint, m.complaint) })
					if telling < 0 {
						t.Fatalf("it survives that %s, with %s; seen: %q, want %q", m.scenario, m.without, seen, m.complaint)
					}
					mu.Lock()
					defer mu.Unlock()
					rows[i] = fmt.Sprintf("| %s | %s | %s | %s |", m.safeguard, m.without, m.scenario, seen[telling])
				}
			})
		}
	}
	t.Run("inside", func(t *testing.T) { // One by one: this process has one environment.
		for i, m := range mutants {
			if m.inside {
				t.Run(m.safeguard, func(t *testing.T) { try(t, i) })
			}
		}
	})
	t.Run("outside", func(t *testing.T) {
		for i, m := range mutants {
			if !m.inside {
				t.Run(m.safeguard, func(t *testing.T) {
					t.Parallel()
					try(t, i)
				})
			}
		}
	})
	t.Logf("the kill table:\n\n| mutant | without the safeguard | killed by | what was seen |\n|---|---|---|---|\n%s\n",
		strings.Join(slices.DeleteFunc(rows, func(row string) bool { return row == "" }), "\n"))
}

// verdict takes down what a test complains about, in place of failing.
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

// seen returns what a mutant's scenario has to complain about.
func seen(t *testing.T, m mutant, settings ...string) []string {
	t.Helper()
	v := &verdict{TB: t}
	done := make(chan struct{})
	go func() { // Fatal ends it.
		defer close(done)
		m.happens(v, settings...)
	}()
	<-done
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen
}

// window makes the stream forget ids so soon that it is no help, and pastWindow is longer than that.
const (
	window     = 2 * time.Second
	pastWindow = window + 500*time.Millisecond
)

func shortWindow(settings []string) []string {
	return append(slices.Clone(settings), "OUTBOX_DUPLICATE_WINDOW="+window.String())
}

func killedBeforeSettling(v *verdict, settings ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
	conn, holder := w.Connect(), w.Connect()
	const rows = 500
	b := w.Backlog().Migrate().Add(conn, rows)
	w.Exec(holder, `begin; select from outbox for update`) // Rows can be read and not removed.
	first := w.Relay(shortWindow(settings)...)
	b.Reaches(rows)
	first.Kill()
	w.EndSessions(conn) // Otherwise what it asked for is still done.
	w.Exec(holder, `rollback`)
	harness.Pause(v.Context(), pastWindow) // Until the ids are forgotten.
	w.Relay(shortWindow(settings)...)
	b.Audit(conn)
}

func lateBatch(v *verdict, settings ...string) {
	const late = 6 * time.Second
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	b := w.Backlog().Migrate().Add(conn, 1)
	line := harness.NewProxy(v, w.NATS.Address())
	slow := w.Relay(append(shortWindow(settings), "OUTBOX_NATS_URL=nats://"+line.Address())...)
	b.Audit(conn)
	line.Delay(late)
	sent := time.Now()
	b.Add(conn, 400) // Enough for a batch.
	harness.Pause(v.Context(), time.Second)
	slow.Kill()
	w.Relay(shortWindow(settings)...)
	b.Reaches(401)
	harness.Pause(v.Context(), time.Until(sent.Add(late+2*time.Second))) // Until what was late is there.
	b.Audit(conn)
}

func stoppedBetweenEvents(v *verdict, settings ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
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
	publisher, err := stream.NewPublisher(stream.PublisherOptions{
		Connect:   stream.ConnectOptions{URL: w.URL()},
		Setup:     stream.Setup{Template: template, Create: true, DuplicateWindow: window},
		NoBatches: true, // A batch would have the fence as well.
	})
	if err != nil {
		v.Fatal(err)
	}
	stopping := &stoppingPublisher{Publisher: publisher, after: 10, stopped: make(chan struct{}), thawed: make(chan struct{})}
	elector := relay.AdvisoryLock(outbox, relay.DefaultAdvisoryLock, nil)
	stopped, err := relay.Assemble(relay.Parts{Store: outbox, Publisher: stopping, Elector: elector}, relay.Options{})
	if err != nil {
		v.Fatal(err)
	}
	ctx, stop := context.WithCancel(v.Context())
	ended := make(chan error, 1)
	go func() { ended <- stopped.Run(ctx) }()
	<-stopping.stopped
	w.EndSessions(conn)
	w.Relay(shortWindow(settings)...).Leads()
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

// stoppingPublisher is that of a process that is stopped when it has sent some events, until it is thawed.
type stoppingPublisher struct {
	*stream.Publisher

	after           int
	stopped, thawed chan struct{}
}

func (p *stoppingPublisher) Publish(event *stream.Event) error {
	err := p.Publisher.Publish(event)
	if p.after--; p.after == 0 {
		close(p.stopped)
		<-p.thawed
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

func givenUpWhileAway(v *verdict, _ ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
	p := publisher(v, stream.PublisherOptions{
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

func neverCommitted(v *verdict, _ ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, Cluster: true})
	setup := stream.Setup{Create: true, Replicas: 3}
	publisher(v, stream.PublisherOptions{Connect: stream.ConnectOptions{URL: w.URL()}, Setup: setup})
	js := w.JetStream()
	w.Cluster.Healthy(js)
	leader := w.Cluster.Leader(js)
	p := publisher(v, stream.PublisherOptions{Connect: stream.ConnectOptions{URL: leader.URL()}, Setup: setup, AckTimeout: time.Second})
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

// aPublisher is open, and belongs to a test.
type aPublisher struct {
	testing.TB
	*stream.Publisher
}

func publisher(v *verdict, options stream.PublisherOptions) aPublisher {
	v.Helper()
	p, err := stream.NewPublisher(options)
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
	return aPublisher{v, p}
}

// outcomeOf waits for the outcome of an event.
func (p aPublisher) outcomeOf(seq int64) stream.Outcome {
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

func refusedForAWhile(v *verdict, settings ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
	conn, js := w.Connect(), w.JetStream()
	b := w.Backlog().Migrate()
	settings = append(slices.Clone(settings), "OUTBOX_MAX_ATTEMPTS=1000", "OUTBOX_RETRY_BACKOFF=300ms", "OUTBOX_RETRY_BACKOFF_MAX=300ms")
	first := w.Relay(settings...)
	first.Leads()
	harness.Eventually(v, 10*time.Second, "the stream is limited", func() bool { return maxMsgSize(w, js, 2000) })
	first.Kill()
	b.Size = 4000
	b.Add(conn, 2) // One of them of the aggregate that half of all belong to.
	b.Size = 0
	b.Add(conn, 10)
	w.Relay(settings...)
	b.Reaches(5) // Those of the other aggregates.
	harness.Pause(v.Context(), 500*time.Millisecond)
	harness.Eventually(v, 10*time.Second, "the stream is without limits", func() bool { return maxMsgSize(w, js, -1) })
	b.Audit(conn)
}

func maxMsgSize(w *harness.World, js jetstream.JetStream, size int32) bool {
	info, err := js.Stream(w.Context(), stream.DefaultStream)
	if err != nil {
		return false
	}
	config := info.CachedInfo().Config
	config.MaxMsgSize = size
	_, err = js.UpdateStream(w.Context(), config)
	return err == nil
}

func committedLate(v *verdict, settings ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
	conn, late := w.Connect(), w.Connect()
	b := w.Backlog().Migrate()
	w.Relay(append(slices.Clone(settings), "OUTBOX_BATCH_SIZE=1")...) // Two pages in hand, so two events.
	b.Add(conn, 2).Audit(conn)                                        // So that it is ready.
	w.Exec(late, `begin`)
	b.Add(late, 1)
	w.NATS.Freeze()
	b.Add(conn, 3)
	harness.Pause(v.Context(), time.Second) // Until it has fetched and sent what it can.
	w.Exec(late, `commit`)
	w.NATS.Thaw()
	b.Audit(conn)
}

func cameTwice(v *verdict, settings ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	w.Backlog().Migrate()
	w.Relay(settings...).Leads()
	id := uuid.New()
	for range 2 {
		w.Exec(conn, `insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data) values ($1, 't', 'A', 'a', 'E', '1')`, id)
		w.Settled(conn, 10*time.Second)
	}
	if n := len(w.Messages()); n != 1 {
		v.Errorf("stored %d times", n)
	}
}

func createdAnew(v *verdict, settings ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true, Deaf: true}) // Otherwise the server tells.
	settings = append(slices.Clone(settings), "OUTBOX_NATS_URL="+w.NATS.RelayURL())
	conn, js := w.Connect(), w.JetStream()
	const rows = 200
	b := w.Backlog().Migrate()
	w.Relay(settings...).Leads()
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

func blindLeader(v *verdict, settings ...string) {
	w := harness.NewWorld(v, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	b := w.Backlog().Migrate()
	proxy := harness.NewProxy(v, strings.TrimPrefix(w.URL(), "nats://"))
	w.Relay(append(slices.Clone(settings), "OUTBOX_NATS_URL=nats://"+proxy.Address())...).Leads()
	standby := w.Relay(settings...)
	standby.WaitFor(regexp.MustCompile(`standing (by)`))
	const rows = 100
	proxy.Cut()
	b.Add(conn, rows)
	harness.Eventually(v, 10*time.Second, "the standby publishes", func() bool { return b.Stored() >= rows })
	b.Audit(conn)
}
