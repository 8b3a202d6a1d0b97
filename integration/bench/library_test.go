package bench_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/integration/harness"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// BenchmarkLibrary drains a backlog with the relay in this process, for profiles:
//
//	go test -run xxx -bench Library -benchtime 5x -cpuprofile cpu.prof ./integration/bench
func BenchmarkLibrary(b *testing.B) {
	l := newLibrary(b)
	for b.Loop() {
		b.StopTimer()
		l.fill()
		b.StartTimer()
		l.drain(false, 0)
	}
	report(b, libraryEvents*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkExactlyOnce measures what exactly-once costs while nothing goes wrong: the same backlog is drained by a relay
// that relies on the duplicate window alone, by one that keeps a checkpoint and verifies the stream, and by one that also
// archives, in turn.
func BenchmarkExactlyOnce(b *testing.B) {
	l := newLibrary(b)
	var window, recovering, archiving time.Duration
	for b.Loop() {
		for _, way := range []struct {
			windowOnly bool
			retain     time.Duration
			took       *time.Duration
		}{{true, 0, &window}, {false, 0, &recovering}, {false, 5 * time.Minute, &archiving}} {
			l.fill()
			*way.took += l.drain(way.windowOnly, way.retain)
		}
	}
	report(b, libraryEvents*float64(b.N)/window.Seconds(), "events/s-window-only")
	report(b, window.Seconds()/recovering.Seconds(), "recovering/window-only")
	report(b, window.Seconds()/archiving.Seconds(), "archiving/window-only")
}

const libraryEvents = 200_000

// library is a relay in this process.
type library struct {
	*harness.World

	b     *testing.B
	conn  *pgx.Conn
	total int
}

func newLibrary(b *testing.B) *library {
	b.Helper()
	w := harness.NewWorld(b, harness.Options{})
	w.Command("migrate")
	return &library{World: w, b: b, conn: w.Connect()}
}

func (l *library) fill() {
	l.Helper()
	fill(l.World, l.conn, backlog{libraryEvents, aggregates, eventSize})
	l.total += libraryEvents
}

// windowOnly hides that a publisher can read the stream back.
type windowOnly struct{ relay.Publisher }

func (windowOnly) ReadsBack() bool { return false }

// drain returns when the backlog is in the stream and the relay has stopped. It tells how long that took from when the
// relay had read back what the one before has left.
func (l *library) drain(withoutReader bool, retain time.Duration) time.Duration {
	l.Helper()
	outbox, err := store.Open(l.DSN, store.Options{Retain: retain})
	if err != nil {
		l.Fatal(err)
	}
	opened, err := publisher.New(publisher.Options{
		Connect: stream.ConnectOptions{URL: l.NATS.URL()},
		Setup:   stream.Setup{Create: true},
	})
	if err != nil {
		l.Fatal(err)
	}
	broker := relay.PublisherOf(opened)
	if withoutReader {
		broker = windowOnly{broker}
	}
	ready := make(chan time.Time, 1)
	begun := func() {
		select {
		case ready <- time.Now():
		default: // It was read back once more.
		}
	}
	hooks := relay.Hooks{Recovered: func(relay.Recovered) { begun() }}
	if withoutReader {
		hooks = relay.Hooks{Elected: func(int64) { begun() }}
	}
	r, err := relay.Assemble(relay.Parts{Store: relay.StoreOf(outbox), Publisher: broker, Elector: election.Always{}}, relay.Options{Hooks: hooks})
	if err != nil {
		l.Fatal(err)
	}
	m := warm(l.World, backlog{l.total, aggregates, eventSize})
	ctx, stop := context.WithCancel(l.b.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	start := <-ready
	drained(l.World, l.JetStream(), l.conn, l.total, m)
	took := time.Since(start)
	stop()
	if err := <-done; err != nil {
		l.Fatal(err)
	}
	if err := outbox.Close(context.WithoutCancel(l.b.Context())); err != nil {
		l.Fatal(err)
	}
	return took
}
