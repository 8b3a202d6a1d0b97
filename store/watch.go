package store

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// watchEvery is how often the watcher looks whether the session is still inside the same use, and watchIdle while it is
	// inside none.
	watchEvery = 500 * time.Millisecond
	watchIdle  = time.Second
	// slowAfter is how long a use of the session lasts before the watcher asks what it does.
	slowAfter = time.Second
	// longAfter is how long a statement that waits for no lock runs before it is reported.
	longAfter = 10 * time.Second
	// A transaction may be to blame for a slow statement if it is older than oldAfter, and the outbox has more dead rows than
	// slowDeadRows.
	oldAfter     = 10 * time.Second
	slowDeadRows = 10_000
	// calmAfter is how long after it was last seen a wait counts as over.
	calmAfter = 2 * time.Second
	// watchPatience bounds one look at the server. It is shorter than the lease, which the look is to renew.
	watchPatience = 3 * time.Second
	// watchKeep is how long the watcher keeps a connection that it does not use.
	watchKeep = 10 * time.Second

	// horizonEvery is how often the watcher looks at dead rows while all is well. It reports a transaction, before anything
	// has become slow, if there are horizonDeadRows and the transaction is as old as horizonAge or horizonXIDs others have
	// begun since.
	horizonEvery    = time.Minute
	horizonAge      = 5 * time.Minute
	horizonXIDs     = 1_000_000
	horizonDeadRows = 100_000
)

// eventSyncRep is what a commit waits for while no synchronous standby answers.
const eventSyncRep = "IPC: SyncRep"

// Watch watches the leader's session until ctx ends: run it beside a term. While all is well it costs a look at a counter
// now and then, and one query a minute.
//
// Once one use of the session has lasted a second, Watch asks, on a connection of its own and twice a second, what the
// session's server process does. If the process is inside a statement, the session is alive: its LastRoundTrip moves on, so
// that a slow statement costs no lease. Watch reports what the session waits for: at once, when it changes, after 1, 2, 5
// and every 10 minutes, and when it is over. Findings in between are Known: only their numbers are new.
//
// Report is called from Watch's own goroutine.
func (o *Outbox) Watch(ctx context.Context, report func(Finding)) {
	w := &watcher{outbox: o, report: report, horizonDue: time.Now().Add(horizonEvery)}
	defer w.close(ctx)
	timer := time.NewTimer(watchIdle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		w.look(ctx)
		if o.session.use.Load() != nil || w.wait.open {
			timer.Reset(watchEvery)
		} else {
			timer.Reset(watchIdle)
		}
	}
}

// watcher is what Watch knows.
type watcher struct {
	outbox *Outbox
	report func(Finding)

	conn *pgx.Conn // Nil for none.
	used time.Time // When it was last used.
	sick bool      // The latest look failed, and the log says so.

	wait, horizon told
	horizonDue    time.Time
	first         map[Holder]time.Time // Since when holders have been seen whose age is hidden.
}

func (w *watcher) look(ctx context.Context) {
	now := time.Now()
	if u := w.outbox.session.use.Load(); u != nil && now.Sub(u.start) >= slowAfter {
		w.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error { return w.examine(ctx, conn, u) })
	}
	if w.wait.open && now.Sub(w.wait.seen) >= calmAfter {
		w.report(w.wait.end())
	}
	if !now.Before(w.horizonDue) {
		w.horizonDue = now.Add(horizonEvery)
		w.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			_, _, err := w.examineHorizon(ctx, conn, 0, harmful)
			return err
		})
	}
	if w.conn != nil && now.Sub(w.used) >= watchKeep {
		w.close(ctx)
	}
}

// ask runs one look at the server, on a connection that it opens if there is none.
func (w *watcher) ask(ctx context.Context, task func(ctx context.Context, conn *pgx.Conn) error) {
	bounded, cancel := context.WithTimeout(ctx, watchPatience)
	defer cancel()
	err := w.try(bounded, task)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		w.sick = false
	case !w.sick:
		w.sick = true
		w.outbox.log.LogAttrs(ctx, slog.LevelWarn, "cannot look at what the relay's session waits for", slog.Any("error", err))
	}
}

func (w *watcher) try(ctx context.Context, task func(ctx context.Context, conn *pgx.Conn) error) error {
	if w.conn == nil {
		conn, err := w.outbox.connector.connect(ctx, forAdmin())
		if err != nil {
			return err
		}
		w.conn = conn
		if _, err := conn.Exec(ctx, inspectSettings); err != nil {
			w.close(ctx)
			return fmt.Errorf("prepare the watch: %w", err)
		}
	}
	w.used = time.Now()
	err := task(ctx, w.conn)
	if err != nil {
		w.close(ctx)
	}
	return err
}

func (w *watcher) close(ctx context.Context) {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // It was only for questions.
	w.conn = nil
}

// examine finds out what the session's server process does in a use that takes long.
func (w *watcher) examine(ctx context.Context, conn *pgx.Conn, u *use) error {
	asked := time.Now() // From before the question, as in Session.Do.
	found, err := activityOf(ctx, conn, u.backend)
	if err != nil {
		return fmt.Errorf("look at the session: %w", err)
	}
	if !found.inside {
		return nil // It is gone, or waits for us: nothing in the database is to blame, and nothing keeps it alive.
	}
	w.outbox.session.lived(asked, u.generation)
	if found.waits {
		return w.examineLock(ctx, conn, u)
	}
	slow := Finding{Kind: FindingSlow, Waited: time.Since(u.start), Event: found.event}
	if slow.Event == eventSyncRep {
		w.tell(slow)
		return nil
	}
	old, blamed, err := w.examineHorizon(ctx, conn, u.pid, guilty)
	if err == nil && !blamed && slow.Waited >= longAfter {
		slow.Holder = old
		w.tell(slow)
	}
	return err
}

// examineLock finds out whose lock the session waits for.
func (w *watcher) examineLock(ctx context.Context, conn *pgx.Conn, u *use) error {
	waits, err := lockWaits(ctx, conn, `l.pid = $1`, u.pid)
	if err != nil {
		return fmt.Errorf("look for who holds the lock: %w", err)
	}
	if len(waits) == 0 {
		return nil // It has just been given.
	}
	wait := &waits[0]
	f := Finding{Kind: FindingLock, Waited: wait.Waited, Lock: wait.Lock, Holder: wait.Holders[0], Others: wait.Holders[1:]}
	if f.Waited == 0 {
		f.Waited = time.Since(u.start)
	}
	w.tell(f)
	return nil
}

// tell reports what the session waits for.
func (w *watcher) tell(f Finding) {
	if w.wait.open && w.wait.finding.Kind != f.Kind {
		w.report(w.wait.end())
	}
	w.report(w.wait.observe(f))
}

// examineHorizon looks for the oldest transaction that holds back vacuum, and reports it if it is to blame. Once reported, the
// transaction counts as to blame until it has ended. Otherwise, if it is older than oldAfter, it is returned as old.
func (w *watcher) examineHorizon(ctx context.Context, conn *pgx.Conn, session uint32, toBlame func(h *Holder, deadRows int64) bool) (old Holder, blamed bool, err error) {
	holders, deadRows, err := w.outbox.table.horizon(ctx, conn, session)
	if err != nil {
		return Holder{}, false, fmt.Errorf("look for old transactions: %w", err)
	}
	w.estimateAges(holders)
	if len(holders) > 0 {
		f := Finding{Kind: FindingHorizon, DeadRows: deadRows, Holder: holders[0]}
		if toBlame(&f.Holder, deadRows) || w.horizon.open && w.horizon.finding.same(&f) {
			w.report(w.horizon.observe(f))
			return f.Holder, true, nil
		}
		if f.Holder.Age >= oldAfter {
			old = f.Holder
		}
	}
	if w.horizon.open {
		w.report(w.horizon.end())
	}
	return old, false, nil
}

// guilty reports whether a transaction is to blame for a statement that is slow already.
func guilty(h *Holder, deadRows int64) bool {
	return (h.Age >= oldAfter || h.XIDs >= horizonXIDs) && deadRows >= slowDeadRows
}

// harmful reports whether a transaction is worth a report before anything has become slow: it is old, and the outbox has many
// dead rows.
func harmful(h *Holder, deadRows int64) bool {
	return (h.Age >= horizonAge || h.XIDs >= horizonXIDs) && deadRows >= horizonDeadRows
}

// estimateAges sets the age of holders whose age our role may not see: since when the watcher has seen them. A session with
// short transactions counts as another holder each time, since the number of its oldest transaction rises.
func (w *watcher) estimateAges(holders []Holder) {
	now, first := time.Now(), map[Holder]time.Time{}
	for i := range holders {
		h := &holders[i]
		if h.Age > 0 {
			continue
		}
		key := Holder{Kind: h.Kind, PID: h.PID, Name: h.Name, oldest: h.oldest}
		since, seen := w.first[key]
		if !seen {
			since = now
		}
		first[key] = since
		h.Age = now.Sub(since)
	}
	w.first = first
}

// told is what has been reported of one matter.
type told struct {
	finding Finding
	open    bool
	since   time.Time // When it was first reported,
	seen    time.Time // and when it was last seen.
	steps   int       // How many reminders there were.
}

// reminders are the times, since its beginning, at which a matter that lasts is reported again. After the last of them that
// is the interval.
var reminders = []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute} //nolint:gochecknoglobals // Immutable.

// observe returns the finding as it is to be reported: Known unless it is new, or a reminder is due.
func (t *told) observe(f Finding) Finding {
	now := time.Now()
	if !t.open || !t.finding.same(&f) {
		*t = told{finding: f, open: true, since: now, seen: now}
		return f
	}
	t.finding, t.seen = f, now
	if now.Sub(t.since) >= t.reminder() {
		t.steps++
		return f
	}
	f.Known = true
	return f
}

// reminder is how long after its beginning the matter is to be reported again.
func (t *told) reminder() time.Duration {
	if t.steps < len(reminders) {
		return reminders[t.steps]
	}
	last := reminders[len(reminders)-1]
	return last * time.Duration(t.steps-len(reminders)+2)
}

// end returns the finding that reports the end of the matter.
func (t *told) end() Finding {
	f := t.finding
	*t = told{}
	f.Over, f.Known = true, false
	return f
}

// activity is what the server tells of a process.
type activity struct {
	there  bool // It is the process that was asked for.
	inside bool // A statement is under way in it.
	waits  bool // For a lock.
	event  string
}

// activityOf asks what a server process does. The state is missing if our role may not see it, or if the server does not
// track it. Then an open transaction counts as a statement under way: between statements the relay has a transaction open
// only for moments, and its session's locks are its own.
func activityOf(ctx context.Context, conn *pgx.Conn, of backend) (a activity, err error) {
	var (
		born        *time.Time
		state       *string
		typ, event  string
		transaction bool
	)
	err = conn.QueryRow(ctx, `
select a.pid is not null, a.backend_start, a.state, coalesce(a.wait_event_type, ''), coalesce(a.wait_event, ''),
       exists (select from pg_catalog.pg_locks l where l.pid = $1 and l.locktype = 'virtualxid' and l.granted and l.mode = 'ExclusiveLock'),
       exists (select from pg_catalog.pg_locks l where l.pid = $1 and not l.granted)
  from (values (1)) as one left join pg_catalog.pg_stat_activity a on a.pid = $1`, of.pid).
		Scan(&a.there, &born, &state, &typ, &event, &transaction, &a.waits)
	if err != nil {
		return activity{}, err
	}
	if born != nil && !of.born.IsZero() && !born.Equal(of.born) {
		return activity{}, nil // The number has been given to another process.
	}
	switch {
	case !a.there:
	case state == nil || *state == "disabled":
		a.inside = transaction
	default:
		a.inside = *state == "active"
	}
	if typ != "" && typ != "Client" {
		a.event = typ + ": " + event
	}
	return a, nil
}
