package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// progressWithin is how long after the last fault all must be settled that had been committed by then. Most of it is for
// a leader that thaws after its lease, and for slow machines.
const progressWithin = 45 * time.Second

// world is the servers and relays of one seed.
type world struct {
	*harness.World

	random    *rand.Rand
	settings  []string
	relays    []*candidate
	nodes     []*harness.NATS
	producers *harness.Producers
	pool      *pgxpool.Pool // Past all proxies.
	js        jetstream.JetStream
	counts    map[string]int // How often each fault was drawn.
	hostility *rand.Rand     // Nil if nobody writes hostile rows. Apart from the faults', which stay the same.
	rows      int            // Hostile ones written.

	extras      []uuid.UUID // Events that trials and faults have added.
	extraTopics int         // How many topics they are of.
}

// candidate is a relay's process and its lines.
type candidate struct {
	*harness.Process

	database *harness.Proxy
	nats     []*harness.Proxy // One for each node.
	settings []string
}

func newWorld(t *testing.T, seed int64) *world {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	clustered := seed == cluster || seed != single && random.IntN(3) == 0
	w := &world{
		World:  harness.NewWorld(t, harness.Options{Cluster: clustered, Permissions: true}),
		random: random,
		counts: make(map[string]int),
		settings: []string{
			fmt.Sprintf("OUTBOX_DUPLICATE_WINDOW=%dms", 2000+random.IntN(1000)),
			fmt.Sprintf("OUTBOX_ACK_TIMEOUT=%dms", 300+random.IntN(1500)),
			"OUTBOX_SHUTDOWN_TIMEOUT=1s",
			"OUTBOX_MAX_ATTEMPTS=1", // An outage must not cost any.
			"OUTBOX_RETAIN=30m",     // Longer than a world lives.
			"OUTBOX_LOGGING_LEVEL=info",
		},
	}
	w.nodes = []*harness.NATS{w.NATS}
	if clustered {
		w.nodes = w.Cluster.Nodes
	}
	w.js = w.JetStream()
	var err error
	if w.pool, err = pgxpool.New(t.Context(), w.DSN); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.pool.Close)
	w.CommandWith(w.settings, "migrate")
	if *hostile {
		w.hostility = rand.New(rand.NewPCG(uint64(seed), 1))
		if w.hostility.IntN(2) == 0 {
			w.WithoutChecks(w.Connect())
		}
	}
	for range 2 + random.IntN(5)/4 { // Now and then, three.
		r := &candidate{database: harness.NewProxy(t, fmt.Sprintf("127.0.0.1:%d", w.Postgres.Port()))}
		var urls []string
		for _, n := range w.nodes {
			p := harness.NewProxy(t, n.Address())
			r.nats = append(r.nats, p)
			urls = append(urls, fmt.Sprintf("nats://%s:%[1]s@%s", harness.RelayUser, p.Address()))
		}
		r.settings = append(slices.Clone(w.settings), "OUTBOX_NATS_URL="+strings.Join(urls, ","),
			"OUTBOX_DATABASE_DSN="+strings.Replace(w.DSN, fmt.Sprintf("127.0.0.1:%d", w.Postgres.Port()), r.database.Address(), 1))
		w.relays = append(w.relays, r)
		w.revive(r)
	}
	t.Logf("seed %d: %d relays, %d nats-servers, %v", seed, len(w.relays), len(w.nodes), w.settings[:2])
	w.producers = w.ProduceLoad(harness.Load{Writers: 3, Rollbacks: 25, Bursts: 2, Pause: 20 * time.Millisecond})
	w.producers.Others = true
	w.heals()
	return w
}

// revive starts a relay and does not wait for it.
func (w *world) revive(r *candidate) { r.Process = w.Launch(r.settings...) }

// stop asks a relay to end. It must exit with 0.
func (w *world) stop(r *candidate) {
	w.Helper()
	r.WaitFor(starting) // Before that, nobody listens.
	if code := r.Stop(); code != 0 {
		w.Errorf("exit code %d after SIGTERM, want 0", code)
	}
}

var starting = regexp.MustCompile(`starting`)

// episode draws faults, lets them happen, and waits until the world has healed; it returns how long that took.
func (w *world) episode(n int) time.Duration {
	w.Helper()
	if w.random.IntN(trialEvery) == 0 {
		return w.try(n)
	}
	var story []string
	var events []event
	for _, f := range w.draw() {
		w.counts[f.kind()]++
		at, lasts := below(w.random, 200*time.Millisecond), f.lasts(w.random)
		story = append(story, fmt.Sprintf("%v+%v %s", at.Round(time.Millisecond), lasts.Round(time.Millisecond), f))
		events = append(events, event{at, f.begin}, event{at + lasts, f.end})
	}
	for _, row := range w.hostileRows() {
		copies := 1 + w.hostility.IntN(3)
		at := below(w.hostility, 500*time.Millisecond)
		story = append(story, fmt.Sprintf("%v %d × %v", at.Round(time.Millisecond), copies, row))
		events = append(events, event{at, func() { w.writes(row, copies) }})
	}
	slices.SortStableFunc(events, func(a, b event) int { return int(a.at - b.at) })
	began := time.Now()
	for _, e := range events {
		harness.Pause(w.Context(), e.at-time.Since(began)) // The rhythm of the faults.
		if e.happen != nil {
			e.happen()
		}
	}
	w.Logf("episode %d: %s", n, strings.Join(story, "; "))
	healed := w.heals()
	w.readable()
	w.Logf("episode %d: healed in %v", n, healed.Round(time.Millisecond))
	return healed
}

// hostileRows draws those of an episode. A row that has the seq of an honest event could not come back from the archive together
// with it, so there is none.
func (w *world) hostileRows() []harness.HostileRow {
	if w.hostility == nil {
		return nil
	}
	return slices.DeleteFunc(harness.HostileRows(w.hostility, 1+w.hostility.IntN(4)), func(r harness.HostileRow) bool { return r.Has("seq", "low") })
}

// trialEvery is how many episodes there are for one that is a trial, on average.
const trialEvery = 4

// writes writes hostile rows, if Postgres takes them; it may be away.
func (w *world) writes(row harness.HostileRow, copies int) {
	ctx, cancel := context.WithTimeout(w.Context(), 2*time.Second)
	defer cancel()
	_ = w.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { // Refused is as well.
		written, err := row.Write(ctx, c.Conn(), 1000+w.rows, copies)
		w.rows += len(written)
		return err
	})
}

// readable shows that the operator's commands work with whatever rows there are.
func (w *world) readable() {
	w.Helper()
	if w.hostility == nil {
		return
	}
	for _, args := range [][]string{{"dead", "list", "--json"}, {"status", "--json"}} {
		result := w.Try(30*time.Second, w.settings, args...)
		if result.Code != 0 || !json.Valid([]byte(result.Stdout)) {
			w.Errorf("%s: exit code %d: %.500s", strings.Join(args, " "), result.Code, result.Stderr)
		}
	}
}

// event is the beginning or the end of a fault.
type event struct {
	at     time.Duration
	happen func()
}

// heals waits until all is settled that has been committed by now.
func (w *world) heals() time.Duration {
	w.Helper()
	began := time.Now()
	harness.Eventually(w.TB, progressWithin, "the stream is without limits", w.unlimit)
	var last int64
	w.ask(&last, `select last_value from outbox_seq_seq`)
	looked := time.Now()
	harness.Eventually(w.TB, progressWithin, "what was committed before the end of the last fault is settled", func() bool {
		settled := w.settled(last)
		if !settled && time.Since(looked) > time.Second {
			w.unlimit() // A limit that a cluster without a majority was asked for may come after that.
			looked = time.Now()
		}
		return settled
	})
	return time.Since(began)
}

// ask reads one value; a pool may hold connections that a crash has ended.
func (w *world) ask(value any, sql string, args ...any) {
	w.Helper()
	var err error
	for range 20 {
		if err = w.pool.QueryRow(w.Context(), sql, args...).Scan(value); err == nil {
			return
		}
		harness.Pause(w.Context(), 50*time.Millisecond)
	}
	w.Fatalf("%s: %v", sql, err)
}

// audit stops the producers and compares what they committed with what the stream holds.
func (w *world) audit() (events int) {
	w.Helper()
	w.producers.Stop()
	w.ask(&events, `select sum(version) from account`)
	if w.hostility != nil {
		w.Logf("%d hostile rows", w.rows)
	}
	// An empty outbox is not enough: the stream may be an old copy now, and the relay may not have seen that yet.
	harness.Eventually(w.TB, progressWithin, fmt.Sprintf("%d events in the stream", events), func() bool {
		return w.StoredIn(w.js, "OUTBOX") >= events
	})
	w.redeem()
	w.producers.Audit()
	var dead int
	w.ask(&dead, `select count(*) from outbox_dead where aggregate_type = $1`, harness.HonestType)
	if dead > 0 {
		w.Errorf("%d dead letters, want none: an outage is nobody's fault", dead)
	}
	for _, r := range w.relays {
		w.stop(r)
	}
	return events
}

// unlimit undoes what limits the stream has, if it is there.
func (w *world) unlimit() bool {
	return w.limit(unlimited)
}

// limit changes what the stream takes before it refuses more; it reports whether that is so now.
func (w *world) limit(change func(*jetstream.StreamConfig, jetstream.StreamState)) bool {
	ctx, cancel := context.WithTimeout(w.Context(), 500*time.Millisecond)
	defer cancel()
	stream, err := w.js.Stream(ctx, "OUTBOX")
	if err != nil {
		return false
	}
	info := stream.CachedInfo()
	config := info.Config
	config.Discard = jetstream.DiscardNew
	change(&config, info.State)
	if config.MaxMsgs == info.Config.MaxMsgs && config.MaxBytes == info.Config.MaxBytes && config.MaxMsgSize == info.Config.MaxMsgSize {
		return true
	}
	_, err = w.js.UpdateStream(ctx, config)
	return err == nil
}

// below draws a duration.
func below(random *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(d)))
}
