package harness

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
)

// HonestType is the aggregate type of honest events.
const HonestType = "Account"

// Traffic is a light load of honest events, one after the other. Each is timed from its commit until a consumer has it
// from the stream. What else the stream holds is counted by its id.
type Traffic struct {
	*World

	insert string
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu        sync.Mutex // Protects the following.
	journeys  []*journey
	byID      map[string]*journey
	latest    map[string]int // The version that came last, by aggregate.
	others    map[string]int // How often each id came that is not of an honest event.
	faults    []string
	committed int
	failed    error // The latest error of an insert.
}

// journey is when one event was committed, and when it arrived.
type journey struct {
	aggregate string
	version   int
	committed time.Time     // Zero for not, or nobody knows.
	took      time.Duration // The insert.
	arrived   time.Time     // Zero for not yet.
}

// Load of Traffic.
const (
	trafficPause      = 10 * time.Millisecond
	trafficAggregates = 50
)

// NewTraffic starts the load, once a relay leads and the stream is there. It goes on until Audit, or the end of the test.
func (w *World) NewTraffic() *Traffic {
	w.Helper()
	return w.TrafficBy(w.Connect(), `insert into outbox (id, topic, aggregate_type, aggregate_id, event_type, data) values ($1, 'accounts', '`+HonestType+`', $2, 'Changed', convert_to($3::text, 'UTF8'))`)
}

// TrafficBy is NewTraffic through a connection of the caller's, with a statement that takes id, aggregate and version.
func (w *World) TrafficBy(conn *pgx.Conn, insert string) *Traffic {
	w.Helper()
	ctx, stop := context.WithCancel(w.Context())
	t := &Traffic{World: w, insert: insert, stop: stop, byID: map[string]*journey{}, latest: map[string]int{}, others: map[string]int{}}
	consume := t.consume()
	t.done.Go(func() { t.produce(ctx, conn) })
	w.Cleanup(func() {
		stop()
		t.done.Wait()
		consume.Stop()
	})
	return t
}

func (t *Traffic) produce(ctx context.Context, conn *pgx.Conn) {
	tick := time.NewTicker(trafficPause)
	defer tick.Stop()
	versions := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		id, aggregate := uuid.NewString(), "a"+strconv.Itoa(1+rand.IntN(trafficAggregates))
		versions[aggregate]++
		j := &journey{aggregate: aggregate, version: versions[aggregate]}
		t.mu.Lock()
		t.byID[id] = j
		t.mu.Unlock()
		began := time.Now()
		// It is not interrupted: then it would not be known whether it is committed.
		_, err := conn.Exec(context.WithoutCancel(ctx), t.insert, id, aggregate, strconv.Itoa(j.version))
		t.mu.Lock()
		if t.failed = err; err == nil {
			j.committed = time.Now()
			j.took = j.committed.Sub(began)
			t.journeys = append(t.journeys, j)
			t.committed++
		}
		t.mu.Unlock()
	}
}

func (t *Traffic) consume() jetstream.ConsumeContext {
	t.Helper()
	var consuming jetstream.ConsumeContext
	js := t.JetStream()
	Eventually(t.TB, 20*time.Second, "the stream can be consumed", func() bool {
		attempt, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		stream, err := js.Stream(attempt, "OUTBOX")
		if err != nil {
			return false
		}
		consumer, err := stream.OrderedConsumer(attempt, jetstream.OrderedConsumerConfig{})
		if err != nil {
			return false
		}
		consuming, err = consumer.Consume(t.take)
		return err == nil
	})
	return consuming
}

// take is called with each message of the stream, in order.
func (t *Traffic) take(m jetstream.Msg) {
	now := time.Now()
	if m.Headers().Get("Outbox-Term") != "" {
		return // The relay's own.
	}
	id := m.Headers().Get("Nats-Msg-Id")
	t.mu.Lock()
	defer t.mu.Unlock()
	j := t.byID[id]
	if j == nil {
		t.others[id]++
		return
	}
	switch {
	case !j.arrived.IsZero():
		t.faults = append(t.faults, fmt.Sprintf("%s: version %d is stored twice", j.aggregate, j.version))
		return
	case j.version < t.latest[j.aggregate]:
		t.faults = append(t.faults, fmt.Sprintf("%s: version %d is stored after version %d", j.aggregate, j.version, t.latest[j.aggregate]))
	case string(m.Data()) != strconv.Itoa(j.version):
		t.faults = append(t.faults, fmt.Sprintf("%s: version %d is stored with data %.20q", j.aggregate, j.version, m.Data()))
	}
	j.arrived = now
	t.latest[j.aggregate] = j.version
}

// Delays are how long honest events took from commit to stream. An event that has not come yet counts with its time so far.
type Delays struct {
	Events, Missing int
	P50, P99, Max   time.Duration
	// Insert is how long 99 of 100 inserts took. The relay has no part in that: it tells how busy the machine is.
	Insert time.Duration
}

func (d Delays) String() string {
	return fmt.Sprintf("%d events, %d not stored, p50 %v, p99 %v, max %v (inserts p99 %v)", d.Events, d.Missing,
		d.P50.Round(time.Millisecond), d.P99.Round(time.Millisecond), d.Max.Round(time.Millisecond), d.Insert.Round(time.Millisecond))
}

// Since returns the delays of the events that were committed from a time on, except for those of one aggregate.
func (t *Traffic) Since(from time.Time, without string) (d Delays) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	var took, inserts []time.Duration
	for _, j := range t.journeys {
		if j.committed.Before(from) || j.aggregate == without {
			continue
		}
		inserts = append(inserts, j.took)
		switch {
		case j.arrived.IsZero():
			took = append(took, now.Sub(j.committed))
			if now.Sub(j.committed) > time.Second {
				d.Missing++
			}
		default:
			took = append(took, max(0, j.arrived.Sub(j.committed)))
		}
	}
	if d.Events = len(took); d.Events > 0 {
		slices.Sort(took)
		slices.Sort(inserts)
		d.Insert = inserts[int(.99*float64(len(inserts)-1))]
		at := func(q float64) time.Duration { return took[int(q*float64(len(took)-1))] }
		d.P50, d.P99, d.Max = at(.5), at(.99), at(1)
	}
	return d
}

// Arrived returns how many honest events a consumer has.
func (t *Traffic) Arrived() (events int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, j := range t.journeys {
		if !j.arrived.IsZero() {
			events++
		}
	}
	return events
}

// ArrivedSince reports whether an event has come that was committed after a time.
func (t *Traffic) ArrivedSince(from time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.journeys, func(j *journey) bool { return j.committed.After(from) && !j.arrived.IsZero() })
}

// Stored returns how often the stream has an id that is not of an honest event.
func (t *Traffic) Stored(id string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.others[id]
}

// Honest reports whether an id is of an honest event.
func (t *Traffic) Honest(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id] != nil
}

// Stop stops the producer.
func (t *Traffic) Stop() {
	t.stop()
	t.done.Wait()
}

// Audit stops the producer and waits until all honest events are stored, but no longer than within. It returns what is missing,
// stored twice or out of order.
func (t *Traffic) Audit(within time.Duration) (faults []string) {
	t.Stop()
	for deadline := time.Now().Add(within); t.Arrived() < t.committed && time.Now().Before(deadline); {
		Pause(t.Context(), 20*time.Millisecond)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	faults = slices.Clone(t.faults)
	missing := map[string][]int{}
	for _, j := range t.journeys {
		if j.arrived.IsZero() {
			missing[j.aggregate] = append(missing[j.aggregate], j.version)
		}
	}
	for aggregate, versions := range missing {
		faults = append(faults, fmt.Sprintf("%s: %d events are missing, from version %d on", aggregate, len(versions), versions[0]))
	}
	if t.failed != nil {
		faults = append(faults, fmt.Sprintf("the producer fails: %v", t.failed))
	}
	slices.SortFunc(faults, cmp.Compare[string])
	if more := len(faults) - 5; more > 0 {
		faults = append(faults[:5], fmt.Sprintf("… and %d more", more))
	}
	return faults
}
