package store

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// FindingKind says what a [Finding] is about.
type FindingKind string

// The kinds of findings.
const (
	// FindingLock: the relay's session waits for a lock that another session has, or asked for earlier.
	FindingLock FindingKind = "lock"
	// FindingSlow: the relay's session is inside a statement that takes long, and waits for no lock.
	FindingSlow FindingKind = "slow"
	// FindingHorizon: an old transaction keeps vacuum from removing dead rows, so every scan has to step over them.
	FindingHorizon FindingKind = "horizon"
)

// Finding says that something in the database slows or stops the relay, or that this is over.
type Finding struct {
	Kind FindingKind
	// Over tells that it has ended.
	Over bool
	// Known tells that there is nothing to log: only numbers have changed since it was last reported.
	Known bool
	// Waited is how long the session has been waiting (FindingLock) or inside its statement (FindingSlow).
	Waited time.Duration
	// Lock is what is waited for (FindingLock).
	Lock Lock
	// Event is what the server says that the session waits for, such as "IPC: SyncRep"; empty if it works.
	Event string
	// DeadRows is an estimate of how many dead rows the outbox has (FindingHorizon).
	DeadRows int64
	// Holder has the lock, or is the old transaction. For a slow statement it is an old transaction that may be the reason, or
	// zero. Others have the lock or old transactions as well, or wait for the same lock before the relay.
	Holder Holder
	Others []Holder
}

// Lock is a lock of Postgres.
type Lock struct {
	// Mode and Type are as in pg_locks, such as AccessShareLock and relation.
	Mode, Type string
	// Relation is the table's name, if it is a lock on one.
	Relation string
}

// String returns the lock in words, for a message.
func (l Lock) String() string {
	if l.Relation != "" {
		return l.Mode + " on " + l.Relation
	}
	return l.Mode + " on " + l.Type
}

// HolderKind says what a [Holder] is.
type HolderKind string

// The kinds of holders.
const (
	HolderSession  HolderKind = "session"
	HolderPrepared HolderKind = "prepared transaction"
	HolderSlot     HolderKind = "replication slot"
	HolderStandby  HolderKind = "standby" // With hot_standby_feedback.
)

// Holder is a session, or something else, that has a lock or keeps dead rows from being removed. What the relay's role may
// not see is empty or 0.
type Holder struct {
	Kind HolderKind
	// PID is the session's, Name that of a prepared transaction or a slot.
	PID  uint32
	Name string
	// Application, Role and State are the session's, as in pg_stat_activity.
	Application, Role, State string
	// Age is how long the transaction has been open, and Statement how long ago its latest statement began.
	Age, Statement time.Duration
	// XIDs is how many transactions have begun since the oldest one whose rows it still may see.
	XIDs int64
	// Waits tells that the holder itself waits for a lock.
	Waits bool

	oldest string // The number of the oldest transaction whose rows it still may see.
}

// String names the holder for a person.
func (h Holder) String() string {
	var about []string
	if h.Application != "" {
		about = append(about, fmt.Sprintf("application %q", h.Application))
	}
	if h.Role != "" {
		about = append(about, fmt.Sprintf("role %q", h.Role))
	}
	if h.State != "" {
		about = append(about, h.State)
	}
	if h.Age > 0 {
		about = append(about, "transaction open for "+short(h.Age))
	}
	if h.Statement > 0 {
		about = append(about, "latest statement "+short(h.Statement)+" ago")
	}
	if h.XIDs > 0 {
		about = append(about, fmt.Sprintf("%d transactions ago", h.XIDs))
	}
	if h.Waits {
		about = append(about, "waits for a lock itself")
	}
	name := fmt.Sprintf("pid %d", h.PID)
	switch h.Kind {
	case HolderPrepared:
		name = "a prepared transaction"
		if h.Name != "" {
			name = fmt.Sprintf("prepared transaction %q", h.Name)
		}
	case HolderSlot:
		name = fmt.Sprintf("replication slot %q", h.Name)
	case HolderStandby:
		name = fmt.Sprintf("a standby with hot_standby_feedback, pid %d", h.PID)
	case HolderSession:
	}
	if len(about) == 0 {
		return name
	}
	return name + " (" + strings.Join(about, ", ") + ")"
}

// Remedy says how a person can end the holder's transaction.
func (h Holder) Remedy() string {
	switch h.Kind {
	case HolderPrepared:
		if h.Name == "" {
			return "see pg_prepared_xacts, and commit or roll back what was forgotten there"
		}
		return "commit it, or run: rollback prepared " + literal(h.Name)
	case HolderSlot:
		return "let its consumer catch up or, if nobody uses it, run: select pg_drop_replication_slot(" + literal(h.Name) + ")"
	case HolderStandby:
		return "end the long query there, or set hot_standby_feedback to off there"
	case HolderSession:
	}
	return fmt.Sprintf("end that transaction, or run: select pg_terminate_backend(%d)", h.PID)
}

// Text is the finding in words for an operator, with what to do.
func (f *Finding) Text() string {
	if f.Over {
		return f.end()
	}
	switch f.Kind {
	case FindingLock:
		return fmt.Sprintf("the relay has been waiting for %s for a lock (%s) of %s%s: %s", short(f.Waited), f.Lock, f.Holder, f.others(), f.Holder.Remedy())
	case FindingHorizon:
		return fmt.Sprintf("an old transaction keeps vacuum from removing dead rows, of which the outbox has about %d: %s%s: %s",
			f.DeadRows, f.Holder, f.others(), f.Holder.Remedy())
	case FindingSlow:
	}
	old := ""
	if f.Holder.Kind != "" {
		old = "; the oldest transaction is that of " + f.Holder.String()
	}
	switch {
	case f.Event == eventSyncRep:
		return fmt.Sprintf("the relay has been waiting for %s for a synchronous standby: bring one back, or take it out of synchronous_standby_names", short(f.Waited))
	case f.Event != "":
		return fmt.Sprintf("a statement of the relay has been running for %s, and the server lives; it waits for %s%s", short(f.Waited), f.Event, old)
	}
	return fmt.Sprintf("a statement of the relay has been running for %s, and the server lives and works on it%s", short(f.Waited), old)
}

func (f *Finding) end() string {
	switch f.Kind {
	case FindingLock:
		return fmt.Sprintf("the relay waits no longer for the lock (%s) of %s; it took %s", f.Lock, f.Holder.brief(), short(f.Waited))
	case FindingHorizon:
		return fmt.Sprintf("vacuum can remove dead rows again: %s has ended", f.Holder.brief())
	case FindingSlow:
	}
	return fmt.Sprintf("statements of the relay are fast again; the latest slow one took %s", short(f.Waited))
}

func (f *Finding) others() string {
	var b strings.Builder
	for _, h := range f.Others {
		b.WriteString("; also " + h.String())
	}
	return b.String()
}

// Level is the level at which to log the finding.
func (f *Finding) Level() slog.Level {
	switch {
	case f.Known:
		return slog.LevelDebug
	case f.Over:
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// Attrs are the facts, for programs that read the log.
func (f *Finding) Attrs() []slog.Attr {
	attrs := []slog.Attr{slog.String("kind", string(f.Kind))}
	if f.Waited > 0 {
		attrs = append(attrs, slog.Duration("waited", f.Waited.Round(time.Millisecond)))
	}
	if f.Holder.PID != 0 {
		attrs = append(attrs, slog.Uint64("pid", uint64(f.Holder.PID)), slog.String("application", f.Holder.Application))
	}
	if f.Holder.Age > 0 {
		attrs = append(attrs, slog.Duration("age", f.Holder.Age.Round(time.Millisecond)))
	}
	return attrs
}

// same reports whether other is about the same thing: at most the numbers differ.
func (f *Finding) same(other *Finding) bool {
	if f.Kind == FindingSlow && other.Kind == FindingSlow {
		return (f.Event == eventSyncRep) == (other.Event == eventSyncRep)
	}
	return f.Kind == other.Kind && f.Lock == other.Lock && f.Holder.brief() == other.Holder.brief()
}

// brief names the holder without what changes from one look to the next.
func (h Holder) brief() string {
	return Holder{Kind: h.Kind, PID: h.PID, Name: h.Name, Application: h.Application}.String()
}

// short is a duration as precise as a person cares for.
func short(d time.Duration) string {
	if d < time.Minute {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
