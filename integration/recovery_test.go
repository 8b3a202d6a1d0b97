package integration_test

import (
	"regexp"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// shortWindow is a duplicate window so short that it protects from nothing here.
const shortWindow = "OUTBOX_DUPLICATE_WINDOW=3s"

// beyondWindow is longer than that.
const beyondWindow = 3500 * time.Millisecond

// A relay that was killed between publishing and settling, and that starts again after the stream has forgotten the ids, reads
// the stream back.
func TestKilledBeforeSettling(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn, holder := w.Connect(), w.Connect()
	const rows = 2000
	b := w.Backlog().Migrate().Add(conn, rows)
	for range 2 {
		w.Exec(holder, `begin; select from outbox for update`) // Rows can be read and not removed.
		relay := w.Relay(shortWindow)
		b.Reaches(rows)
		relay.Kill()
		w.EndSessions(conn) // Otherwise what it asked for is still done.
		w.Exec(holder, `rollback`)
		if waiting(w, conn) != rows {
			t.Fatal("something was settled: this test shows nothing")
		}
		harness.Pause(t.Context(), beyondWindow) // Until the ids are forgotten.
	}
	w.Relay(shortWindow)
	b.Audit(conn)
}

// A broker that is frozen for longer than the window, with events on their way to it, stores each once.
func TestFrozenBrokerPastTheWindow(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	w.Relay(shortWindow).Leads()
	conn := w.Connect()
	p := w.Produce(4)
	for round := range int64(2) {
		p.Wrote(100 + 200*round)
		w.NATS.Freeze()
		harness.Pause(t.Context(), 8*time.Second) // The freeze itself.
		w.NATS.Thaw()
		w.Settled(conn, 40*time.Second)
	}
	p.Audit()
}

// A leader that is frozen in the middle of a backlog, and thaws when its sessions are gone and the ids forgotten, stores
// nothing twice.
func TestFrozenLeaderPastTheWindow(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	conn := w.Connect()
	const rows = 30_000
	b := w.Backlog().Migrate().Add(conn, rows)
	frozen := w.Relay(shortWindow)
	b.Reaches(rows / 10)
	frozen.Freeze()
	w.EndSessions(conn)
	standby := w.Relay(shortWindow)
	standby.Leads()
	b.Reaches(rows)
	harness.Pause(t.Context(), 8*time.Second) // So long it is frozen.
	frozen.Thaw()
	b.Add(conn, rows)
	b.Audit(conn)
}

// Events that the broker acknowledged and then lost come back from the archive, in order, before anything newer.
func TestBrokerForgets(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	relay := w.Relay()
	relay.Leads()
	p := w.Produce(8)
	p.Wrote(200)
	for range 2 {
		w.NATS.Freeze()
		copied := w.NATS.Copy()
		w.NATS.Thaw()
		before := w.StoredIn(w.JetStream(), "OUTBOX")
		harness.Pause(t.Context(), 3*time.Second) // At least so old the copy gets.
		harness.Eventually(t, 30*time.Second, "there is something to lose", func() bool {
			return w.StoredIn(w.JetStream(), "OUTBOX") >= before+50
		})
		lost := w.StoredIn(w.JetStream(), "OUTBOX") - before
		w.NATS.Kill()
		w.NATS.Restore(copied)
		w.NATS.Start()
		if t.Logf("%d events were lost", lost); lost < 50 {
			t.Error("that is too few to show anything")
		}
	}
	p.Wrote(1000)
	p.Audit()
	if !relay.Said("lost_by_the_broker_and_published_again=") {
		t.Error("the relay did not say what happened")
	}
}

// A stream that was deleted comes back with what the archive has of it.
func TestDeletedStreamComesBack(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	w.Relay().Leads()
	p := w.Produce(4)
	p.Wrote(200)
	if err := w.JetStream().DeleteStream(t.Context(), "OUTBOX"); err != nil {
		t.Fatal(err)
	}
	p.Wrote(400)
	p.Audit()
}

// A stream that is created anew or restored from a backup, within milliseconds and while a relay is connected, has every
// aggregate in order. If the backup has everything, the relay reports no loss.
func TestReplacedStream(t *testing.T) {
	for name, tt := range map[string]struct{ restored, complete bool }{
		"created anew": {}, "restored": {restored: true}, "restored whole": {restored: true, complete: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
			relay := w.Relay("OUTBOX_DUPLICATE_WINDOW=2s")
			relay.Leads()
			p := w.ProduceLoad(harness.Load{Writers: 3, Pause: 20 * time.Millisecond})
			p.Wrote(200)
			js, conn := w.JetStream(), w.Connect()
			var b *harness.Backup
			backup := func() {
				t.Helper()
				var err error
				if b, err = harness.NewBackup(t.Context(), js, "OUTBOX"); err != nil {
					t.Fatal(err)
				}
			}
			backup()
			harness.Pause(t.Context(), 300*time.Millisecond) // In which producers commit what the backup lacks.
			p.Rest(func() {
				w.Settled(conn, 10*time.Second)
				if tt.complete {
					backup()
				}
				stream, err := js.Stream(t.Context(), "OUTBOX")
				if err != nil {
					t.Fatal(err)
				}
				harness.Eventually(t, 20*time.Second, "the stream is replaced", func() bool { // The relay may be faster, and create it.
					err := js.DeleteStream(t.Context(), "OUTBOX")
					switch {
					case err != nil:
					case tt.restored:
						err = b.Restore(t.Context(), js, "OUTBOX")
					default:
						_, err = js.CreateStream(t.Context(), stream.CachedInfo().Config)
					}
					return err == nil
				})
			})
			p.Wrote(300)
			p.Audit()
			relay.WaitFor(regexp.MustCompile(`publishing (again)`))
			if tt.complete && relay.Said("lost more than the archive") {
				t.Error("the relay says that something is lost")
			}
		})
	}
}

// From a stream whose messages vanish when they are consumed nothing can be read back, so only the duplicate window protects.
// But events flow, also after a crash and in batches.
func TestConsumedStream(t *testing.T) {
	t.Parallel()
	for name, retention := range map[string]jetstream.RetentionPolicy{"work queue": jetstream.WorkQueuePolicy, "interest": jetstream.InterestPolicy} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
			conn, js := w.Connect(), w.JetStream()
			stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
				Name: "OUTBOX", Subjects: []string{"outbox.>"}, Retention: retention, Duplicates: 10 * time.Minute, AllowBatchPublish: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			consumer, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "all", AckPolicy: jetstream.AckExplicitPolicy})
			if err != nil {
				t.Fatal(err)
			}
			const rows = 500
			b := w.Backlog().Migrate()
			seen := make(map[string]int)
			for round := range 3 {
				b.Add(conn, rows)
				relay := w.Relay()
				relay.WaitFor(anything, "a guarantee is weakened", "retention")
				w.Settled(conn, 20*time.Second)
				relay.Kill()
				for len(seen) < (round+1)*rows {
					batch, err := consumer.Fetch(rows, jetstream.FetchMaxWait(5*time.Second))
					if err != nil {
						t.Fatal(err)
					}
					got := 0
					for m := range batch.Messages() {
						got++
						seen[string(m.Data())]++
						if err := m.Ack(); err != nil {
							t.Fatal(err)
						}
					}
					if got == 0 {
						t.Fatalf("%d of %d events arrived", len(seen), (round+1)*rows)
					}
				}
			}
			for number, times := range seen {
				if times != 1 {
					t.Errorf("number %s was consumed %d times", number, times)
				}
			}
		})
	}
}

// Somebody meant a purge: nothing that it removed comes back.
func TestPurgedStreamStaysPurged(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	relay := w.Relay()
	relay.Leads()
	conn, js := w.Connect(), w.JetStream()
	b := w.Backlog()
	b.Add(conn, 1000)
	b.Reaches(1000)
	w.Settled(conn, 10*time.Second)
	stream, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	relay.Kill()
	w.Relay().Leads() // It reads the stream back.
	w.Exec(conn, insert, "a", []byte("1001"))
	harness.Eventually(t, 10*time.Second, "the event arrives", func() bool { return w.StoredIn(js, "OUTBOX") > 0 })
	w.Settled(conn, 10*time.Second)
	if got := stored(w); len(got) != 1 || got[0] != "1001" {
		t.Errorf("the stream holds %d events, want only the one that was published since", len(got))
	}
}
