package field_test

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/integration/harness"
	"github.com/go-outbox/go-outbox/relay/doctor"
)

// Bounds of what may happen to a relay and to honest events while there is something hostile.
const (
	boundDelay     = time.Second // For 99 of 100 events.
	boundMedian    = 100 * time.Millisecond
	boundTerms     = 2 // New terms.
	boundReadBacks = 2
	boundMemory    = 250 << 20
	boundLog       = 1 << 20 // Bytes a minute, after a beginning.
	beginningOfLog = 128 << 10
	boundTakeover  = 5 * time.Second // Until the first event after the start of the next relay.
)

// scene is a world in which something hostile happens to a relay while honest events flow.
type scene struct {
	*harness.World

	conn     *pgx.Conn // The owner's.
	settings []string
	exempt   string // An aggregate whose events may wait.
	owner    string // The check of doctor that fails because of what the owner did to the tables.

	relay   *harness.Process
	traffic *harness.Traffic
	began   time.Time // When the present watch began.
	term    int       // At that time.
	backs   float64   // Read-backs of the present relay by then.

	problems []string
	seen     []string // What a reader of a failure wants to know.
}

// newScene returns a world with an empty outbox.
func newScene(t *testing.T, settings ...string) *scene {
	t.Helper()
	s := newBareScene(t, harness.NewWorld(t, harness.Options{SharedPostgres: true, Quiet: true}), settings...)
	s.CommandWith(s.settings, "migrate")
	return s
}

// newBareScene is newScene without an outbox.
func newBareScene(t *testing.T, w *harness.World, settings ...string) *scene {
	t.Helper()
	s := &scene{World: w, settings: append([]string{
		"OUTBOX_LOGGING_LEVEL=info", "OUTBOX_RETRY_BACKOFF=100ms", "OUTBOX_RETRY_BACKOFF_MAX=2s",
	}, settings...)}
	s.conn = s.Connect()
	return s
}

// start starts the relay and the honest events, and waits until they flow.
func (s *scene) start() {
	s.Helper()
	s.relay = s.Relay(s.settings...)
	s.relay.Leads()
	s.traffic = s.NewTraffic()
	harness.Eventually(s.TB, 10*time.Second, "honest events flow", func() bool { return s.traffic.Arrived() >= 20 })
	s.mark()
}

// awaitConsumer waits until the consumer that takes the times has read all that is stored.
func (s *scene) awaitConsumer() {
	s.Helper()
	from := time.Now()
	harness.Eventually(s.TB, time.Minute, "honest events arrive", func() bool { return s.traffic.ArrivedSince(from) })
}

// mark begins a watch.
func (s *scene) mark() {
	s.Helper()
	s.began = time.Now()
	s.term = s.latestTerm()
	s.backs, _ = s.relay.Metric("outbox_relay_recoveries_total")
}

func (s *scene) latestTerm() (term int) {
	s.Helper()
	if err := s.conn.QueryRow(s.Context(), `select coalesce(max(term), 0) from outbox_relay`).Scan(&term); err != nil {
		s.Fatal(err)
	}
	return term
}

func (s *scene) problem(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// check ends a watch: it compares what was seen since it began with the bounds.
func (s *scene) check(what string) {
	s.Helper()
	d := s.traffic.Since(s.began, s.exempt)
	if late(d) {
		s.problem("%s: others wait: %v", what, d)
	}
	terms := s.latestTerm() - s.term
	if terms > boundTerms {
		s.problem("%s: %d new terms", what, terms)
	}
	seen := fmt.Sprintf("%s, %v: %v; %d new terms", what, time.Since(s.began).Round(100*time.Millisecond), d, terms)
	if !s.relay.Alive() {
		s.problem("%s: the relay has ended", what)
		s.seen = append(s.seen, seen)
		return
	}
	backs, ok := s.relay.Metric("outbox_relay_recoveries_total")
	if backs -= s.backs; backs > boundReadBacks {
		s.problem("%s: the stream was read back %v times", what, backs)
	} else if !ok {
		s.problem("%s: no metrics", what)
	}
	peak := s.relay.Peak()
	if peak > boundMemory {
		s.problem("%s: memory of up to %d MiB", what, peak>>20)
	}
	s.seen = append(s.seen, fmt.Sprintf("%s; %v read-backs; memory up to %d MiB; %d bytes of log", seen, backs, peak>>20, s.relay.Logged()))
}

// late reports whether honest events waited for longer than they may. If the machine is too busy for the producer's inserts,
// they may wait somewhat longer.
func late(d harness.Delays) bool {
	return d.Events == 0 || d.P99 > boundDelay+min(4*d.Insert, 2*time.Second) || d.P50 > boundMedian+min(2*d.Insert, time.Second)
}

// checkLog compares the length of the present relay's log with the bound.
func (s *scene) checkLog(since time.Time) {
	if most := beginningOfLog + int(time.Since(since).Minutes()*boundLog); s.relay.Logged() > most {
		s.problem("%d bytes of log in %v", s.relay.Logged(), time.Since(since).Round(time.Second))
	}
}

// letter is what dead list --json says of a row.
type letter struct {
	Letter    int64  `json:"letter"`
	Seq       int64  `json:"seq"`
	ID        string `json:"id"`
	LastError string `json:"last_error"`
}

// letters returns the dead letters, as the operator has them; nil with a problem.
func (s *scene) letters() (letters []letter, err error) {
	s.Helper()
	result := s.Try(20*time.Second, s.settings, "dead", "list", "--json")
	if result.Code != 0 {
		return nil, fmt.Errorf("dead list: exit code %d: %s", result.Code, shortened(result.Stderr))
	}
	if err := json.Unmarshal([]byte(result.Stdout), &letters); err != nil {
		return nil, fmt.Errorf("dead list: %w", err)
	}
	return letters, nil
}

// checkCommands runs the commands that an operator runs first.
func (s *scene) checkCommands() {
	s.Helper()
	if _, err := s.letters(); err != nil {
		s.problem("%v", err)
	}
	for _, args := range [][]string{{"dead", "list", "--limit=20"}, {"status"}, {"status", "--json"}} {
		result := s.Try(20*time.Second, s.settings, args...)
		switch {
		case result.Code != 0:
			s.problem("%s: exit code %d: %s", strings.Join(args, " "), result.Code, shortened(result.Stderr))
		case slices.Contains(args, "--json") && !json.Valid([]byte(result.Stdout)):
			s.problem("%s: no JSON: %s", strings.Join(args, " "), shortened(result.Stdout))
		}
	}
	s.checkDoctor()
}

// boundDoctor is how long doctor may take, whatever the tables hold: its own questions are bounded, and none of them reads
// large tables.
const boundDoctor = 10 * time.Second

// checkDoctor has doctor look. Hostile rows are no fault of the set-up, so it fails at most because of seqs that the sequence
// has not given out, and because of what the owner did; and it says that there are dead letters.
func (s *scene) checkDoctor() {
	s.Helper()
	letters, lettersErr := s.letters()
	began := time.Now()
	result := s.Try(2*boundDoctor, s.settings, "doctor", "--json")
	if took := time.Since(began); took > boundDoctor {
		s.problem("doctor takes %v", took.Round(time.Millisecond))
	}
	var report struct {
		Checks []doctor.Finding `json:"checks"`
	}
	if err := json.Unmarshal([]byte(result.Stdout), &report); err != nil {
		s.problem("doctor: exit code %d, %v: %s%s", result.Code, err, shortened(result.Stdout), shortened(result.Stderr))
		return
	}
	found := make(map[string]doctor.Severity)
	for _, f := range report.Checks {
		if found[f.Check] != doctor.Failure {
			found[f.Check] = f.Severity
		}
		if f.Severity == doctor.Failure && f.Check != "sequence" && f.Check != s.owner {
			s.problem("doctor fails: %s: %s", f.Check, shortened(f.Detail))
		}
	}
	for _, check := range []string{
		doctor.CheckSchema, doctor.CheckPrivileges, "sequence", doctor.CheckLeader, doctor.CheckCandidates, doctor.CheckBacklog, doctor.CheckDeadLetters,
		doctor.CheckStream, doctor.CheckPublishing, doctor.CheckReadingBack,
	} {
		if found[check] == "" {
			s.problem("doctor says nothing of %s: %s", check, shortened(result.Stdout))
		}
	}
	if s.owner != "" && found[s.owner] != doctor.Failure {
		s.problem("doctor does not fail because of %s: %s", s.owner, shortened(result.Stdout))
	}
	if lettersErr == nil && len(letters) > 0 && found[doctor.CheckDeadLetters] != doctor.Warning {
		s.problem("doctor says that there are no dead letters: there are %d", len(letters))
	}
}

// takeover kills the relay, does something meanwhile, starts another, and waits until it publishes.
func (s *scene) takeover(meanwhile func()) {
	s.Helper()
	if peak := s.relay.Peak(); peak > boundMemory {
		s.problem("memory of up to %d MiB", peak>>20)
	}
	s.seen = append(s.seen, "log of the first relay:\n"+s.relay.Tail(3<<10))
	s.relay.Kill()
	meanwhile()
	started := time.Now()
	relay, ok := s.Serve(10*time.Second, s.settings...)
	s.relay = relay
	if !ok {
		s.problem("the next relay does not come up")
		return
	}
	for !s.traffic.ArrivedSince(started) && time.Since(started) < 4*boundTakeover {
		harness.Pause(s.Context(), 10*time.Millisecond)
	}
	took := time.Since(started)
	s.seen = append(s.seen, fmt.Sprintf("first event %v after the start of the next relay", took.Round(time.Millisecond)))
	if took > boundTakeover {
		s.problem("the next relay publishes nothing for %v", took.Round(time.Millisecond))
	}
	for range 200 { // What waited meanwhile.
		if d := s.traffic.Since(started, s.exempt); d.Missing == 0 {
			break
		}
		harness.Pause(s.Context(), 10*time.Millisecond)
	}
	s.mark()
}

// verdict reports what was found.
func (s *scene) verdict() {
	s.Helper()
	if len(s.problems) > 0 && s.relay != nil {
		s.Errorf("%s\n\nseen:\n%s\n\nlog:\n%s", strings.Join(s.problems, "\n"), strings.Join(s.seen, "\n"), s.relay.Tail(4<<10))
		return
	}
	s.Logf("%s", strings.Join(s.seen, "\n"))
}

// nowhere returns those of the hostile rows that are neither stored, nor dead letters, nor named in the log.
func (s *scene) nowhere(rows []harness.WrittenRow) (lost []harness.WrittenRow, err error) {
	s.Helper()
	letters, err := s.letters()
	if err != nil {
		return nil, err
	}
	dead := map[harness.WrittenRow]bool{}
	for _, l := range letters {
		dead[harness.WrittenRow{ID: l.ID, Seq: l.Seq}] = true
	}
	seqs, ids := s.relay.Matches(seqInLog), s.relay.Matches(idInLog)
	for _, row := range rows {
		if s.traffic.Stored(row.ID) == 0 && !dead[row] && !seqs[strconv.FormatInt(row.Seq, 10)] && !ids[row.ID] {
			lost = append(lost, row)
		}
	}
	return lost, nil
}

// How the log names rows.
var (
	seqInLog = regexp.MustCompile(`seqs?[= "':\[]+(-?\d+)\b`)
	idInLog  = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

// named matches a line of the log that names a row.
func named(row harness.WrittenRow) *regexp.Regexp {
	pattern := `seq[= "':]+` + strconv.FormatInt(row.Seq, 10) + `\b`
	if row.ID != "" {
		pattern += `|` + row.ID
	}
	return regexp.MustCompile(pattern)
}

// shortened cuts what a program printed for a report.
func shortened(text string) string {
	const most = 500
	if text = strings.TrimSpace(text); len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// rolledBack runs do in a transaction that leaves nothing.
func rolledBack(ctx context.Context, conn *pgx.Conn, do func() error) error {
	if _, err := conn.Exec(ctx, `begin`); err != nil {
		return err
	}
	err := do()
	if _, rollbackErr := conn.Exec(ctx, `rollback`); rollbackErr != nil {
		return rollbackErr
	}
	return err
}
