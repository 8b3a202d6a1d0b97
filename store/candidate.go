package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

// A relay that wants to lead says whether it could publish, and to which stream, by a shared advisory lock on its session.
// So the leader knows whether another one could do what it cannot, doctor sees relays that disagree about the stream, and
// what a relay has said ends with its session.

// standHalf is the first half of the locks of this table's candidates,
func (t Table) standHalf() uint32 { return uint32(uint64(t.hash("stand")) >> 32) }

// and streamHalf the second.
func streamHalf(stream string) uint32 {
	sum := sha256.Sum256([]byte("go-outbox\x00stream\x00" + stream))
	return binary.BigEndian.Uint32(sum[:4])
}

// standKey is the lock of the candidates for a stream.
func (t Table) standKey(stream string) int64 {
	return int64(uint64(t.standHalf())<<32 | uint64(streamHalf(stream)))
}

// relayed is where an outbox is relayed to.
type relayed struct {
	stream, leader string // Empty if it never was.
	term           int64
	since          time.Time
}

// latest is the statement that finds it.
func (t Table) latest() string {
	return `select stream, leader, term, leader_since from only ` + t.relay() + ` order by leader_since desc limit 1`
}

func (r *relayed) scan(rows pgx.Rows) error {
	_, err := pgx.ForEachRow(rows, []any{&r.stream, &r.leader, &r.term, &r.since}, func() error { return nil })
	return err
}

// otherStream is the error of a relay that wants to publish to another stream.
func (o *Outbox) otherStream(stream string, r *relayed) error {
	return fmt.Errorf("%w: %s goes to stream %q, by %q since %s, and this relay publishes to %q, so that consumers of either would miss events: set the stream (OUTBOX_STREAM) to %q or, to publish to %q from now on, adopt_stream (OUTBOX_ADOPT_STREAM) to true",
		ErrOtherStream, o.table, cut(r.stream), cut(r.leader), r.since.UTC().Format(time.RFC3339), cut(stream), cut(r.stream), cut(stream))
}

// Candidacy is what a relay that does not lead says of itself.
type Candidacy struct {
	// Fit tells that it could publish.
	Fit bool
	// Name says who it is, for humans, and Reason why it could not lead. Empty for none that concerns anybody else.
	Name, Reason string
}

// Stand is for a relay that wants to lead and does not. It tells others whether this relay could publish to stream; that
// holds until the session ends or the next Stand. A reason is recorded for those who look at the outbox from elsewhere (see
// Inspection.Unfit): at once, when it changes and every ten seconds, but never twice in five seconds. Obstacle says why nobody
// can be elected through Postgres, as far as Postgres knows; empty for nothing.
//
// Its error says why this relay could not lead: Postgres is out of reach, the tables are not ready, or the outbox is
// relayed to another stream.
func (o *Outbox) Stand(ctx context.Context, stream string, c Candidacy) (obstacle string, err error) {
	err = o.session.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		if checked := o.session.next.Load(); o.checked != checked {
			if err := o.judged(o.table.check(ctx, conn)); err != nil {
				return err
			}
			o.checked = checked
		}
		var (
			r     relayed
			found Inspection
			batch = &pgx.Batch{}
		)
		batch.Queue(`
select case when $2 and not held then pg_try_advisory_lock_shared($1) when not $2 and held then pg_advisory_unlock_shared($1) end
  from (select exists (select from pg_catalog.pg_locks where locktype = 'advisory' and pid = pg_backend_pid() and objsubid = 1
                          and (classid::bigint << 32 | objid::bigint) = $1) as held) as lock`, o.table.standKey(stream), c.Fit)
		batch.Queue(o.table.latest()).Query(r.scan)
		o.queuePause(batch)
		if err := conn.SendBatch(ctx, batch).Close(); err != nil {
			return o.explain("stand for election", err)
		}
		o.recordReason(ctx, conn, stream, c)
		if r.stream != "" && r.stream != stream && !o.adopt {
			return o.otherStream(stream, &r)
		}
		if err := o.table.locked(ctx, conn, &found); err != nil {
			return o.explain("look who leads", err)
		}
		for i := range found.LeaderLocks {
			if l := &found.LeaderLocks[i]; l.Stranger() {
				obstacle = l.obstacle()
			}
		}
		return nil
	})
	return obstacle, err
}

const (
	// tellAgain is after how long a candidate records the same reason again, which shows that it is alive, and tellPause the
	// least time between two records.
	tellAgain = 10 * time.Second
	tellPause = 5 * time.Second
	// unfitFresh is how old a record may be that somebody who looks is shown; the relay is gone otherwise.
	unfitFresh = 3 * tellAgain
	// unfitKept is after how long it is removed by whoever records another.
	unfitKept = time.Hour
	// unfitMost is how many are shown.
	unfitMost = 50
	// tellLockTimeout is how long to wait for whoever has locked the records: then nothing is recorded.
	tellLockTimeout = 100 * time.Millisecond
)

// saidReason is what a candidate has recorded of itself.
type saidReason struct {
	reason string
	since  time.Time // When the first of the reasons came that followed each other.
	at     time.Time // When it was recorded.
}

// due reports whether a reason is to be recorded, or removed if it is empty.
func (t *saidReason) due(reason string, now time.Time) bool {
	switch ago := now.Sub(t.at); {
	case reason == "":
		return t.reason != ""
	case t.at.IsZero():
		return true
	case reason != t.reason:
		return ago >= tellPause
	default:
		return ago >= tellAgain
	}
}

// recordReason records why a candidate could not lead. That is for people: if it fails, nothing else does.
func (o *Outbox) recordReason(ctx context.Context, conn *pgx.Conn, stream string, c Candidacy) {
	now := time.Now()
	switch {
	case c.Reason == "":
		o.said.since = time.Time{}
	case o.said.since.IsZero():
		o.said.since = now
	}
	if !o.said.due(c.Reason, now) {
		return
	}
	o.said.at, o.said.reason = now, c.Reason
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// A statement of its own: a batch would prepare the others first, and for that they need their locks.
		if _, err := tx.Exec(ctx, `set local lock_timeout = `+milliseconds(tellLockTimeout)); err != nil {
			return err
		}
		if c.Reason == "" {
			_, err := tx.Exec(ctx, `delete from `+o.table.candidatesTable()+` where name = $1 and pid = pg_backend_pid()`, recordable(c.Name))
			return err
		}
		if _, err := tx.Exec(ctx, `delete from `+o.table.candidatesTable()+` where at < clock_timestamp() - $1::interval`, unfitKept); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
insert into `+o.table.candidatesTable()+` (name, pid, stream, reason, since, at)
values ($1, pg_backend_pid(), $2, $3, clock_timestamp() - $4::interval, clock_timestamp())
    on conflict (name, pid) do update set stream = excluded.stream, reason = excluded.reason, since = excluded.since, at = excluded.at`,
			recordable(c.Name), stream, recordable(c.Reason), now.Sub(o.said.since))
		return err
	})
	if err != nil {
		o.log.DebugContext(ctx, "why this relay could not lead is not recorded", slog.Any("error", err))
	}
}

// UnfitCandidate is a relay that says that it could not lead.
type UnfitCandidate struct {
	// Name is the relay's, for humans, and Stream the one that it would publish to.
	Name, Stream string
	// Trouble is why it could not lead, as it last said.
	Trouble Trouble
}

// unfit finds the relays that have said not long ago that they could not lead.
func (t Table) unfit(ctx context.Context, conn *pgx.Conn) ([]UnfitCandidate, error) {
	rows, err := conn.Query(ctx, `
select left(name, $2), left(stream, $2), left(reason, $2), clock_timestamp() - since, clock_timestamp() - at from `+t.candidatesTable()+`
 where at > clock_timestamp() - $1::interval and isfinite(at) and isfinite(since) order by name, pid limit $3`, unfitFresh, troubleMost, unfitMost)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (u UnfitCandidate, err error) {
		err = row.Scan(&u.Name, &u.Stream, &u.Trouble.Text, &u.Trouble.For, &u.Trouble.Age)
		return u, err
	})
}

// Standbys returns how many other relays say that they could publish to the term's stream. Like RoundTrip it works on the
// session, for the leader only.
func (t *Term) Standbys(ctx context.Context) (n int, err error) {
	err = t.outbox.session.DoPatiently(ctx, sessionPatience, func(ctx context.Context, conn *pgx.Conn) error {
		if err := t.inTerm(); err != nil {
			return err
		}
		return conn.QueryRow(ctx, `
select count(*) from pg_catalog.pg_locks
 where locktype = 'advisory' and objsubid = 1 and granted and mode = 'ShareLock' and pid <> pg_backend_pid()
   and classid = $1 and objid = $2 and database = (select oid from pg_catalog.pg_database where datname = current_database())`,
			t.outbox.table.standHalf(), streamHalf(t.stream)).Scan(&n)
	})
	return n, t.outbox.explain("look for standbys", err)
}

// Candidate is a relay that says that it could lead.
type Candidate struct {
	// Holder is its session.
	Holder Holder
	// stream is the half of its lock that stands for its stream.
	stream uint32
}

// For reports whether the candidate would publish to a stream of this name.
func (c *Candidate) For(stream string) bool { return c.stream == streamHalf(stream) }

// candidates finds the relays that say that they could lead.
func (t Table) candidates(ctx context.Context, conn *pgx.Conn) ([]Candidate, error) {
	rows, err := conn.Query(ctx, `
select l.objid, l.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''), coalesce(a.state, '')
  from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory' and l.objsubid = 1 and l.granted and l.mode = 'ShareLock' and l.classid = $1
   and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
 order by l.pid`, t.standHalf())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Candidate, err error) {
		c.Holder.Kind = HolderSession
		err = row.Scan(&c.stream, &c.Holder.PID, &c.Holder.Application, &c.Holder.Role, &c.Holder.State)
		return c, err
	})
}

// CheckStream compares the stream that a relay of this configuration would publish to with where the outbox goes, and with
// where other relays want to take it.
func (i *Inspection) CheckStream(stream string, adopt bool) Hazard {
	const check = "outbox's stream"
	if len(i.Terms) > 0 && i.Terms[0].Stream != stream {
		former := &i.Terms[0]
		text := fmt.Sprintf("the outbox goes to stream %q, by %q since %s, and this configuration names %q", former.Stream, former.Leader, former.Since.UTC().Format(time.RFC3339), stream)
		if adopt {
			return Hazard{check, Doubtful, text + ": with adopt_stream the next leader of this configuration takes it there; stop the relays of the other stream before"}
		}
		return Hazard{check, Harmful, text + fmt.Sprintf(": no relay of this configuration leads; set OUTBOX_STREAM to %q or, to publish to %q from now on, OUTBOX_ADOPT_STREAM to true", former.Stream, stream)}
	}
	for n := range i.Candidates {
		if c := &i.Candidates[n]; !c.For(stream) {
			return Hazard{check, Harmful, fmt.Sprintf("a relay that publishes to %s stands by, %s, and this configuration names %q: when it takes over, events go there; set OUTBOX_STREAM and OUTBOX_ADOPT_STREAM to the same in all relays", i.streamOf(c), c.Holder, stream)}
		}
	}
	return Hazard{check, Harmless, fmt.Sprintf("all relays publish to %q, as far as the database knows", stream)}
}

// streamOf names a candidate's stream, if it has ever been published to.
func (i *Inspection) streamOf(c *Candidate) string {
	for n := range i.Terms {
		if c.For(i.Terms[n].Stream) {
			return fmt.Sprintf("stream %q", i.Terms[n].Stream)
		}
	}
	return "another stream"
}
