package bench_test

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

const (
	eventSize  = 256
	aggregates = 10_000
)

// backlog is what is to be drained.
type backlog struct{ events, aggregates, size int }

// standard is the backlog that the others are compared to. BENCH_EVENTS sets how many events it has.
func standard(b *testing.B) backlog {
	b.Helper()
	load := backlog{200_000, aggregates, eventSize}
	if text := os.Getenv("BENCH_EVENTS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatalf("BENCH_EVENTS: %v", err)
		}
		load.events = n
	}
	return load
}

// drainCase is one way of draining a backlog. Without a backlog of its own it has the standard one.
type drainCase struct {
	name     string
	backlog  backlog
	settings []string
	tls      bool   // Between relay and NATS.
	horizon  bool   // A transaction keeps vacuum from its work.
	beside   beside // What it is compared to.
}

// beside is what a drain is compared with.
type beside int

const (
	theLoop   beside = iota // The loop, with a backlog just like it.
	plainTCP                // The relay without TLS.
	jetStream               // So many events published in ordered batches, as in BenchmarkBounds.
	nothing
)

// BenchmarkDrain measures how fast a relay drains a backlog. In each iteration the loop drains a backlog just like it, for
// comparison. Of several iterations, as with -benchtime 5x, the metrics are medians:
//
//   - ×loop is the relay's rate as a multiple of the loop's, ×first as a multiple of that of the first case of its kind
//   - µs/event and loop-µs/event are the processor time of relay and loop
//   - for backlogs of several sizes, ×JetStream is the relay's rate as a multiple of JetStream's alone with as many events, since
//     nats-server, which remembers all ids, gets slower with their number
//   - with TLS, ×TCP and ×TCP-CPU are rate and processor time as multiples of those without TLS
func BenchmarkDrain(b *testing.B) {
	normal := standard(b)
	first := make(map[beside]float64)
	for _, c := range []drainCase{
		{name: "as it comes"},
		{name: "no archive", settings: []string{"OUTBOX_RETAIN=0s"}},
		{name: "TLS", tls: true, beside: plainTCP},
		{name: "horizon held", horizon: true},
		{name: "10 aggregates", backlog: backlog{normal.events, 10, eventSize}},
		{name: "1 aggregate", backlog: backlog{normal.events, 1, eventSize}},
		{name: "1 KiB", backlog: backlog{normal.events / 2, aggregates, 1 << 10}},
		{name: "16 KiB", backlog: backlog{normal.events / 20, aggregates, 16 << 10}},
		{name: "1 MiB less headers", backlog: backlog{100, aggregates, 1<<20 - 4096}, beside: nothing},
		{name: "100k events", backlog: backlog{100_000, aggregates, eventSize}, settings: []string{"OUTBOX_RETAIN=0s"}, beside: jetStream},
		{name: "1M events", backlog: backlog{1_000_000, aggregates, eventSize}, settings: []string{"OUTBOX_RETAIN=0s"}, beside: jetStream},
		{name: "3M events", backlog: backlog{3_000_000, aggregates, eventSize}, settings: []string{"OUTBOX_RETAIN=0s"}, beside: jetStream},
	} {
		b.Run(c.name, func(b *testing.B) {
			if c.backlog.events == 0 {
				c.backlog = normal
			}
			var relay, other, ratio []drain
			for b.Loop() {
				var before, own drain
				ownFirst := len(relay)%2 == 1 // Whoever comes first may have it harder.
				if ownFirst {
					own = c.measure(b, c.ownDrain)
				}
				switch c.beside {
				case theLoop:
					before = c.measure(b, c.afternoonLoop)
				case jetStream:
					took := within(b, func(tb testing.TB) time.Duration {
						tb.Helper()
						return publishAll(harness.NewWorld(tb, harness.Options{}), c.backlog, true)
					})
					before = drain{rate: float64(c.backlog.events) / took.Seconds()}
				case plainTCP:
					plain := c
					plain.tls = false
					before = plain.measure(b, plain.ownDrain)
				case nothing:
				}
				if !ownFirst {
					own = c.measure(b, c.ownDrain)
				}
				relay, other, ratio = append(relay, own), append(other, before), append(ratio, drain{own.rate / before.rate, own.cpu / before.cpu, 0})
			}
			rate := median(relay, drain.perSecond)
			report(b, rate, "events/s")
			switch c.beside {
			case theLoop:
				report(b, median(ratio, drain.perSecond), "×loop")
			case jetStream:
				report(b, median(ratio, drain.perSecond), "×JetStream")
			case plainTCP:
				report(b, median(ratio, drain.perSecond), "×TCP")
				report(b, median(ratio, drain.processor), "×TCP-CPU")
			case nothing:
			}
			if first[c.beside] == 0 {
				first[c.beside] = rate
			} else if c.backlog.size == eventSize {
				report(b, rate/first[c.beside], "×first")
			}
			report(b, median(relay, drain.processor), "µs/event")
			if c.beside == theLoop {
				report(b, median(other, drain.processor), "loop-µs/event")
			}
			report(b, median(relay, drain.memory), "MB-RSS")
		})
	}
}

// drain is the result of one drain.
type drain struct {
	rate     float64 // Events a second.
	cpu      float64 // Processor time of whoever drained, in µs an event.
	resident float64 // Memory, in MB.
}

func (d drain) perSecond() float64 { return d.rate }
func (d drain) processor() float64 { return d.cpu }
func (d drain) memory() float64    { return d.resident }

func median(drains []drain, of func(drain) float64) float64 {
	var values []float64
	for _, d := range drains {
		values = append(values, of(d))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// measure has a backlog drained in a world of its own: a relay that found another's traffic in the stream would read it
// back first.
func (c drainCase) measure(b *testing.B, drainer func(w *harness.World, js jetstream.JetStream, conn *pgx.Conn, m *memory) drain) drain {
	b.Helper()
	return within(b, func(tb testing.TB) drain {
		tb.Helper()
		w := harness.NewWorld(tb, harness.Options{TLS: c.tls})
		w.Command("migrate")
		conn, js := w.Connect(), w.JetStream()
		createStream(w, js)
		if c.horizon {
			w.Exec(w.Connect(), `begin; select pg_current_xact_id()`)
		}
		fill(w, conn, c.backlog)
		return drainer(w, js, conn, warm(w, c.backlog))
	})
}

// createStream makes the stream as the relay would: the loop finds the same one.
func createStream(w *harness.World, js jetstream.JetStream) {
	w.Helper()
	_, err := js.CreateStream(w.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: 10 * time.Minute, AllowBatchPublish: true,
	})
	if err != nil {
		w.Fatal(err)
	}
}

// fill inserts a backlog.
func fill(w *harness.World, conn *pgx.Conn, load backlog) {
	w.Helper()
	w.Exec(conn, `alter table outbox disable trigger all`)
	w.Exec(conn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
		select 'bench', 'Account', (i % $2::int)::text, 'Changed', convert_to(repeat('x', $3::int), 'UTF8') from generate_series(1, $1::int) i`,
		load.events, load.aggregates, load.size)
	w.Exec(conn, `alter table outbox enable trigger all`)
	w.Exec(conn, `vacuum analyze outbox`)
	w.Exec(conn, `checkpoint`)
}

// ownDrain drains with the relay.
func (c drainCase) ownDrain(w *harness.World, js jetstream.JetStream, conn *pgx.Conn, m *memory) drain {
	w.Helper()
	settings := c.settings
	if c.tls {
		settings = append(w.NATS.Encrypted(), settings...)
	}
	return relayDrain(w, js, conn, c.backlog.events, m, settings...)
}

// relayDrain has a relay drain the outbox; only the time that it leads counts.
func relayDrain(w *harness.World, js jetstream.JetStream, conn *pgx.Conn, total int, m *memory, settings ...string) drain {
	w.Helper()
	relay := w.Relay(append(settings, "OUTBOX_LOGGING_LEVEL=info")...)
	relay.Leads()
	start := time.Now()
	drained(w, js, conn, total, m)
	took := time.Since(start)
	cpu, resident := relay.Usage()
	relay.Stop()
	return drain{float64(total) / took.Seconds(), cpu.Seconds() * 1e6 / float64(total), resident / 1e6}
}

// drained waits until the stream holds n messages and the outbox is empty. It asks the stream first: to look for the last row
// among many deleted ones would take the database's time.
func drained(w *harness.World, js jetstream.JetStream, conn *pgx.Conn, total int, m *memory) {
	w.Helper()
	within := time.Minute + time.Duration(total)*time.Second/5000
	harness.Eventually(w.TB, within, "all events in the stream", func() bool {
		harness.Pause(w.Context(), 25*time.Millisecond) // Asking takes the server's time, too.
		stream, err := js.Stream(w.Context(), "OUTBOX")
		if err != nil {
			return false
		}
		done := int(stream.CachedInfo().State.Msgs)
		m.give(w, done)
		return done >= total
	})
	w.Settled(conn, within)
}

// afternoonLoop is the baseline. It runs in this process, which has nothing else to do meanwhile.
func (c drainCase) afternoonLoop(w *harness.World, js jetstream.JetStream, _ *pgx.Conn, _ *memory) drain {
	w.Helper()
	start, before := time.Now(), processorTime(w)
	loop(w, js)
	took, cpu := time.Since(start), processorTime(w)-before
	return drain{float64(c.backlog.events) / took.Seconds(), cpu.Seconds() * 1e6 / float64(c.backlog.events), 0}
}

func loop(w *harness.World, js jetstream.JetStream) {
	w.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, w.DSN)
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close(ctx)
	for {
		tx, err := conn.Begin(ctx)
		if err != nil {
			w.Fatal(err)
		}
		rows, err := tx.Query(ctx, `select seq, id::text, topic, aggregate_type, aggregate_id, event_type, data, created_at from outbox order by seq limit 1000`)
		if err != nil {
			w.Fatal(err)
		}
		var seqs []int64
		for rows.Next() {
			var seq int64
			var id, topic, kind, aggregate, event string
			var data []byte
			var created time.Time
			if err := rows.Scan(&seq, &id, &topic, &kind, &aggregate, &event, &data, &created); err != nil {
				w.Fatal(err)
			}
			_, err := js.PublishMsgAsync(&nats.Msg{
				Subject: strings.Join([]string{"outbox", topic, kind, aggregate}, "."), Data: data,
				Header: nats.Header{
					"Nats-Msg-Id": {id}, "Outbox-Seq": {strconv.FormatInt(seq, 10)}, "Outbox-Topic": {topic}, "Outbox-Aggregate-Type": {kind},
					"Outbox-Aggregate-Id": {aggregate}, "Outbox-Event-Type": {event}, "Outbox-Created-At": {created.UTC().Format(time.RFC3339Nano)},
				},
			})
			if err != nil {
				w.Fatal(err)
			}
			seqs = append(seqs, seq)
		}
		if err := rows.Err(); err != nil {
			w.Fatal(err)
		}
		if len(seqs) == 0 {
			return
		}
		<-js.PublishAsyncComplete()
		if _, err := tx.Exec(ctx, `delete from outbox where seq = any($1)`, seqs); err != nil {
			w.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			w.Fatal(err)
		}
	}
}
