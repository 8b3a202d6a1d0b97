package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/consumer"
)

func TestEachEffectOnceAndInOrder(t *testing.T) {
	for _, batch := range []int{1, 50} {
		t.Run(fmt.Sprintf("batches of %d", batch), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			const events, aggregates = 2000, 40
			config := w.config()
			config.Batch = batch
			w.publish(1, events/2, aggregates)
			c, stop := w.start(config)
			w.publish(events/2+1, events, aggregates)
			w.await(events)
			stop()
			w.audit(events)
			if s := c.Status(); s.Applied != events || s.Skipped != 0 || s.State != consumer.Stopped {
				t.Errorf("got %+v, want %d applied and none skipped", s, events)
			}
			if rows := w.count(`select count(*) from outbox_inbox`); rows != aggregates {
				t.Errorf("the inbox has %d rows, want one for each of %d aggregates", rows, aggregates)
			}
			if at := w.count(`select sequence from outbox_inbox_position`); at != events {
				t.Errorf("the position is %d, want %d", at, events)
			}
		})
	}
}

// After a stop the next one goes on where the first ended.
func TestGoesOnWhereItEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(1, 500, 10)
	_, stop := w.start(w.config())
	w.await(500)
	stop()
	w.publish(501, 600, 10)
	second, _ := w.start(w.config())
	w.await(600)
	w.audit(600)
	if s := second.Status(); s.Skipped != 0 {
		t.Errorf("%d events came again after an orderly stop", s.Skipped)
	}
}

// What comes again is skipped: because the position is an older one, or because the stream has it again.
func TestWhatComesAgainIsSkipped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(1, 200, 10)
	_, stop := w.start(w.config())
	w.await(200)
	stop()
	w.exec(`update outbox_inbox_position set sequence = 0`)
	w.publish(101, 200, 10) // Put back by a relay, or replayed.
	w.publish(201, 210, 10)
	c, _ := w.start(w.config())
	w.await(210)
	w.eventually("nothing is pending", func() bool { return c.Status().Pending == 0 })
	w.audit(210)
	if s := c.Status(); s.Skipped != 300 {
		t.Errorf("%d skipped, want 300", s.Skipped)
	}
}

// Transactions that were open at the same time commit in another order than that of their seqs. None is taken for one that
// was handled; and what comes again is still skipped.
func TestLateSeqs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const aggregates, events = 3, 300
	order := rand.Perm(events)
	slices.SortStableFunc(order, func(a, b int) int { return a/15 - b/15 }) // Late by 15 events at most.
	publish := func() {
		for _, seq := range order {
			for aggregate := range aggregates {
				w.store(event(int64(seq*aggregates+aggregate+1), fmt.Sprint(aggregate)))
			}
		}
	}
	publish()
	c, _ := w.start(w.config())
	w.await(aggregates * events)
	publish()
	w.eventually("all were skipped or parked", func() bool { s := c.Status(); return s.Skipped+s.Parked == aggregates*events })
	if got := w.count(`select count(distinct seq) from journal`); got != aggregates*events {
		t.Errorf("effects of %d events, want %d", got, aggregates*events)
	}
	if got := w.count(`select count(*) from journal`); got != aggregates*events {
		t.Errorf("%d effects, want %d", got, aggregates*events)
	}
}

// An event comes long after later ones of its aggregate, as a dead letter does that is requeued. The inbox cannot tell whether it
// was handled; so it is parked, and can be applied. If it comes again because the position is an older one, it is skipped.
func TestStale(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(2, 101, 1)
	w.publish(1, 1, 1)
	w.publish(102, 200, 1)
	c, stop := w.start(w.config())
	w.await(199)
	parked, err := c.Parked(t.Context(), 10)
	if err != nil || len(parked) != 1 || !strings.Contains(parked[0].Reason, "whether it was handled") {
		t.Fatalf("parked are %+v, %v; want the late event", parked, err)
	}
	stop()
	w.exec(`update outbox_inbox_position set sequence = 0`)
	again, _ := w.start(w.config())
	w.eventually("all came again", func() bool { s := again.Status(); return s.Position == 200 })
	if s := again.Status(); s.Applied != 0 || s.Skipped != 200 {
		t.Errorf("got %+v, want 200 skipped", s)
	}
	if err := again.Redo(t.Context(), parked[0].Number); err != nil {
		t.Error(err)
	}
	if n := w.count(`select count(distinct seq) from journal`); n != 200 {
		t.Errorf("effects of %d events, want 200", n)
	}
}

// The stream is deleted and made anew, with lower sequences: seqs go on.
func TestStreamMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(1, 100, 10)
	c, _ := w.start(w.config())
	w.await(100)
	if err := w.js.DeleteStream(t.Context(), "OUTBOX"); err != nil {
		t.Fatal(err)
	}
	w.createStream()
	w.publish(91, 150, 10)
	w.await(150)
	w.audit(150)
	if s := c.Status(); s.Skipped != 10 {
		t.Errorf("%d skipped, want the 10 that had been handled", s.Skipped)
	}
}

// The stream loses its latest messages, which the relay stores again with others before them, at the same sequences.
func TestStreamPutBack(t *testing.T) {
	for name, running := range map[string]bool{"while it runs": true, "while it does not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.publish(1, 100, 10)
			w.nats.Stop()
			saved := w.copyOfStore()
			w.nats.Restart()
			w.publish(101, 150, 10)
			_, stop := w.start(w.config())
			w.await(150)
			if !running {
				stop()
			}
			w.nats.Stop()
			w.putBack(saved)
			w.nats.Restart()
			w.publish(111, 170, 10)
			if !running {
				w.start(w.config())
			}
			w.await(170)
			w.audit(170)
		})
	}
}

// A handler that fails is called again with the same event, and only its lane waits.
func TestAFailingEventHoldsItsLane(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config := w.config()
	var healed atomic.Bool
	config.Handle = func(ctx context.Context, tx pgx.Tx, e consumer.Event) error {
		if err := journal(ctx, tx, e); err != nil {
			return err
		}
		if e.Seq == 3 && !healed.Load() {
			return errors.New("not yet")
		}
		return nil
	}
	w.publish(1, 200, 100)
	c, _ := w.start(config)
	w.await(200 * 6 / 8) // All but one lane's, about.
	w.eventually("the event is held", func() bool { return len(c.Status().Held) == 1 })
	held := c.Status().Held[0]
	if held.Seq != 3 || held.AggregateID != "3" || held.Reason != "not yet" {
		t.Errorf("held is %+v, want seq 3", held)
	}
	if n := w.count(`select count(*) from journal where aggregate = '3'`); n > 0 {
		t.Errorf("%d effects of the aggregate are committed", n)
	}
	healed.Store(true)
	w.await(200)
	w.audit(200)
}

// What does not get better is parked, whole and with its reason, and can be done later.
func TestParked(t *testing.T) {
	for name, c := range map[string]struct {
		attempts int
		fail     func() error
		want     string
	}{
		"permanent":       {0, func() error { return fmt.Errorf("no account: %w", consumer.Permanent(errors.New("never"))) }, "never"},
		"three attempts":  {3, func() error { return errors.New("bad\x00luck") }, `bad\0luck`},
		"a panic":         {2, func() error { panic("oh") }, "the handler panics: oh"},
		"commits, itself": {1, nil, consumer.ErrNotYours.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			config := w.config()
			config.MaxAttempts = c.attempts
			var healed atomic.Bool
			config.Handle = func(ctx context.Context, tx pgx.Tx, e consumer.Event) error {
				switch {
				case e.Seq != 7 || healed.Load():
					return journal(ctx, tx, e)
				case c.fail == nil:
					return tx.Commit(ctx)
				}
				return c.fail()
			}
			w.publish(1, 20, 5)
			consumer, _ := w.start(config)
			w.await(19)
			w.eventually("it is parked", func() bool { return w.count(`select count(*) from outbox_parked`) == 1 })
			parked, err := consumer.Parked(t.Context(), 0)
			if err != nil || len(parked) != 1 || !strings.Contains(parked[0].Reason, c.want) || string(parked[0].Data) != "7" {
				t.Fatalf("got %+v, %v; want one with the reason %q", parked, err, c.want)
			}
			healed.Store(true)
			if err := consumer.Redo(t.Context(), parked[0].Number); err != nil {
				t.Fatal(err)
			}
			if n := w.count(`select count(*) from journal where seq = 7`); n != 1 {
				t.Errorf("%d effects of the parked event, want 1", n)
			}
			if n := w.count(`select count(*) from outbox_parked`); n != 0 {
				t.Errorf("%d are parked still", n)
			}
		})
	}
}

// A message that is meant to be an event and cannot be decoded is parked; one that is none is passed over.
func TestDamagedMessages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, msg := range []*nats.Msg{
		{Subject: "outbox.x", Header: nats.Header{stream.HeaderSeq: {"one"}}, Data: []byte("damaged")},
		{Subject: "outbox.x", Data: []byte("no event")},
		{Subject: "outbox.x", Header: nats.Header{stream.HeaderSeq: {"1"}, stream.HeaderMsgID: {"\x00\xff"}}},
	} {
		if _, err := w.js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	w.publish(1, 10, 5)
	c, stop := w.start(w.config())
	w.await(10)
	w.eventually("two are parked", func() bool { return c.Status().Parked == 2 })
	stop()
	w.audit(10)
	if at := w.count(`select sequence from outbox_inbox_position`); at != 13 {
		t.Errorf("the position is %d, want 13", at)
	}
}

// Aggregates may have any text for a name.
func TestAnyAggregate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	names := []string{"", "a b", "a.b", "ä\n", strings.Repeat("long", 2000), "%-"}
	for i, name := range names {
		w.store(event(int64(i+1), name))
	}
	w.start(w.config())
	w.await(len(names))
	w.audit(len(names))
	if rows := w.count(`select count(*) from outbox_inbox`); rows != len(names) {
		t.Errorf("the inbox has %d rows, want %d", rows, len(names))
	}
}

// A deadlock with others is no fault of an event's: it is not parked for it.
func TestDeadlocksCountAsNoAttempt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`create table account (id int primary key, balance int default 0); insert into account values (0), (1)`)
	config := w.config()
	config.MaxAttempts = 1
	config.Handle = func(ctx context.Context, tx pgx.Tx, e consumer.Event) error {
		for _, id := range []int64{e.Seq % 2, (e.Seq + 1) % 2} {
			if _, err := tx.Exec(ctx, `update account set balance = balance + 1 where id = $1`, id); err != nil {
				return err
			}
			time.Sleep(time.Millisecond) // So that others come between.
		}
		return journal(ctx, tx, e)
	}
	w.publish(1, 20, 10)
	c, _ := w.start(config)
	w.await(20)
	if s := c.Status(); s.Parked > 0 || s.Retries > 0 {
		t.Errorf("got %+v, want that nothing failed", s)
	}
}

// Savepoints are the handler's own, and what it does inside of them is undone or committed as it says.
func TestSavepoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config := w.config()
	config.Handle = func(ctx context.Context, tx pgx.Tx, e consumer.Event) error {
		if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `insert into nothing values (1)`)
			return err
		}); err == nil {
			return errors.New("want an error")
		}
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return journal(ctx, tx, e) })
	}
	w.publish(1, 20, 5)
	w.start(config)
	w.await(20)
	w.audit(20)
}

// A handler that hides the failure of a statement has no effect, and so it failed.
func TestHiddenFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config := w.config()
	config.MaxAttempts = 2
	config.Handle = func(ctx context.Context, tx pgx.Tx, _ consumer.Event) error {
		_, _ = tx.Exec(ctx, `insert into nothing values (1)`)
		return nil
	}
	w.publish(1, 1, 1)
	c, _ := w.start(config)
	w.eventually("it is parked", func() bool { return c.Status().Parked == 1 })
	if s := c.Status(); s.Applied != 0 {
		t.Errorf("got %+v, want nothing applied", s)
	}
}

// The broker and Postgres go away and come back.
func TestOutages(t *testing.T) {
	t.Parallel()
	server := storetest.Start(t)
	w := newWorld(t)
	w.pool = newPool(t, server.DSN())
	w.exec(`create table journal (place bigint generated always as identity, aggregate text, seq bigint, sequence bigint)`)
	w.start(w.config())
	w.publish(1, 100, 10)
	w.await(100)

	w.nats.Stop()
	w.nats.Restart()
	w.publish(101, 200, 10)
	w.await(200)

	if err := server.Stop("immediate"); err != nil {
		t.Fatal(err)
	}
	w.publish(201, 300, 10)
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.eventually("300 effects", func() bool {
		var n int
		err := w.pool.QueryRow(t.Context(), `select count(*) from journal`).Scan(&n)
		return err == nil && n == 300
	})
	w.audit(300)
}

// The standby takes over at once when the leader stops.
func TestHandOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, stop := w.start(w.config())
	w.publish(1, 10, 5)
	w.await(10)
	standby := w.config()
	standby.Pool = newPool(t, w.dsn)
	second, _ := w.start(standby)
	w.eventually("the second one stands by", func() bool { return second.Status().State == consumer.StandingBy })
	stop()
	w.publish(11, 20, 5)
	w.await(20)
	w.audit(20)
	if s := second.Status(); s.State != consumer.Consuming || s.Applied != 10 {
		t.Errorf("got %+v, want that it has applied 10", s)
	}
}

// Consumers with different names each get every event.
func TestNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(1, 10, 5)
	for _, name := range []string{"one", "two"} {
		config := w.config()
		config.Name = name
		w.start(config)
	}
	w.await(20)
	if n := w.count(`select count(*) from outbox_inbox`); n != 10 {
		t.Errorf("the inbox has %d rows, want 5 for each", n)
	}
}

// It waits for a stream that does not exist yet, and says so.
func TestWaitsForTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.js.DeleteStream(t.Context(), "OUTBOX"); err != nil {
		t.Fatal(err)
	}
	c, _ := w.start(w.config())
	w.eventually("it says why it waits", func() bool {
		s := c.Status()
		return s.State == consumer.Waiting && strings.Contains(s.Reason, "does not exist yet")
	})
	w.createStream()
	w.publish(1, 10, 5)
	w.await(10)
}

func TestConfigurations(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), "postgres://localhost/x?pool_max_conns=1")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	_, err = consumer.New(consumer.Config{Pool: pool, Lanes: -1, Batch: 51, MaxPending: -1, MaxAttempts: -1, StopTimeout: -time.Second})
	for _, want := range []string{"Name", "one connection", "JetStream is missing", "Handle is missing", "Lanes -1", "Batch 51", "MaxPending -1", "MaxAttempts -1", "a duration is negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// Two that both believe to lead get in each other's way, and no effect is there twice or out of order.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const events, aggregates = 2000, 7
	var running sync.WaitGroup
	defer running.Wait()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range 3 {
		config := w.config()
		config.Pool = newPool(t, w.dsn)
		c, err := consumer.New(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
		running.Go(func() { _ = c.Lead(ctx) })
	}
	w.publish(1, events, aggregates)
	w.await(events)
	w.audit(events)
}
