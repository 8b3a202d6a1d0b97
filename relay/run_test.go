package relay_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/relaytest"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// These tests run a whole relay through all of its states, in bubbles of synctest. A relay that New makes talks to sockets, on
// which a bubble cannot wait; so these are made by Assemble, of parts in memory. Run is the same.

// bubble is a relay of parts in memory that runs.
type bubble struct {
	*relay.Relay

	outbox  *relaytest.Outbox
	stream  *relaytest.Stream
	elector *relaytest.Elector
	stop    context.CancelFunc
	ended   chan error
	told    []string // What the hooks were told, in order.
}

// inBubble runs a test with a relay that has not been run.
func inBubble(t *testing.T, options relay.Options, test func(t *testing.T, b *bubble)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{outbox: relaytest.NewOutbox(), stream: relaytest.NewStream(), elector: relaytest.NewElector(), ended: make(chan error, 1)}
		tell := func(what string) { b.told = append(b.told, what) }
		options.Hooks = relay.Hooks{
			Elected:  func(int64) { tell("elected") },
			Resigned: func(relay.EndReason) { tell("resigned") },
			Paused:   func(*stream.Error) { tell("paused") },
			Resumed:  func() { tell("resumed") },
			Recovered: func(r relay.Recovered) {
				if r.Found > 0 {
					tell("found")
				}
				if r.Lost > 0 {
					tell("lost")
				}
			},
		}
		var err error
		b.Relay, err = relay.Assemble(relay.Parts{Store: b.outbox, Publisher: b.stream.Publisher(), Elector: b.elector}, options)
		if err != nil {
			t.Fatal(err)
		}
		test(t, b)
	})
}

// run starts the relay. It is stopped when the test ends, if not before.
func (b *bubble) run(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	b.stop = stop
	go func() { b.ended <- b.Run(ctx) }()
	t.Cleanup(stop)
}

// end stops the relay, and waits for the end of Run.
func (b *bubble) end(t *testing.T) {
	t.Helper()
	b.stop()
	select {
	case err := <-b.ended:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(relay.DefaultShutdownTimeout + time.Second):
		t.Fatal("Run does not return")
	}
}

// after lets some time pass, and verifies the state then: a relay that is not ready says why, and one that is says nothing.
func (b *bubble) after(t *testing.T, d time.Duration, state relay.State, trouble string) relay.Status {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
	s := b.Status()
	if s.State != state || (trouble == "") != (s.Trouble == "") || !strings.Contains(s.Trouble, trouble) || s.Ready() != (trouble == "") {
		t.Errorf("after %v: %+v, ready %v; want state %v, and %q as the trouble", d, s, s.Ready(), state, trouble)
	}
	return s
}

// stored verifies which events are stored, once each and in order, and that none is pending.
func (b *bubble) stored(t *testing.T, want ...[]int64) {
	t.Helper()
	if got, want := b.stream.Stored(), slices.Concat(want...); !slices.Equal(got, want) {
		t.Errorf("stored are %v, want %v", got, want)
	}
	if pending := b.outbox.Pending(); len(pending) > 0 {
		t.Errorf("pending are %v", pending)
	}
}

func orders(aggregates ...string) (events []store.Event) {
	for _, a := range aggregates {
		events = append(events, store.Event{Topic: "orders", AggregateType: "Order", AggregateID: a, EventType: "OrderPlaced"})
	}
	return events
}

var errAway = errors.New("it is away")

// All of a relay's life: it waits for Postgres and NATS, leads, publishes, pauses, goes on, loses the lead, gets it back, and
// stops; and says why in each state.
func TestRun(t *testing.T) {
	inBubble(t, relay.Options{}, func(t *testing.T, b *bubble) {
		t.Helper()
		b.outbox.Fail(errAway)
		b.stream.Fail(errors.New("no servers available"))
		first := b.outbox.Insert(orders("a", "b", "a")...)
		b.after(t, 0, relay.Campaigning, "its tables are not ready")
		b.run(t)
		b.after(t, time.Minute, relay.Campaigning, "it is away")
		b.outbox.Fail(nil)
		b.after(t, 10*time.Second, relay.Campaigning, "no servers available")
		if c := b.outbox.Candidacy(); c.Fit || !strings.Contains(c.Reason, "no servers available") {
			t.Errorf("it tells the others %+v", c)
		}
		if len(b.told) > 0 {
			t.Errorf("before it can lead it tells %q", b.told)
		}
		b.stream.Fail(nil)
		if s := b.after(t, 5*time.Second, relay.Leading, ""); s.Term != 1 || s.Published != 3 || !s.Publishing {
			t.Errorf("the leader's status is %+v", s)
		}
		b.stored(t, first)

		b.stream.Fail(errors.New("connection reset"))
		second := b.outbox.Insert(orders("a")...)
		if s := b.after(t, 10*time.Second, relay.Leading, "connection reset"); s.Publishing {
			t.Errorf("without NATS the status is %+v", s)
		}
		if got := b.outbox.Reported(); !strings.Contains(got, "connection reset") {
			t.Errorf("the outbox is told %q", got)
		}
		b.stream.Fail(nil)
		if s := b.after(t, 5*time.Second, relay.Leading, ""); s.Term != 1 || s.Published != 4 {
			t.Errorf("after the outage the status is %+v", s)
		}
		if got := b.outbox.Reported(); got != "" {
			t.Errorf("after the outage the outbox is told %q", got)
		}

		b.elector.OthersLead(true)
		third := b.outbox.Insert(orders("c")...)
		if s := b.after(t, time.Minute, relay.Campaigning, ""); !s.Standby || !s.Fit || s.Term != 0 {
			t.Errorf("while another leads the status is %+v", s)
		}
		if pending := b.outbox.Pending(); !slices.Equal(pending, third) {
			t.Errorf("a standby has published: pending are %v", pending)
		}
		b.elector.OthersLead(false)
		if s := b.after(t, 5*time.Second, relay.Leading, ""); s.Term != 2 || s.Published != 5 {
			t.Errorf("elected again, the status is %+v", s)
		}
		b.stored(t, first, second, third)

		b.end(t)
		if s := b.Status(); s.State != relay.Stopped || s.Trouble == "" || s.Ready() || s.Alive() {
			t.Errorf("after Run the status is %+v", s)
		}
		if want := []string{"elected", "paused", "resumed", "resigned", "elected", "resigned"}; !slices.Equal(b.told, want) {
			t.Errorf("told are %q, want %q", b.told, want)
		}
		b.run(t)
		b.after(t, 5*time.Second, relay.Leading, "")
		b.end(t)
	})
}

// A leader whose Postgres goes away campaigns, says why, and goes on in another term.
func TestRunWithoutPostgresForAWhile(t *testing.T) {
	inBubble(t, relay.Options{}, func(t *testing.T, b *bubble) {
		t.Helper()
		b.run(t)
		b.after(t, time.Second, relay.Leading, "")
		b.outbox.Fail(errAway)
		b.after(t, time.Minute, relay.Campaigning, "it is away")
		b.outbox.Fail(nil)
		seqs := b.outbox.Insert(orders("a", "b")...)
		if s := b.after(t, 15*time.Second, relay.Leading, ""); s.Term < 2 {
			t.Errorf("the status is %+v, want another term", s)
		}
		b.stored(t, seqs)
		b.end(t)
	})
}

// An acknowledgement is lost: the relay finds in the stream what is stored, and publishes nothing twice, nor out of order.
func TestRunWithALostAck(t *testing.T) {
	inBubble(t, relay.Options{}, func(t *testing.T, b *bubble) {
		t.Helper()
		b.run(t)
		b.after(t, time.Second, relay.Leading, "")
		b.stream.LoseAck()
		seqs := b.outbox.Insert(orders("a", "a", "a")...)
		b.after(t, 10*time.Second, relay.Leading, "")
		b.stored(t, seqs)
		if !slices.Contains(b.told, "found") {
			t.Errorf("told are %q, want that an event was found in the stream", b.told)
		}
		b.end(t)
	})
}

// The broker loses what it has acknowledged, while the relay leads and while it does not run: it comes back from the archive.
func TestRunWithALosingBroker(t *testing.T) {
	inBubble(t, relay.Options{}, func(t *testing.T, b *bubble) {
		t.Helper()
		b.run(t)
		b.after(t, time.Second, relay.Leading, "")
		first := b.outbox.Insert(orders("a", "b")...)
		b.after(t, time.Minute, relay.Leading, "")
		b.stream.Lose(1)
		b.after(t, time.Minute, relay.Leading, "")
		b.stored(t, first)
		second := b.outbox.Insert(orders("a")...)
		b.after(t, time.Minute, relay.Leading, "")
		b.end(t)
		b.stream.Lose(2) // The last fence, and the event before it.
		b.run(t)
		b.after(t, time.Minute, relay.Leading, "")
		b.stored(t, first, second)
		if n := len(slices.DeleteFunc(b.told, func(what string) bool { return what != "lost" })); n != 2 {
			t.Errorf("events were lost %d times, as it says; want twice", n)
		}
		b.end(t)
	})
}

// An event that the broker refuses becomes a dead letter. Only its aggregate waits until then.
func TestRunWithARefusedEvent(t *testing.T) {
	inBubble(t, relay.Options{MaxAttempts: 3, RetryBackoff: time.Second}, func(t *testing.T, b *bubble) {
		t.Helper()
		b.stream.Refuse(func(e *stream.Event) *stream.Error {
			if e.Seq != 1 {
				return nil
			}
			return &stream.Error{Fault: stream.FaultRow, Err: errors.New("refused"), Refused: true}
		})
		b.run(t)
		b.after(t, time.Second, relay.Leading, "")
		b.outbox.Insert(orders("a", "a", "b")...)
		b.after(t, 500*time.Millisecond, relay.Leading, "")
		if got := b.stream.Stored(); !slices.Equal(got, []int64{3}) {
			t.Errorf("before it is given up, stored are %v, want the other aggregate's", got)
		}
		b.after(t, 10*time.Second, relay.Leading, "")
		b.stored(t, []int64{3, 2})
		if dead := b.outbox.Dead(); len(dead) != 1 || dead[0].Seq != 1 {
			t.Errorf("dead letters are %v, want event 1", dead)
		}
		b.end(t)
	})
}

// Who leads and cannot publish makes way for a standby that could, and says so.
func TestRunMakesWay(t *testing.T) {
	inBubble(t, relay.Options{}, func(t *testing.T, b *bubble) {
		t.Helper()
		b.run(t)
		b.after(t, time.Second, relay.Leading, "")
		b.outbox.SetStandbys(1)
		b.stream.Fail(errAway)
		b.after(t, 10*time.Second, relay.Campaigning, "it is away")
		if want := []string{"elected", "paused", "resigned"}; !slices.Equal(b.told, want) {
			t.Errorf("told are %q, want %q", b.told, want)
		}
		b.stream.Fail(nil)
		b.after(t, 20*time.Second, relay.Leading, "")
		b.end(t)
	})
}

// A person pauses the outbox and gives the all-clear: nothing is published meanwhile, and the status says that, and why.
func TestRunPausedByHand(t *testing.T) {
	inBubble(t, relay.Options{}, func(t *testing.T, b *bubble) {
		t.Helper()
		b.run(t)
		b.after(t, time.Second, relay.Leading, "")
		b.outbox.Pause("the consumers are being moved")
		time.Sleep(5 * time.Second)
		seqs := b.outbox.Insert(orders("a", "b")...)
		if s := b.after(t, time.Minute, relay.Leading, ""); s.Pause == nil || s.Pause.Reason != "the consumers are being moved" || s.Published > 0 {
			t.Errorf("while it is paused the status is %+v", s)
		}
		if pending := b.outbox.Pending(); !slices.Equal(pending, seqs) {
			t.Errorf("while it is paused, pending are %v, want %v", pending, seqs)
		}
		b.outbox.Resume()
		if s := b.after(t, 5*time.Second, relay.Leading, ""); s.Pause != nil || s.Published != 2 {
			t.Errorf("after the pause the status is %+v", s)
		}
		b.stored(t, seqs)
		b.end(t)
	})
}
