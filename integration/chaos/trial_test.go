package chaos_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// trial is an episode with one fault, or several of a kind, and nothing else. So it can be said what the relays do while the
// fault lasts, and how soon after it.
type trial struct {
	kind, detail string
	run          func()
}

func (t trial) String() string { return strings.TrimSpace(t.kind + " " + t.detail) }

const (
	// takeoverWithin is how long it takes until a standby publishes in place of a leader that has lost its broker.
	takeoverWithin = 10 * time.Second
	// flowsWithin is how long it takes until an event is stored, once nothing keeps it from being stored. In a cluster it is
	// twice as long: that may elect a leader for the stream meanwhile.
	flowsWithin = 5 * time.Second
	// recoveriesMost is how often, at most, the stream is read back because of faults of single events.
	recoveriesMost = 3
	// calmWithin is how long a trial waits for a leader and a standby; one that made way does not stand by for some time.
	calmWithin = 15 * time.Second
)

// drawTrial draws one.
func (w *world) drawTrial() trial {
	switch w.random.IntN(5) {
	case 0:
		return w.blindLeader()
	case 1:
		return w.deniedSubject()
	case 2:
		return w.replacedStream()
	case 3:
		return w.loweredLimits()
	default:
		return w.handOvers()
	}
}

// try is an episode of one trial. If there is no standby for some time, as after a leader has made way, it is left out.
func (w *world) try(n int) time.Duration {
	w.Helper()
	t := w.drawTrial()
	w.writeHostile(n)
	deadline := time.Now().Add(calmWithin)
	for w.standbys() == 0 || w.leader() == nil || !w.healthy() {
		if time.Now().After(deadline) {
			w.counts["trial left out: "+t.kind]++
			w.Logf("episode %d: left out, since nobody stands by, or a replica is not current: %s", n, t)
			return w.heals()
		}
		harness.Pause(w.Context(), 20*time.Millisecond)
	}
	w.Logf("episode %d: %s", n, t)
	w.counts["trial: "+t.kind]++
	t.run()
	healed := w.heals()
	w.readable()
	return healed
}

// writeHostile writes the hostile rows of a trial, before it.
func (w *world) writeHostile(n int) {
	for _, row := range w.hostileRows() {
		w.Logf("episode %d: %v", n, row)
		w.writes(row, 1+w.hostility.IntN(3))
	}
}

// blindLeader: the leader alone loses the broker. A standby takes over, and what was committed meanwhile is stored.
func (w *world) blindLeader() trial {
	const kind = "blind leader"
	detail, lose := "whose line to NATS is cut", (*harness.Proxy).Cut
	if w.random.IntN(2) == 0 {
		detail, lose = "whose line to NATS loses all answers", (*harness.Proxy).Mute
	}
	return trial{kind, detail, func() {
		leader := w.leader()
		if leader == nil {
			return
		}
		for _, line := range leader.nats {
			lose(line)
		}
		began := time.Now()
		harness.Pause(w.Context(), 500*time.Millisecond) // In which producers commit.
		w.flows(kind, takeoverWithin)
		w.Logf("a standby has published everything within %v", time.Since(began).Round(time.Millisecond))
		if w.leader() == leader {
			w.Errorf("%s: it still leads", kind)
		}
		for _, line := range leader.nats {
			line.Mend()
		}
	}}
}

// deniedSubject: some events go to a subject that the relays' user may not publish to. They become dead letters, the others
// flow, and the stream is hardly ever read back.
func (w *world) deniedSubject() trial {
	x := w.drawExtras()
	subject := x.subject()
	if w.random.IntN(2) == 0 {
		subject = "outbox." + x.topic + ".>"
		x.share = 1
	}
	return trial{"denied subject", fmt.Sprintf("%s of %v", subject, x), func() {
		before := w.fences()
		w.deny(subject)
		w.reloaded()
		w.refused(x, subject)
		if recoveries := w.fences() - before; recoveries > recoveriesMost {
			w.Errorf("the stream was read back %d times for a denied subject, want %d at most", recoveries, recoveriesMost)
		}
		w.deny()
		w.reloaded()
	}}
}

// replacedStream: the stream is deleted and created anew, or restored from a backup.
func (w *world) replacedStream() trial {
	restored, resting := w.random.IntN(2) == 0, w.random.IntN(2) == 0
	age, idle, gap := below(w.random, time.Second), below(w.random, 3*time.Second), below(w.random, 50*time.Millisecond)
	kind, detail := "stream created anew", ""
	if restored {
		kind = "stream restored from a backup"
	}
	if resting {
		detail = "while nothing is published"
	}
	return trial{kind, detail, func() {
		var backup *harness.Backup
		if restored {
			backup = w.backup()
		}
		harness.Pause(w.Context(), age)
		if !resting {
			w.replace(backup, gap)
			return
		}
		w.producers.Rest(func() {
			w.flows(kind, flowsWithin)
			harness.Pause(w.Context(), idle)
			w.replace(backup, gap)
		})
	}}
}

// loweredLimits: the stream, the server or the account takes less for a while. Events that are too large become dead
// letters, and the others flow. If nothing is taken any more, all wait, and go on as soon as there is room.
func (w *world) loweredLimits() trial {
	x := w.drawExtras()
	x.topic, x.size = "large", 8000
	var lasts time.Duration
	switch w.random.IntN(4) {
	case 0:
		return trial{"max_msg_size lowered", x.String(), func() {
			before := w.fences()
			w.change(func(config *jetstream.StreamConfig, _ jetstream.StreamState) { config.MaxMsgSize = 4000 })
			w.refused(x, "")
			if recoveries := w.fences() - before; recoveries > recoveriesMost {
				w.Errorf("the stream was read back %d times for large events, want %d at most", recoveries, recoveriesMost)
			}
		}}
	case 1:
		return trial{"max_payload lowered", x.String(), func() {
			w.limitPayload(4000)
			w.reloaded()
			w.refused(x, "")
			w.limitPayload(0)
			w.reloaded()
		}}
	case 2:
		lasts = 500*time.Millisecond + below(w.random, 6*time.Second)
		return trial{"stream limited to less than it holds", "for " + lasts.Round(time.Millisecond).String(), func() {
			w.change(lowered)
			harness.Pause(w.Context(), lasts)
			w.change(unlimited)
			w.flows("the stream has room again", flowsWithin)
		}}
	default:
		lasts = 500*time.Millisecond + below(w.random, 6*time.Second)
		return trial{"account limited to less than it stores", "for " + lasts.Round(time.Millisecond).String(), func() {
			w.limitStorage(1)
			w.reloaded()
			harness.Pause(w.Context(), lasts)
			w.limitStorage(0)
			w.reloaded()
			w.flows("the account has room again", flowsWithin)
		}}
	}
}

// change changes the stream's limits; w.limit for a stream that is there.
func (w *world) change(how func(*jetstream.StreamConfig, jetstream.StreamState)) {
	w.Helper()
	harness.Eventually(w.TB, progressWithin, "the stream's limits are changed", func() bool { return w.limit(how) })
}

func lowered(config *jetstream.StreamConfig, state jetstream.StreamState) {
	config.MaxMsgs, config.MaxBytes = max(1, int64(state.Msgs)/2), max(1, int64(state.Bytes)/2)
}

func unlimited(config *jetstream.StreamConfig, _ jetstream.StreamState) {
	config.MaxMsgs, config.MaxBytes, config.MaxMsgSize = -1, -1, -1
}

// handOvers: the leader is stopped, several times in a row, each time with a standby that is ready.
func (w *world) handOvers() trial {
	times := 1 + w.random.IntN(4)
	return trial{"hand-over", fmt.Sprintf("%d times in a row", times), func() {
		for range times {
			w.handOver()
		}
	}}
}

var foundStored = regexp.MustCompile(`read back the stream.*stored_already=[1-9]`)

// handOver stops the leader: another leads soon, and finds nothing in the stream that is still in the table.
func (w *world) handOver() {
	w.Helper()
	var leader *candidate
	harness.Eventually(w.TB, progressWithin, "there are a leader and a standby", func() bool {
		leader = w.leader()
		return leader != nil && w.standbys() > 0
	})
	found := map[*candidate]int{}
	for _, r := range w.relays {
		found[r] = r.Count(foundStored)
	}
	began := time.Now()
	w.stop(leader)
	stopped := time.Now()
	w.flows("after a planned stop of the leader", flowsWithin)
	w.Logf("the leader has stopped after %v, and %v later what had been committed is stored",
		stopped.Sub(began).Round(time.Millisecond), time.Since(stopped).Round(time.Millisecond))
	for _, r := range w.relays {
		if r != leader && r.Count(foundStored) > found[r] {
			w.Errorf("after a planned stop of the leader, its successor has found in the stream what was still in the table")
		}
	}
	w.revive(leader)
}

// flows waits until all is settled that has been committed by now, and complains if it takes too long.
func (w *world) flows(what string, within time.Duration) {
	w.Helper()
	began := time.Now()
	var last int64
	w.ask(&last, `select last_value from outbox_seq_seq`)
	harness.Eventually(w.TB, progressWithin, what+": what was committed is settled", func() bool { return w.settled(last) })
	within = w.bound(within)
	if took := time.Since(began); took > within {
		w.Errorf("%s: it took %v until what had been committed was settled, want %v at most", what, took.Round(time.Millisecond), within)
	}
}

// bound is how long something may take here, if it takes d with a single server.
func (w *world) bound(single time.Duration) time.Duration {
	if len(w.nodes) > 1 {
		return 2 * single
	}
	return single
}

// settled reports whether no honest event up to a seq is pending.
func (w *world) settled(last int64) bool {
	w.Helper()
	var waiting bool
	w.ask(&waiting, `select exists (select from outbox where seq <= $1 and aggregate_type = $2)`, last, harness.HonestType)
	return !waiting
}

// extras are events of which some are refused while a fault lasts, and which are published in the end.
type extras struct {
	topic string
	rows  int
	share int // One of so many is of the aggregate that is refused, or too large; the others are of aggregates of their own.
	size  int // Of those, in bytes.
}

func (x extras) String() string {
	return fmt.Sprintf("%d extras, one of %d with %d bytes to %s", x.rows, x.share, x.size, x.subject())
}

func (w *world) drawExtras() extras {
	w.extraTopics++
	return extras{topic: fmt.Sprintf("restricted%d", w.extraTopics), rows: 1 + w.random.IntN(100), share: 1 + w.random.IntN(10), size: 10}
}

// subject is the subject of the events that are refused.
func (x extras) subject() string { return "outbox." + x.topic + ".Extra.refused" }

// write inserts the extras and returns the ids of those that are to be refused, and of the others. Postgres may be away.
func (w *world) write(x extras) (refused, others []uuid.UUID) {
	ctx, cancel := context.WithTimeout(w.Context(), 2*time.Second)
	defer cancel()
	_ = w.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		rows, err := c.Query(ctx, `
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
select $1, 'Extra', case when i % $3 = 1 % $3 then 'refused' else 'r' || i end, 'E', convert_to(repeat('x', case when i % $3 = 1 % $3 then $4::int else 10 end), 'UTF8')
  from generate_series(1, $2::int) i order by i
returning id, aggregate_id = 'refused'`, x.topic, x.rows, x.share, x.size)
		if err != nil {
			return err
		}
		var id uuid.UUID
		var isRefused bool
		_, err = pgx.ForEachRow(rows, []any{&id, &isRefused}, func() error {
			if isRefused {
				refused = append(refused, id)
			} else {
				others = append(others, id)
			}
			return nil
		})
		if err == nil {
			w.extras = append(w.extras, append(refused, others...)...)
		}
		return err
	})
	return refused, others
}

// refused writes extras. It waits until those that are to be refused are dead letters with the right reason, and until the
// others and all honest events are settled.
func (w *world) refused(x extras, reason string) {
	w.Helper()
	refused, others := w.write(x)
	began := time.Now()
	waits := func(what string, ids []uuid.UUID, sql string) {
		w.Helper()
		harness.Eventually(w.TB, progressWithin, what, func() bool {
			var n int
			w.ask(&n, sql, ids)
			return n == len(ids)
		})
		within := w.bound(flowsWithin)
		if took := time.Since(began); took > within {
			w.Errorf("%s: after %v, want %v at most", what, took.Round(time.Millisecond), within)
		}
	}
	waits("the other extras are published", others, `select count(*) from outbox_published where id = any($1)`)
	w.flows("while some events are refused", flowsWithin)
	waits("the refused extras are dead letters", refused, `select count(*) from outbox_dead where id = any($1)`)
	var last string
	w.ask(&last, `select coalesce(max(last_error), '') from outbox_dead where id = any($1)`, refused)
	if !strings.Contains(last, strings.TrimSuffix(reason, ">")) {
		w.Errorf("the dead letters' reason is %q, want it to name %s", last, reason)
	}
}

// redeem publishes what was refused while faults lasted.
func (w *world) redeem() {
	w.Helper()
	if len(w.extras) == 0 {
		return
	}
	w.CommandWith(w.settings, "dead", "requeue", "--all", "--aggregate-type", "Extra")
	harness.Eventually(w.TB, progressWithin, "what was refused is published, once it is requeued", func() bool {
		var left int
		w.ask(&left, `select count(*) from (select id from outbox union all select id from outbox_dead) as rest where id = any($1)`, w.extras)
		return left == 0
	})
	stored := map[string]bool{}
	for _, m := range w.Messages() {
		stored[m.Header.Get("Nats-Msg-Id")] = true
	}
	missing := 0
	for _, id := range w.extras {
		if !stored[id.String()] {
			missing++
		}
	}
	if missing > 0 {
		w.Errorf("%d of %d extras are missing", missing, len(w.extras))
	}
}

// leader returns the relay that leads; nil if none does, or if that is not known.
func (w *world) leader() *candidate {
	ctx, cancel := context.WithTimeout(w.Context(), time.Second)
	defer cancel()
	var name string
	err := w.pool.QueryRow(ctx, `
select leader from outbox_relay
 where exists (select from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock' and granted)
 order by leader_since desc limit 1`).Scan(&name)
	if err != nil {
		return nil // Postgres may be away.
	}
	for _, r := range w.relays {
		if strings.HasSuffix(name, fmt.Sprintf("/%d", r.Pid())) && r.Alive() {
			return r
		}
	}
	return nil
}

// standbys returns how many relays say that they could publish, and do not lead.
func (w *world) standbys() (n int) {
	w.ask(&n, `
with advisory as (select pid, mode from pg_locks where locktype = 'advisory' and granted)
select count(distinct pid) from advisory join pg_stat_activity using (pid)
 where mode = 'ShareLock' and application_name like 'outbox-relay%' and pid not in (select pid from advisory where mode = 'ExclusiveLock')`)
	return n
}

// healthy reports whether the stream is there, and all its replicas are current.
func (w *world) healthy() bool {
	ctx, cancel := context.WithTimeout(w.Context(), time.Second)
	defer cancel()
	stream, err := w.js.Stream(ctx, "OUTBOX")
	if err != nil {
		return false
	}
	cluster := stream.CachedInfo().Cluster
	if len(w.nodes) == 1 || cluster == nil {
		return true
	}
	current := 1
	for _, peer := range cluster.Replicas {
		if peer.Current && !peer.Offline {
			current++
		}
	}
	return cluster.Leader != "" && current == len(w.nodes)
}

// fences returns how often the stream was read back; it is so often and once more that a fence is in it.
func (w *world) fences() (n int) {
	w.Helper()
	harness.Eventually(w.TB, progressWithin, "JetStream answers", func() bool {
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		stream, err := w.js.Stream(ctx, "OUTBOX")
		if err != nil {
			return false
		}
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter("_outbox.>"))
		if err != nil {
			return false
		}
		n = 0
		for _, messages := range info.State.Subjects {
			n += int(messages)
		}
		return true
	})
	return n
}

func (w *world) deny(subjects ...string) {
	for _, n := range w.nodes {
		n.Deny(subjects...)
	}
}

func (w *world) limitPayload(bytes int32) {
	for _, n := range w.nodes {
		n.LimitPayload(bytes)
	}
}

func (w *world) limitStorage(bytes int64) {
	for _, n := range w.nodes {
		n.LimitStorage(bytes)
	}
}

func (w *world) reloaded() {
	w.Helper()
	for _, n := range w.nodes {
		n.Reloaded()
	}
}

// backup returns a backup of the stream.
func (w *world) backup() (backup *harness.Backup) {
	w.Helper()
	harness.Eventually(w.TB, progressWithin, "the stream is backed up", func() bool {
		ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
		defer cancel()
		var err error
		backup, err = harness.NewBackup(ctx, w.js, "OUTBOX")
		return err == nil
	})
	return backup
}

// replace deletes the stream and, after a while, restores it from a backup or, if that is nil, creates it anew. A relay that
// is faster creates the stream, and it is deleted once more.
func (w *world) replace(backup *harness.Backup, after time.Duration) {
	w.Helper()
	harness.Eventually(w.TB, progressWithin, "the stream is replaced", func() bool {
		err := w.replaceOnce(backup, after)
		if err != nil {
			w.Logf("the stream is not replaced: %v", err)
		}
		return err == nil
	})
}

func (w *world) replaceOnce(backup *harness.Backup, after time.Duration) error {
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
	defer cancel()
	stream, err := w.js.Stream(ctx, "OUTBOX")
	if err != nil {
		return err
	}
	if err := w.js.DeleteStream(ctx, "OUTBOX"); err != nil {
		return err
	}
	harness.Pause(ctx, after)
	if backup != nil {
		return backup.Restore(ctx, w.js, "OUTBOX")
	}
	_, err = w.js.CreateStream(ctx, stream.CachedInfo().Config)
	return err
}
