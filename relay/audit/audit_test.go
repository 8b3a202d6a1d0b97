package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/audit"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// patience is how long anything may take that no healthy machine needs as long for.
const patience = 30 * time.Second

// world is an outbox, a stream, and a relay between them.
type world struct {
	t      *testing.T
	config relay.Config
	dsn    string
	nats   *streamtest.Server
	conn   *pgx.Conn
	stop   func() // Stops the relay.
}

func newWorld(t *testing.T, change ...func(*relay.Config)) *world {
	t.Helper()
	w := &world{t: t, dsn: storetest.NewDatabase(t), nats: streamtest.Start(t)}
	w.config = relay.Config{Postgres: w.dsn, NATS: w.nats.URL(), Retain: time.Hour, MaxAttempts: 1}
	for _, f := range change {
		f(&w.config)
	}
	w.connect()
	w.start()
	return w
}

func (w *world) connect() {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.dsn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(w.t.Context())) })
	w.conn = conn
}

// start runs the relay.
func (w *world) start() {
	w.t.Helper()
	r, err := relay.New(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := r.Prepare(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stopped := false
	w.stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	}
	w.t.Cleanup(w.stop)
}

func (w *world) sql(statement string, args ...any) {
	w.t.Helper()
	if _, err := w.conn.Exec(w.t.Context(), statement, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) number(query string, args ...any) (n int) {
	w.t.Helper()
	if err := w.conn.QueryRow(w.t.Context(), query, args...).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// insert inserts so many events of so many aggregates, in turn.
func (w *world) insert(events, aggregates int) {
	w.t.Helper()
	w.sql(`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 'orders', 'Order', (n % $2)::text, 'OrderPaid', convert_to('x', 'UTF8') from generate_series(0, $1 - 1) n`, events, aggregates)
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: not within %v", what, patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// settled waits until everything is published and archived.
func (w *world) settled(archived int) {
	w.t.Helper()
	w.await(fmt.Sprintf("%d events are archived", archived), func() bool {
		return w.number(`select count(*) from outbox`) == 0 && w.number(`select count(*) from outbox_published`) == archived
	})
}

func (w *world) js() (jetstream.JetStream, jetstream.Stream) {
	w.t.Helper()
	js, err := jetstream.New(w.nats.Conn(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := js.Stream(w.t.Context(), "OUTBOX")
	if err != nil {
		w.t.Fatal(err)
	}
	return js, s
}

// change changes the stream's configuration.
func (w *world) change(edit func(*jetstream.StreamConfig)) {
	w.t.Helper()
	js, s := w.js()
	config := s.CachedInfo().Config
	edit(&config)
	if _, err := js.UpdateStream(w.t.Context(), config); err != nil {
		w.t.Fatal(err)
	}
}

// forget makes the stream forget the ids of all messages.
func (w *world) forget() {
	w.t.Helper()
	const window = 100 * time.Millisecond
	w.change(func(c *jetstream.StreamConfig) { c.Duplicates = window })
	time.Sleep(window) // It knows them again after a restart only if they are younger.
	w.nats.Restart()
	w.await("JetStream answers again", func() bool {
		js, err := jetstream.New(w.nats.Conn(w.t))
		if err == nil {
			_, err = js.Stream(w.t.Context(), "OUTBOX")
		}
		return err == nil
	})
}

// message returns the message of the event with this seq.
func (w *world) message(seq int) *jetstream.RawStreamMsg {
	w.t.Helper()
	_, s := w.js()
	for n := s.CachedInfo().State.FirstSeq; n <= s.CachedInfo().State.LastSeq; n++ {
		msg, err := s.GetMsg(w.t.Context(), n)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if msg.Header.Get(stream.HeaderSeq) == fmt.Sprint(seq) {
			return msg
		}
	}
	w.t.Fatalf("the stream has no event with the seq %d", seq)
	return nil
}

func (w *world) remove(seq int) *jetstream.RawStreamMsg {
	w.t.Helper()
	msg := w.message(seq)
	_, s := w.js()
	if err := s.DeleteMsg(w.t.Context(), msg.Sequence); err != nil {
		w.t.Fatal(err)
	}
	return msg
}

// publish publishes a message again, whose id the stream has forgotten.
func (w *world) publish(msg *jetstream.RawStreamMsg) {
	w.t.Helper()
	js, _ := w.js()
	ack, err := js.PublishMsg(w.t.Context(), &nats.Msg{Subject: msg.Subject, Header: msg.Header, Data: msg.Data})
	if err != nil || ack.Duplicate {
		w.t.Fatalf("the message is not stored again: %+v, %v", ack, err)
	}
}

// replay puts the whole archive back.
func (w *world) replay(newIDs bool) {
	w.t.Helper()
	outbox, err := w.config.Outbox()
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := outbox.Replay(w.t.Context(), store.ReplayFilter{}, newIDs); err != nil {
		w.t.Fatal(err)
	}
}

// beside returns another outbox whose relay publishes to the same stream.
func (w *world) beside() *world {
	w.t.Helper()
	other := &world{t: w.t, dsn: storetest.NewDatabase(w.t), nats: w.nats, config: w.config}
	other.config.Postgres = other.dsn
	other.connect()
	other.start()
	return other
}

// audit audits, and does not wait for what is missing unless it is told to.
func (w *world) audit(o audit.Options) audit.Report {
	w.t.Helper()
	r, err := w.tryAudit(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) tryAudit(o audit.Options) (audit.Report, error) {
	w.t.Helper()
	outbox, err := w.config.Outbox()
	if err != nil {
		w.t.Fatal(err)
	}
	connect, setup, err := w.config.Target()
	if err != nil {
		w.t.Fatal(err)
	}
	reader, err := history.Dial(w.t.Context(), connect, setup)
	if err != nil {
		w.t.Fatal(err)
	}
	defer reader.Close()
	o.Stream = setup.Stream
	if o.Patience == 0 {
		o.Patience = time.Millisecond
	}
	return audit.Run(w.t.Context(), outbox, reader, o)
}

// named returns the kinds and seqs of what a report names.
func named(r audit.Report) []string {
	names := []string{}
	for i := range r.Violations {
		names = append(names, fmt.Sprint(r.Violations[i].Kind, " ", r.Violations[i].Seq))
	}
	return names
}

func expect(t *testing.T, r audit.Report, want ...string) {
	t.Helper()
	if got := named(r); !slices.Equal(got, want) || r.Total() != len(want) {
		t.Errorf("the audit names %q (%v in all), want %q", got, r.Count, want)
		for i := range r.Violations {
			t.Logf("seq %d: %s", r.Violations[i].Seq, r.Violations[i].String())
		}
	}
}

// One event dropped, one doubled and one swapped are named, and nothing else among many.
func TestNamesWhatIsWrong(t *testing.T) {
	const events, aggregates = 20_000, 1000
	w := newWorld(t)
	w.insert(events, aggregates)
	w.settled(events)
	if r := w.audit(audit.Options{}); r.Total() != 0 || r.Events != events || r.Messages < events || r.Unchecked+r.Late != 0 {
		t.Fatalf("before anything is wrong: %+v", r)
	}
	w.stop() // It would put back what is dropped, and the audit is to see it.
	w.forget()
	w.remove(77)
	w.publish(w.message(500))
	w.publish(w.remove(events - aggregates)) // The last but one of its aggregate: it is after the last one now.
	for name, o := range map[string]audit.Options{"in one piece": {}, "in shares": audit.Options{}.WithShares(events / 7)} {
		t.Run(name, func(t *testing.T) {
			r := w.audit(o)
			expect(t, r, "missing 77", "twice 500", fmt.Sprint("order ", events-aggregates))
			if r.Events != events {
				t.Errorf("compared %d events, want %d", r.Events, events)
			}
			for i := range r.Violations {
				if v := &r.Violations[i]; v.Topic != "orders" || v.AggregateType != "Order" || v.AggregateID != fmt.Sprint((v.Seq-1)%aggregates) || v.EventType != "OrderPaid" {
					t.Errorf("an event is named wrongly: %+v", v)
				}
			}
			if len(r.Violations) == 3 && r.Violations[2].After.Seq != events {
				t.Errorf("seq %d is after seq %d, want %d", events-aggregates, r.Violations[2].After.Seq, events)
			}
		})
	}
	if r := w.audit(audit.Options{Limit: 1}); len(r.Violations) != 1 || r.Total() != 3 {
		t.Errorf("with the limit 1 the audit names %q of %d, want 1 of 3", named(r), r.Total())
	}
	if r := w.audit(audit.Options{Since: store.Moment{Time: time.Now().Add(time.Hour)}}); r.Events != 0 || r.Total() != 0 {
		t.Errorf("an audit of the future compares %d events and names %q", r.Events, named(r))
	}
}

// Nothing of what is as it should be is named.
func TestNamesNothingElse(t *testing.T) {
	for name, test := range map[string]func(w *world){
		"limits of the stream": func(w *world) {
			w.insert(100, 10)
			w.settled(100)
			w.change(func(c *jetstream.StreamConfig) { c.MaxMsgs = 30 })
			if r := w.audit(audit.Options{}); r.Total() != 0 || r.Unchecked < 70 {
				w.t.Errorf("unchecked are %d, want 70 or more; named are %q", r.Unchecked, named(r))
			}
		},
		"a purge": func(w *world) {
			w.insert(100, 10)
			w.settled(100)
			_, s := w.js()
			if err := s.Purge(w.t.Context()); err != nil {
				w.t.Fatal(err)
			}
			if r := w.audit(audit.Options{}); r.Total() != 0 || r.Unchecked != 100 {
				w.t.Errorf("unchecked are %d, want 100; named are %q", r.Unchecked, named(r))
			}
		},
		"some messages a subject": func(w *world) {
			w.insert(100, 10)
			w.settled(100)
			w.stop()
			w.change(func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 })
			if r := w.audit(audit.Options{}); r.Total() != 0 || r.Unchecked != 90 {
				w.t.Errorf("unchecked are %d, want 90; named are %q", r.Unchecked, named(r))
			}
		},
		"a dead letter requeued": func(w *world) {
			w.sql(`insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers) values ('orders', 'Order', '1', 'OrderPaid', '', '{"Nats-Reserved": "x"}')`)
			w.insert(20, 2)
			w.settled(20)
			w.await("it is a dead letter", func() bool { return w.number(`select count(*) from outbox_dead`) == 1 })
			expect(w.t, w.audit(audit.Options{}))
			w.sql(`update outbox_dead set headers = null`)
			outbox, err := w.config.Outbox()
			if err != nil {
				w.t.Fatal(err)
			}
			if _, err := outbox.Requeue(w.t.Context(), store.DeadKey{Seq: 1}); err != nil {
				w.t.Fatal(err)
			}
			w.settled(21)
			r := w.audit(audit.Options{})
			expect(w.t, r)
			if r.Late != 1 {
				w.t.Errorf("%d events are late, want 1", r.Late)
			}
		},
		"replay with new ids": func(w *world) {
			w.insert(100, 10)
			w.settled(100)
			w.replay(true)
			w.settled(200)
			expect(w.t, w.audit(audit.Options{}))
		},
		"replay with the old ids": func(w *world) {
			w.insert(100, 10)
			w.settled(100)
			w.replay(false)
			w.settled(100)
			r := w.audit(audit.Options{})
			expect(w.t, r)
			if r.Events != 100 {
				w.t.Errorf("compared %d events, want 100", r.Events)
			}
		},
		"a replayed event that the stream had not": func(w *world) {
			w.insert(100, 10)
			w.settled(100)
			w.stop()
			w.forget()
			w.remove(50)
			expect(w.t, w.audit(audit.Options{}), "missing 50")
			w.replay(false)
			w.start()
			w.settled(100)
			r := w.audit(audit.Options{})
			expect(w.t, r)
			if r.Late != 1 {
				w.t.Errorf("%d events are late, want 1", r.Late)
			}
		},
		"the archive is emptied": func(w *world) {
			w.insert(100, 10)
			w.settled(100)
			w.sql(`truncate outbox_published_0`)
			w.insert(10, 10)
			w.settled(10)
			if r := w.audit(audit.Options{}); r.Total() != 0 || r.Events != 10 {
				w.t.Errorf("compared %d events, want 10; named are %q", r.Events, named(r))
			}
		},
		"another outbox in the stream": func(w *world) {
			other := w.beside()
			other.insert(50, 10)
			w.insert(50, 10)
			w.settled(50)
			other.settled(50)
			expect(w.t, w.audit(audit.Options{}))
			expect(w.t, other.audit(audit.Options{}))
		},
		"the stream is deleted, and comes back": func(w *world) {
			w.insert(100, 10)
			w.settled(100)
			js, _ := w.js()
			if err := js.DeleteStream(w.t.Context(), "OUTBOX"); err != nil {
				w.t.Fatal(err)
			}
			w.await("the audit names nothing", func() bool {
				r, err := w.tryAudit(audit.Options{Patience: patience})
				if err != nil { // The stream is not there, or it was replaced meanwhile.
					return false
				}
				expect(w.t, r)
				return true
			})
			w.settled(100)
			if r := w.audit(audit.Options{}); r.Total() != 0 || r.Events != 100 {
				w.t.Errorf("compared %d events, want 100; named are %q", r.Events, named(r))
			}
		},
	} {
		t.Run(name, func(t *testing.T) { test(newWorld(t)) })
	}
}

// Beside traffic, leaders that change and replays, nothing is named.
func TestBesideTraffic(t *testing.T) {
	w := newWorld(t)
	w.insert(1, 1)
	w.settled(1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	inserted := make(chan error, 1)
	go func() {
		inserted <- func() error {
			conn, err := pgx.Connect(ctx, w.dsn)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			for ctx.Err() == nil {
				_, err := conn.Exec(ctx, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select 'orders', 'Order', (n % 7)::text, 'OrderPaid', convert_to('x', 'UTF8') from generate_series(1, 20) n`)
				if err != nil && ctx.Err() == nil {
					return err
				}
			}
			return nil
		}()
	}()
	events := 0
	for i := range 12 {
		r := w.audit(audit.Options{})
		expect(t, r)
		events = max(events, r.Events)
		switch i % 4 {
		case 1:
			w.stop()
			w.start()
		case 2:
			w.replay(false)
		case 3:
			w.replay(true)
		}
	}
	cancel()
	if err := <-inserted; err != nil {
		t.Error(err)
	}
	if events < 100 {
		t.Errorf("only %d events were compared", events)
	}
}

// What the broker has lost is missing until the relay has put it back.
func TestBrokerLosesAndTheRelayPutsBack(t *testing.T) {
	w := newWorld(t)
	w.insert(100, 10)
	w.settled(100)
	w.stop()
	js, _ := w.js()
	if err := js.DeleteStream(t.Context(), "OUTBOX"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.tryAudit(audit.Options{}); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("the audit of a stream that is not there: %v", err)
	}
	// The next relay makes the stream, and puts back what was in it, while an audit looks.
	w.start()
	w.await("the stream is there", func() bool {
		_, err := js.Stream(t.Context(), "OUTBOX")
		return err == nil
	})
	r, err := w.tryAudit(audit.Options{Patience: patience})
	if errors.Is(err, audit.ErrReplaced) {
		r, err = w.tryAudit(audit.Options{Patience: patience})
	}
	if err != nil {
		t.Fatal(err)
	}
	expect(t, r)
	w.settled(100)
}

func TestRefusesAStreamWithoutHistory(t *testing.T) {
	w := newWorld(t, func(c *relay.Config) { c.Stream.NoCreate = true })
	js, err := jetstream.New(w.nats.Conn(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, Retention: jetstream.WorkQueuePolicy, Duplicates: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.tryAudit(audit.Options{}); !errors.Is(err, audit.ErrConsumed) {
		t.Errorf("the audit of a work queue: %v, want %v", err, audit.ErrConsumed)
	}
}
