package doctor

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Severity says how bad a [Finding] is.
type Severity string

// The severities.
const (
	// OK: it was looked at, and is well.
	OK Severity = "ok"
	// Warning: the relay works, without all that is promised.
	Warning Severity = "warning"
	// Failure: the relay does not work.
	Failure Severity = "failure"
)

// Place says where a finding was made.
type Place string

// The places.
const (
	Configuration Place = "configuration"
	Postgres      Place = "postgres" // The server, the database and the outbox's tables.
	NATS          Place = "nats"     // The server, the account and the stream.
)

// The names of the checks, which do not change. Those of what others may have set up in the database are in [Hazards].
const (
	CheckConfiguration   = "configuration"
	CheckElection        = "election"
	CheckRetain          = "retain"
	CheckPostgres        = "postgres"
	CheckPooler          = "pooler"
	CheckDurability      = "durability"
	CheckSchema          = "schema"
	CheckPrivileges      = "privileges"
	CheckRowSecurity     = "row security"
	CheckTrigger         = "trigger"
	CheckProducers       = "producers"
	CheckHazards         = "hazards"
	CheckContents        = "contents"
	CheckLocks           = "locks"
	CheckLeader          = "leader"
	CheckPublishingNow   = "publishing now"
	CheckCandidates      = "candidates"
	CheckPause           = "paused by hand"
	CheckBacklog         = "backlog"
	CheckDeadLetters     = "dead letters"
	CheckNATS            = "nats"
	CheckJetStream       = "jetstream"
	CheckStream          = "stream"
	CheckDuplicateWindow = "duplicate window"
	CheckLimits          = "limits"
	CheckOrderedBatches  = "ordered batches"
	CheckPublishing      = "publishing"
	CheckReadingBack     = "reading back"
	CheckAccount         = "account"
	CheckBucket          = "bucket"
)

// Hazards returns the names of the checks of what others may have set up in the database, and of who stands in the relay's
// way there: those of store.Outbox.Hazards, store.Inspection.Obstacles and store.Inspection.CheckStream. The slice is the
// caller's.
func Hazards() []string {
	return []string{
		"sequence", "triggers", "storage", "foreign keys", "publications", "row policies", "standbys", "connections",
		CheckLocks, "old transactions", "leader's lock", "outbox's stream",
	}
}

// Finding is what came of a check. Programs read its JSON: fields may be added, not changed.
type Finding struct {
	// Check names the check; one check may have several findings.
	Check string `json:"check"`
	// Severity says how bad it is.
	Severity Severity `json:"status"`
	// Detail says in one sentence what was found, with figures, and what to do. It may have several lines.
	Detail string `json:"detail"`
	// Place says where it was found.
	Place Place `json:"place"`
	// Remedy is the part of Detail that says what to do: commands to run in backquotes, or settings. It is empty if nothing
	// is to be done, or if only a person can say what, as with a server that cannot be reached.
	Remedy string `json:"remedy,omitempty"`
}

// Report is what [Run] found.
type Report struct {
	// Findings are in the order in which one would mend things.
	Findings []Finding
	// Strict is Config.Strict: then a warning is no better than a failure.
	Strict bool
}

// Count returns how many findings are of a severity.
func (r *Report) Count(severity Severity) int {
	n := 0
	for i := range r.Findings {
		if r.Findings[i].Severity == severity {
			n++
		}
	}
	return n
}

// Err returns nil if all is well, and otherwise an error with the number of failures and warnings. Without Strict, warnings
// alone are no error.
func (r *Report) Err() error {
	failures, warnings := r.Count(Failure), r.Count(Warning)
	switch {
	case failures == 0 && (warnings == 0 || !r.Strict):
		return nil
	case failures == 0:
		return errors.New(plural(warnings, "warning") + ", which strict = true does not allow")
	}
	return errors.New(plural(failures, "failure") + ", " + plural(warnings, "warning"))
}

func (d *doctor) ok(check, format string, args ...any) {
	d.note(OK, check, fmt.Sprintf(format, args...), "")
}

// warn notes a warning; a remedy that is not empty follows the problem.
func (d *doctor) warn(check, remedy, format string, args ...any) {
	d.bad(Warning, check, remedy, fmt.Sprintf(format, args...))
}

// fail notes a failure.
func (d *doctor) fail(check, remedy, format string, args ...any) {
	d.bad(Failure, check, remedy, fmt.Sprintf(format, args...))
}

func (d *doctor) bad(severity Severity, check, remedy, problem string) {
	if remedy != "" {
		problem += ": " + remedy
	}
	d.note(severity, check, problem, remedy)
}

// pass notes what another package says of a problem: its text has the remedy in it.
func (d *doctor) pass(severity Severity, check, text string) {
	remedy := ""
	if severity != OK {
		remedy = remedyIn(text)
	}
	d.note(severity, check, text, remedy)
}

func (d *doctor) note(severity Severity, check, detail, remedy string) {
	d.report.Findings = append(d.report.Findings, Finding{Check: check, Severity: severity, Detail: detail, Place: d.place, Remedy: remedy})
}

// instruction matches what the texts of the relay's packages tell a person to run or to set.
var instruction = regexp.MustCompile("`[^`]+`|OUTBOX_[A-Z_]+|\\b(?:nats|stream|relay|election|database|duplicate|adopt|advisory)_[a-z_]+\\b|\\braise max_[a-z_]+\\b")

// remedyIn returns the commands that a text of ours tells to run or, if there are none, the settings that it names.
func remedyIn(text string) string {
	var commands, settings []string
	seen := map[string]bool{}
	for _, found := range instruction.FindAllString(text, -1) {
		switch {
		case seen[found]:
			continue
		case found[0] == '`':
			commands = append(commands, found)
		default:
			settings = append(settings, found)
		}
		seen[found] = true
	}
	if len(commands) > 0 {
		return strings.Join(commands, "; ")
	}
	return strings.Join(settings, ", ")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
