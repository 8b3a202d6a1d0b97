package chaos_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

// fault is something that begins to be wrong, and ends.
type fault struct {
	where string   // What it happens to: at one time, only one thing does.
	also  []string // Where nothing else happens meanwhile, either.
	name  string

	begin, end func() // Nil for nothing.

	long time.Duration // Besides mostly a moment, it may last longer than the duplicate window, up to that.
}

func (f fault) String() string { return f.where + " " + f.name }

// kind is String without the numbers.
func (f fault) kind() string { return digits.ReplaceAllString(f.String(), "") }

var digits = regexp.MustCompile(` ?\d+`)

// lasts draws a fault's duration: mostly so little that a relay may not notice.
func (f fault) lasts(random *rand.Rand) time.Duration {
	if f.long > 0 && random.IntN(32) == 0 {
		return 3*time.Second + below(random, f.long-3*time.Second)
	}
	return 100*time.Millisecond + below(random, 300*time.Millisecond)
}

// draw returns one to four faults in different places.
func (w *world) draw() (drawn []fault) {
	taken := map[string]bool{}
	for range 1 + w.random.IntN(4) {
		f := w.fault()
		places := append([]string{f.where}, f.also...)
		if f.where == everyRelay {
			for i := range w.relays {
				places = append(places, place(i))
			}
		}
		if !slices.ContainsFunc(places, func(place string) bool { return taken[place] }) {
			for _, place := range places {
				taken[place] = true
			}
			drawn = append(drawn, f)
		}
	}
	return drawn
}

// pastLease is longer than the lease, the duplicate window and the idleness that ends an ordered batch.
const pastLease = 12 * time.Second

// fault draws one.
func (w *world) fault() fault {
	switch pick := w.random.IntN(22); pick {
	case 0, 1, 2, 3, 4:
		return w.relayFault()
	case 5, 6, 7, 8, 9, 10:
		return w.lineFault()
	case 11, 12:
		return w.postgresFault()
	case 13, 14, 15, 16:
		return w.serverFault()
	case 17:
		return w.reloadFault()
	default:
		return w.streamFault()
	}
}

const everyRelay = "every relay"

func place(relay int) string { return fmt.Sprintf("relay %d", relay) }

// relayFault befalls one relay, or all.
func (w *world) relayFault() fault {
	i := w.random.IntN(len(w.relays))
	r := w.relays[i]
	f := fault{where: place(i)}
	restart := func(r *candidate) {
		w.stop(r)
		w.revive(r)
	}
	switch w.random.IntN(9) {
	case 0, 1, 2:
		f.name, f.begin, f.end = "killed", func() { r.Kill() }, func() { w.revive(r) }
	case 3, 4, 5:
		f.name, f.begin, f.end, f.long = "frozen", func() { r.Freeze() }, func() { r.Thaw() }, pastLease
	case 6:
		f.name, f.end = "restarted gracefully", func() { restart(r) }
	case 7:
		times := 1 + w.random.IntN(3)
		f.where, f.name, f.end = everyRelay, fmt.Sprintf("hands over %d times in a row", times), func() {
			for range times {
				if leader := w.leader(); leader != nil {
					restart(leader)
				}
				harness.Pause(w.Context(), 200*time.Millisecond) // Until another leads, if one can.
			}
		}
	default:
		f.where, f.name, f.end = everyRelay, "restarted gracefully, one after the other", func() {
			for _, r := range w.relays {
				restart(r)
			}
		}
	}
	return f
}

// lineFault befalls what lies between one relay and its servers.
func (w *world) lineFault() fault {
	i := w.random.IntN(len(w.relays))
	r := w.relays[i]
	lines, what := r.nats, "NATS"
	if w.random.IntN(3) == 0 {
		lines, what = []*harness.Proxy{r.database}, "Postgres"
	}
	each := func(do func(*harness.Proxy)) func() {
		return func() {
			for _, p := range lines {
				do(p)
			}
		}
	}
	f := fault{where: fmt.Sprintf("line from relay %d to %s", i, what), end: each((*harness.Proxy).Mend)}
	switch w.random.IntN(3) {
	case 0:
		f.name, f.begin, f.long = "cut", each((*harness.Proxy).Cut), 6*time.Second
	case 1:
		f.name, f.begin, f.long = "loses all answers", each((*harness.Proxy).Mute), 6*time.Second
	default:
		// A longer delay would exceed the duplicate window, which alone protects from a plain publish that is so late.
		late := 50*time.Millisecond + below(w.random, 450*time.Millisecond)
		f.name, f.begin = "is late", each(func(p *harness.Proxy) { p.Delay(late) })
	}
	return f
}

// postgresFault befalls the database.
func (w *world) postgresFault() fault {
	f := fault{where: "Postgres"}
	if w.random.IntN(2) == 0 {
		f.name, f.begin = "ends the relays' sessions", func() {
			var ended int
			w.ask(&ended, `select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'outbox-relay%'`)
		}
		return f
	}
	f.name, f.long = "crashed", 4*time.Second
	f.begin = func() {
		if err := w.Postgres.Stop(postgres.Immediate); err != nil {
			w.Fatal(err)
		}
	}
	f.end = func() {
		if err := w.Postgres.Start(w.Context()); err != nil {
			w.Fatal(err)
		}
	}
	return f
}

func server(i int) string { return fmt.Sprintf("nats-server %d", i+1) }

// serverFault befalls a nats-server.
func (w *world) serverFault() fault {
	i := w.random.IntN(len(w.nodes))
	n := w.nodes[i]
	f := fault{where: server(i)}
	kinds := 5
	if len(w.nodes) > 1 {
		kinds = 4 // A node whose store is old is no fault that a cluster promises to survive.
	}
	switch w.random.IntN(kinds) {
	case 0, 1:
		f.name, f.begin, f.end, f.long = "killed", n.Kill, n.Revive, 5*time.Second
	case 2, 3:
		f.name, f.begin, f.end, f.long = "frozen", n.Freeze, n.Thaw, 8*time.Second
	default:
		var copied string
		f.name, f.long = "goes back to an old copy of its store", 4*time.Second
		f.begin = func() {
			n.Freeze()
			copied = n.Copy()
			n.Thaw()
		}
		f.end = func() {
			n.Kill()
			n.Restore(copied)
			n.Revive()
		}
	}
	return f
}

// streamFault befalls the stream as such; while no server answers, it does not come to pass.
func (w *world) streamFault() fault {
	f := fault{where: "stream"}
	switch w.random.IntN(4) {
	case 0:
		for i := range w.nodes { // See doc.go.
			f.also = append(f.also, server(i))
		}
		f.name, f.begin = "deleted", func() {
			ctx, cancel := context.WithTimeout(w.Context(), 500*time.Millisecond)
			defer cancel()
			_ = w.js.DeleteStream(ctx, "OUTBOX") // It may fail, as just said.
		}
	case 1:
		f.name, f.begin, f.end, f.long = "limited to less than it holds", func() { w.limit(lowered) }, func() { w.unlimit() }, 6*time.Second
	default:
		more, bytes := 1+w.random.Int64N(20), w.random.IntN(2) == 0
		f.name, f.end, f.long = "full", func() { w.unlimit() }, 4*time.Second
		f.begin = func() {
			w.limit(func(config *jetstream.StreamConfig, state jetstream.StreamState) {
				if bytes {
					config.MaxBytes = int64(state.Bytes) + more*500
				} else {
					config.MaxMsgs = int64(state.Msgs) + more
				}
			})
		}
	}
	return f
}

// reloadFault is something else that the servers do not permit for a while, since they were reloaded.
func (w *world) reloadFault() fault {
	f := fault{where: "NATS account", long: 6 * time.Second}
	switch w.random.IntN(3) {
	case 0:
		x := w.drawExtras()
		f.name, f.begin, f.end = "may not publish to "+x.subject(), func() { w.deny(x.subject()); w.write(x) }, func() { w.deny() }
	case 1:
		x := w.drawExtras()
		x.size = 8000
		f.name, f.begin, f.end = "may not publish what is large", func() { w.limitPayload(4000); w.write(x) }, func() { w.limitPayload(0) }
	default:
		f.name, f.begin, f.end = "may not store more", func() { w.limitStorage(1) }, func() { w.limitStorage(0) }
	}
	return f
}
