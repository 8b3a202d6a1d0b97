package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-outbox/go-outbox/stream"
)

// journal is what the two ends record: the producers what they committed, the consumer what arrived.
type journal struct {
	changed chan struct{} // Holds one token when something has arrived.

	mu         sync.Mutex      // Protects what follows.
	committed  map[string]note // By payload, of which no two changes have the same.
	rolledBack int
	arrivals   []arrival
}

// note is what a producer knows of a change that it committed.
type note struct {
	subject string
	version int       // Of the aggregate: 1, 2, 3 …, drawn under its row's lock.
	sent    time.Time // When COMMIT was sent; zero if that is not known to the producer.
}

type arrival struct {
	stream.Event

	at time.Time
}

func newJournal() *journal {
	return &journal{changed: make(chan struct{}, 1), committed: make(map[string]note)}
}

func (j *journal) commit(payload string, n note) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.committed[payload] = n
}

func (j *journal) rollBack() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rolledBack++
}

// arrive is the consumer's handler.
func (j *journal) arrive(_ context.Context, event stream.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.arrivals = append(j.arrivals, arrival{event, time.Now()})
	select {
	case j.changed <- struct{}{}:
	default: // Told already.
	}
	return nil
}

// counts returns how much there is of each.
func (j *journal) counts() (committed, rolledBack, arrived int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.committed), j.rolledBack, len(j.arrivals)
}

// arrivedSince returns the arrivals after the first n.
func (j *journal) arrivedSince(n int) []arrival {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.arrivals[n:])
}

// await returns once n events have arrived. Only one goroutine may wait.
func (j *journal) await(ctx context.Context, n int) error {
	for {
		_, _, arrived := j.counts()
		if arrived >= n {
			return nil
		}
		select {
		case <-j.changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d events, %d have arrived: %w", n, arrived, context.Cause(ctx))
		}
	}
}

// message is what the stream holds.
type message struct{ subject, payload string }

// verdict compares what was committed with what is stored.
type verdict struct {
	committed, stored                            int
	duplicates, missing, outOfOrder, uncommitted int
}

func (v verdict) good() bool {
	return v.committed == v.stored && v.duplicates+v.missing+v.outOfOrder+v.uncommitted == 0
}

// judge compares the producers' notes with all messages of the stream, in the stream's order.
func (j *journal) judge(stored []message) verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	v := verdict{committed: len(j.committed), stored: len(stored)}
	missing := maps.Clone(j.committed)
	newest := make(map[string]int) // The last version of each aggregate.
	for _, m := range stored {
		n, known := j.committed[m.payload]
		_, first := missing[m.payload]
		switch {
		case !known || n.subject != m.subject:
			v.uncommitted++
		case !first:
			v.duplicates++
		case n.version < newest[m.subject]:
			v.outOfOrder++
			delete(missing, m.payload)
		default:
			newest[m.subject] = n.version
			delete(missing, m.payload)
		}
	}
	v.missing = len(missing)
	return v
}

// takeover is the time from a leader's end to its successor's election.
type takeover struct{ killed, elected time.Time }

// latencies are sorted times from COMMIT to the consumer.
type latencies []time.Duration

// quantile returns the latency below which that share of all is.
func (l latencies) quantile(share float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[min(int(share*float64(len(l))), len(l)-1)]
}

// latencies returns two lists: of events that were committed while a relay led, and of events that waited for the next leader.
func (j *journal) latencies(takeovers []takeover) (led, leaderless latencies) {
	j.mu.Lock()
	defer j.mu.Unlock()
	caughtUp := make([]time.Time, len(takeovers)) // When the first event that was committed since the election arrived.
	for _, a := range j.arrivals {
		sent := j.committed[string(a.Data)].sent
		for i, t := range takeovers {
			if caughtUp[i].IsZero() && sent.After(t.elected) {
				caughtUp[i] = a.at
			}
		}
	}
	for _, a := range j.arrivals {
		sent := j.committed[string(a.Data)].sent
		if sent.IsZero() {
			continue
		}
		waited := false
		for i, t := range takeovers {
			waited = waited || sent.After(t.killed) && (caughtUp[i].IsZero() || sent.Before(caughtUp[i]))
		}
		if waited {
			leaderless = append(leaderless, a.at.Sub(sent))
		} else {
			led = append(led, a.at.Sub(sent))
		}
	}
	slices.Sort(led)
	slices.Sort(leaderless)
	return led, leaderless
}
