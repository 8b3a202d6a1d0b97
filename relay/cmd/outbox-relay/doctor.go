package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

const (
	// doctorPatience bounds each question to the broker.
	doctorPatience = 5 * time.Second
	// longWait is how long an event may wait before that is worth a warning: an outage of a minute is one.
	longWait = time.Minute
	// samplesTried is how many kinds of pending events are tried, and samplesTold how many of them are named.
	samplesTried = 200
	samplesTold  = 3
)

func newDoctorCommand(p *process) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check all that exactly-once delivery depends on",
		Long: `Check the configuration, Postgres, NATS and the stream for all that exactly-once delivery depends on,
and say of each whether it is well and, if not, what to do. It changes nothing, works whether or not a
relay runs, and shows no secrets. What cannot be checked, as something before it failed, is left out.
To try whether the relay may read back the stream, it has the broker make a consumer for a moment.

The exit code is 1 if something failed or, with strict = true, if there is a warning.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := &doctor{p: p}
			d.examine(cmd.Context())
			return d.report(asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// verdict is what came of a check.
type verdict string

const (
	verdictOK      verdict = "ok"
	verdictWarning verdict = "warning" // It works, without all that is promised.
	verdictFailure verdict = "failure" // It does not work.
)

// finding is a line of doctor --json. Programs read this: fields may be added, not changed.
type finding struct {
	Check  string  `json:"check"`
	Status verdict `json:"status"`
	Detail string  `json:"detail"`
}

// doctor makes the checks, in the order in which one would mend things.
type doctor struct {
	p        *process
	config   config.Config
	findings []finding
	pending  []store.Sample // Events that are in the outbox, one of each kind.
}

func (d *doctor) ok(check, format string, args ...any) { d.note(verdictOK, check, format, args...) }

func (d *doctor) warn(check, format string, args ...any) {
	d.note(verdictWarning, check, format, args...)
}

func (d *doctor) fail(check, format string, args ...any) {
	d.note(verdictFailure, check, format, args...)
}

func (d *doctor) note(status verdict, check, format string, args ...any) {
	d.findings = append(d.findings, finding{check, status, fmt.Sprintf(format, args...)})
}

func (d *doctor) examine(ctx context.Context) {
	_, faults := d.p.config(config.NeedRelay)
	if usage, ok := errors.AsType[*usageError](faults); ok {
		faults = usage.err // The hint is for who asked for something else.
	}
	if faults != nil {
		d.fail("configuration", "%v", faults)
	} else {
		d.ok("configuration", "valid")
	}
	c, err := d.p.config(config.NeedValues)
	if err != nil {
		return // Its faults are among those above.
	}
	d.config = c
	d.examineElection()
	d.examineRetain()
	d.examineDatabase(ctx)
	d.examineBroker(ctx)
}

func (d *doctor) examineElection() {
	if d.config.Election.Kind == config.ElectionNone {
		d.warn("election", "election.kind is none: two relays that run at once publish out of order, and twice: set it to %q unless something else sees to that", config.ElectionPostgres)
		return
	}
	d.ok("election", "%s", d.config.Election.Kind)
}

func (d *doctor) examineRetain() {
	if d.config.Relay.Retain == 0 {
		d.warn("retain", "relay.retain is 0: what the broker loses after it has acknowledged it cannot be published again: set OUTBOX_RETAIN to longer than a server of it may be away, such as 5m")
		return
	}
	d.ok("retain", "published events are kept for %v", d.config.Relay.Retain)
}

func (d *doctor) examineDatabase(ctx context.Context) {
	outbox, err := openOutbox(d.config)
	if err != nil {
		return // check has said so.
	}
	found, err := outbox.Diagnose(ctx)
	switch {
	case errors.Is(err, store.ErrPooler):
		d.fail("pooler", "%v", err)
		return
	case err != nil:
		d.fail("postgres", "%v", err)
		return
	case found.Standby:
		d.fail("postgres", "PostgreSQL %s, database %q: is a standby, which takes no events and no locks: point database_dsn at the primary", found.Version, found.Database)
		return // What it says of a leader and of locks would be untrue.
	default:
		d.ok("postgres", "PostgreSQL %s, database %q, role %q", found.Version, found.Database, found.Role)
	}
	d.ok("pooler", "none is in between")
	d.examineDurability(&found)
	if d.examineTables(&found) {
		d.examineTrigger(&found)
		d.examineGrants(ctx, outbox)
		d.examineHazards(ctx, outbox)
		if !errors.Is(found.Tables, store.ErrRowSecurity) { // Otherwise there is no looking.
			d.examineContents(ctx, outbox)
			d.pending, _ = outbox.Samples(ctx, samplesTried) // What is wrong with the tables has been said.
		}
	}
}

func (d *doctor) examineDurability(found *store.Diagnosis) {
	var lax []string
	if found.SynchronousCommit == "off" {
		lax = append(lax, "synchronous_commit is off: a crash of Postgres may undo the latest commits, and the events in them that consumers have seen")
	}
	if found.Fsync != "on" {
		lax = append(lax, "fsync is off: a crash of the machine may destroy the database")
	}
	if found.FullPageWrites != "on" {
		lax = append(lax, "full_page_writes is off: a crash of the machine may damage the tables")
	}
	if len(lax) > 0 {
		d.warn("durability", "a committed event can be lost: %s", strings.Join(lax, "; "))
		return
	}
	d.ok("durability", "synchronous_commit is %s", found.SynchronousCommit)
}

// examineTables reports whether there is an outbox to examine further.
func (d *doctor) examineTables(found *store.Diagnosis) bool {
	err := found.Tables
	schema := func() { d.ok("schema", "version %d", found.Schema) }
	privileges := func() { d.ok("privileges", "role %q has all that the relay needs", found.Role) }
	switch {
	case err == nil:
		schema()
		privileges()
		d.ok("row security", "hides no rows from the relay")
		return true
	case errors.Is(err, store.ErrRowSecurity):
		schema()
		privileges()
		d.fail("row security", "%v", err)
		return true
	case errors.Is(err, store.ErrPrivilege):
		if found.Schema == found.SchemaNeeded {
			schema()
		}
		d.fail("privileges", "%v", err)
	case d.config.Migrate && found.MayCreate && errors.Is(err, store.ErrNoTable):
		d.ok("schema", "there are no tables yet; the relay creates them when it starts")
	case d.config.Migrate && found.MayCreate && errors.Is(err, store.ErrOldSchema):
		d.ok("schema", "version %d; the relay brings it to %d when it starts", found.Schema, found.SchemaNeeded)
	case d.config.Migrate && errors.Is(err, store.ErrNoTable):
		d.fail("schema", "%v, as a role that may create tables there, which %q may not", err, found.Role)
	default:
		d.fail("schema", "%v", err)
	}
	return false
}

func (d *doctor) examineTrigger(found *store.Diagnosis) {
	consequence := fmt.Sprintf("new events are found by polling only, up to %v late", d.config.Relay.PollInterval)
	switch found.Trigger {
	case store.TriggerEnabled:
		d.ok("trigger", "enabled; it wakes the relay")
	case store.TriggerDisabled:
		d.warn("trigger", "disabled: %s: an owner must run `%s`", consequence, store.Table(d.config.Table).EnableTrigger())
	case store.TriggerMissing, store.TriggerForeign:
		d.warn("trigger", "%s: %s: create it as `outbox-relay migrate --print` has it", found.Trigger, consequence)
	}
}

// examineGrants compares what producers may do with what they need.
func (d *doctor) examineGrants(ctx context.Context, outbox *store.Outbox) {
	findings, err := outbox.CheckGrants(ctx)
	if err != nil {
		d.warn("producers", "their privileges could not be read: %v", err)
		return
	}
	for _, found := range findings {
		d.warn("producers", "role %q %s: an owner must run `%s`", found.Role, found.Problem, found.Remedy)
	}
	if len(findings) == 0 {
		d.ok("producers", "may insert events, and nothing else")
	}
}

// examineHazards examines what others may have set up in the database.
func (d *doctor) examineHazards(ctx context.Context, outbox *store.Outbox) {
	hazards, err := outbox.Hazards(ctx)
	if err != nil {
		d.fail("hazards", "%v", err)
		return
	}
	d.noteHazards(hazards)
}

func (d *doctor) noteHazards(hazards []store.Hazard) {
	for _, h := range hazards {
		d.note(map[store.Severity]verdict{store.Harmless: verdictOK, store.Doubtful: verdictWarning, store.Harmful: verdictFailure}[h.Severity], h.Check, "%s", h.Text)
	}
}

func (d *doctor) examineContents(ctx context.Context, outbox *store.Outbox) {
	found, err := outbox.Inspect(ctx)
	if err != nil {
		d.fail("contents", "%v", err)
		return
	}
	obstacles := found.Obstacles()
	if len(obstacles) == 0 {
		d.ok("locks", "nobody waits for any, and no old transaction holds up vacuum to a degree that matters")
	}
	d.noteHazards(obstacles)
	d.noteHazards([]store.Hazard{found.CheckStream(d.config.Stream.Name, d.config.Stream.Adopt)})
	switch latest := found.Terms; {
	case len(latest) == 0:
		d.ok("leader", "none so far")
	default:
		s := statusOf(d.config, outbox.Table(), &found)
		d.ok("leader", "%s, term %d on stream %q, since %s", s.present(visible(latest[0].Leader)), latest[0].Number, latest[0].Stream, latest[0].Since.UTC().Format(time.RFC3339))
	}
	d.examineTrouble(&found)
	switch waiting := countOf(found.Waiting); {
	case found.Oldest == nil:
		d.ok("backlog", "nothing waits")
	case *found.Oldest > longWait:
		d.warn("backlog", "%v waiting, the first of them for %s: does a relay run, and what does its log say?", waiting, age(found.Oldest.Seconds()))
	default:
		d.ok("backlog", "%v waiting, the first of them for %s", waiting, age(found.Oldest.Seconds()))
	}
	if found.Dead.Rows > 0 {
		d.warn("dead letters", "%v: see `outbox-relay dead list`, then requeue or discard them", countOf(found.Dead))
		return
	}
	d.ok("dead letters", "none")
}

// freshTrouble is how old a leader's word may be that it cannot publish: it says so again every few seconds.
const freshTrouble = time.Minute

// examineTrouble tells what the leader says.
func (d *doctor) examineTrouble(found *store.Inspection) {
	const check = "publishing now"
	switch latest := found.Terms; {
	case len(latest) == 0:
	case latest[0].Trouble.Text == "":
		d.ok(check, "nothing keeps the leader from it, as far as it has said")
	case latest[0].Trouble.Age > freshTrouble:
		d.warn(check, "the latest leader could not, when it last said so %s ago: %s", age(latest[0].Trouble.Age.Seconds()), visible(latest[0].Trouble.Text))
	default:
		d.fail(check, "the leader has not been able to for %s: %s", age(latest[0].Trouble.For.Seconds()), visible(latest[0].Trouble.Text))
	}
}

func (d *doctor) examineBroker(ctx context.Context) {
	embedded := d.config.NATS.Embedded()
	if embedded {
		if _, port, _ := net.SplitHostPort(d.config.NATS.Listen); port == "0" {
			d.warn("nats", "the embedded server listens on any free port, which only the relay knows: to have it checked, set OUTBOX_NATS_LISTEN to one with a number")
			return
		}
	}
	c := relayConfig(d.config, "nats://"+d.config.NATS.Listen)
	c.Connect.Name = "outbox-relay doctor"
	connect, setup, _ := c.Target() // What is wrong with it, check has said.
	var asides aside
	connect.OnError = asides.add
	conn, err := stream.Connect(ctx, connect)
	switch {
	case err != nil && embedded:
		d.warn("nats", "the embedded server runs inside the relay, and none answers: %v", err)
		return
	case err != nil:
		d.fail("nats", "%v", err)
		return
	}
	defer conn.Close()
	if err := stream.CheckServer(conn); err != nil {
		d.fail("nats", "%v", err)
		return
	}
	d.ok("nats", "nats-server %s at %s", conn.ConnectedServerVersion(), stream.RedactURL(conn.ConnectedUrl()))
	if _, err := stream.ParseTemplate(d.config.Stream.Subject); err != nil {
		return // Without subjects there is nothing to ask for.
	}
	js, err := connect.JetStream(conn)
	if err != nil {
		d.fail("jetstream", "%v", err)
		return
	}
	found, fit, answers := d.examineStream(ctx, connect, conn, js, setup, &asides)
	if found != nil {
		d.examinePublishing(ctx, conn, setup, found, &asides)
		if fit {
			d.examineReading(ctx, connect, setup, found)
		}
		d.examineAccount(ctx, js, &asides)
	}
	if answers && d.config.Election.Kind == config.ElectionJetStream {
		d.examineBucket(ctx, conn, connect.Domain, setup)
	}
}

// examineStream returns the stream as it is, if there is one, whether a relay can use it, and whether JetStream answers.
func (d *doctor) examineStream(ctx context.Context, connect stream.ConnectOptions, conn *nats.Conn, js jetstream.JetStream, setup stream.Setup, asides *aside) (found *jetstream.StreamConfig, fit, answers bool) {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	create := setup.Create
	setup.Create, setup.Strict = false, false // Nothing is to change, and strictness is applied to the findings.
	switch err := asides.ask(ctx, func(ctx context.Context) error {
		_, err := js.Stream(ctx, setup.Stream)
		return err
	}); {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		d.ok("jetstream", "enabled")
		if create {
			d.examineAbsentStream(ctx, connect, js, setup, asides)
			return nil, false, true
		}
	case err != nil:
		d.fail("jetstream", "%v", d.inRelaysWords(ctx, connect, setup, asides)) // It knows what the error means.
		return nil, false, false
	default:
		d.ok("jetstream", "enabled")
	}
	report, err := setup.Ensure(ctx, js)
	if err != nil {
		d.fail("stream", "%v", err)
	} else {
		d.ok("stream", "%q takes the relay's subjects and has %d messages", setup.Stream, report.Info.State.Msgs)
	}
	for _, warning := range report.Warnings {
		d.warn("stream", "%q: %s", setup.Stream, warning)
	}
	if report.Info == nil {
		return nil, false, true
	}
	fit = err == nil
	found = &report.Info.Config
	if found.Duplicates >= setup.MinWindow {
		d.ok("duplicate window", "%v, at least %v are needed", found.Duplicates, setup.MinWindow)
	}
	d.examineLimits(report.Info)
	d.ok("ordered batches", "%s", connect.BatchAdvice(conn, setup.Stream, found.AllowBatchPublish))
	return found, fit, true
}

// inRelaysWords returns the error that a relay has when it looks at the stream.
func (d *doctor) inRelaysWords(ctx context.Context, connect stream.ConnectOptions, setup stream.Setup, asides *aside) error {
	connect.OnError = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), doctorPatience)
	defer cancel()
	relay, err := stream.NewPublisher(stream.PublisherOptions{Connect: connect, Setup: setup})
	if err != nil {
		return err
	}
	defer relay.Close()
	if _, err := relay.Open(ctx); err != nil {
		return err
	}
	return fmt.Errorf("JetStream did not answer, and then it did%s", asides)
}

// examinePublishing tries the subjects that a relay publishes to, with messages that the stream will not store.
func (d *doctor) examinePublishing(ctx context.Context, conn *nats.Conn, setup stream.Setup, found *jetstream.StreamConfig, asides *aside) {
	const check, anybody = "publishing", "outbox-relay-doctor"
	if found.NoAck {
		return // Nothing would be answered; the stream's check has said so.
	}
	permitted := func(subject string) bool {
		msg := nats.NewMsg(subject)
		msg.Header.Set(jetstream.ExpectedStreamHeader, "outbox-relay doctor") // No stream has such a name.
		err := asides.ask(ctx, func(ctx context.Context) error {
			_, err := conn.RequestMsgWithContext(ctx, msg)
			return err
		})
		return !errors.Is(err, nats.ErrPermissionViolation)
	}
	// A stream that removes what was consumed has no such messages.
	if control := setup.ControlSubject(anybody, *found); found.Retention == jetstream.LimitsPolicy && !permitted(control) {
		d.fail(check, "the relay cannot begin a term: let its NATS user publish to %s", strings.Replace(control, anybody, "*", 1))
		return
	}
	denied, tried := d.deniedSubjects(setup.Template, permitted)
	if len(denied) > 0 {
		told := denied[:min(len(denied), samplesTold)]
		d.fail(check, "%d of %s of pending events are denied to the relay's NATS user, and become dead letters: let it publish to %s, such as %s",
			len(denied), plural(tried, "kind"), setup.Template.StreamSubject(), strings.Join(told, ", "))
		return
	}
	somebody := stream.Event{Topic: anybody, AggregateType: anybody, AggregateID: anybody, EventType: anybody}
	if subject := setup.Template.Subject(&somebody); !permitted(subject) {
		d.warn(check, "an event for %s would be refused: let the relay's NATS user publish to %s, unless it may for the topics that there are", subject, setup.Template.StreamSubject())
		return
	}
	d.ok(check, "permitted: the relay can send events, and what it writes for itself")
}

// examineReading tries what a relay does to find out what is stored, each time that it takes over or is in doubt: with the
// relay's own code, so that whatever it gets past is no failure.
func (d *doctor) examineReading(ctx context.Context, connect stream.ConnectOptions, setup stream.Setup, found *jetstream.StreamConfig) {
	const check = "reading back"
	connect.OnError = nil
	setup.Create, setup.Strict = false, false // Nothing is to change, and strictness is applied to the findings.
	direct, err := d.tryReading(ctx, stream.PublisherOptions{Connect: connect, Setup: setup}, found.Retention == jetstream.LimitsPolicy)
	switch {
	case err != nil:
		d.fail(check, "the relay cannot read what stream %q holds, and publishes nothing without: %s", found.Name, strings.ReplaceAll(err.Error(), "\n", "; "))
	case direct:
		d.ok(check, "the relay can look up what the stream holds: by direct gets, which take longer, since the stream takes no further consumer")
	default:
		d.ok(check, "permitted: the relay can look up what the stream holds")
	}
}

// tryReading tries it. A stream that removes what was consumed is not read back.
func (d *doctor) tryReading(ctx context.Context, options stream.PublisherOptions, back bool) (direct bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*doctorPatience)
	defer cancel()
	reader, err := stream.NewPublisher(options)
	if err != nil {
		return false, err
	}
	defer reader.Close()
	if _, err := reader.Open(ctx); err != nil {
		return false, err
	}
	if !back {
		return false, reader.TryFinding(ctx)
	}
	return reader.TryReading(ctx)
}

// examineBucket examines what relays are elected by, if that is in NATS.
func (d *doctor) examineBucket(ctx context.Context, conn *nats.Conn, domain string, setup stream.Setup) {
	const check = "bucket"
	switch err := election.VerifyBucket(ctx, conn, election.KeyValueOptions{Domain: domain}); {
	case err == nil:
		d.ok(check, "%q is there for the election", election.DefaultBucket)
	case errors.Is(err, jetstream.ErrBucketNotFound):
		d.ok(check, "%q does not exist yet; the relay creates it, with %s", election.DefaultBucket, plural(setup.Replicas, "replica"))
	default:
		d.fail(check, "no relay is elected: %v", err)
	}
}

// examineAbsentStream examines the stream that the relay would create.
func (d *doctor) examineAbsentStream(ctx context.Context, connect stream.ConnectOptions, js jetstream.JetStream, setup stream.Setup, asides *aside) {
	// A request that creates nothing, since it names no stream: whatever is answered, it is permitted.
	create := connect.API() + "STREAM.CREATE." + setup.Stream
	if err := asides.ask(ctx, func(ctx context.Context) error {
		_, err := js.Conn().RequestWithContext(ctx, create, []byte("{}"))
		return err
	}); errors.Is(err, nats.ErrPermissionViolation) {
		d.fail("stream", "%q does not exist and cannot be created: let the relay's NATS user publish to %s, or create the stream", setup.Stream, create)
		return
	}
	subject := setup.Template.StreamSubject()
	if other, err := js.StreamNameBySubject(ctx, subject); err == nil {
		d.fail("stream", "%q does not exist and cannot be created, since stream %q listens on subjects of %q: name that stream, or give the subject template another first token", setup.Stream, other, subject)
		return
	}
	d.ok("stream", "%q does not exist yet; the relay creates it, for %q; whether a limit of the server forbids its settings, only that shows: "+
		"then the relay is not ready, and its log and /readyz name the limit and the setting", setup.Stream, subject)
	if setup.Memory {
		d.warn("stream", "%q is to be kept in memory: acknowledged events are lost when its servers restart: set OUTBOX_STREAM_STORAGE to file", setup.Stream)
	}
	if window := setup.DuplicateWindow; window < setup.MinWindow {
		d.warn("duplicate window", "%v is less than %v: an event may be stored twice when a frozen leader wakes up: set OUTBOX_DUPLICATE_WINDOW to more", window, setup.MinWindow)
	} else {
		d.ok("duplicate window", "%v, at least %v are needed", window, setup.MinWindow)
	}
}

// aside collects what a connection complains of beside the answers, such as a permission that it lacks.
type aside struct {
	mu     sync.Mutex // Protects what follows.
	errors []string
	refuse context.CancelCauseFunc // Ends the question that is asked; nil if none is.
}

// ask asks a question. What is not permitted is not answered but complained of, and then that is the error.
func (a *aside) ask(ctx context.Context, question func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	ctx, refuse := context.WithCancelCause(ctx)
	defer refuse(nil)
	a.asking(refuse)
	defer a.asking(nil)
	err := question(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (a *aside) asking(refuse context.CancelCauseFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = refuse
}

func (a *aside) add(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.errors = append(a.errors, err.Error())
	if a.refuse != nil && errors.Is(err, nats.ErrPermissionViolation) {
		a.refuse(err)
	}
}

// String is to follow another error's text.
func (a *aside) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.errors) == 0 {
		return ""
	}
	return " (" + strings.Join(a.errors, "; ") + ")"
}

// report writes the findings. Its error says that they do not suffice.
func (d *doctor) report(asJSON bool) error {
	counts := map[verdict]int{}
	for _, f := range d.findings {
		counts[f.Status]++
	}
	failures, warnings := counts[verdictFailure], counts[verdictWarning]
	healthy := failures == 0 && (warnings == 0 || !d.config.Strict)
	if err := d.write(asJSON, healthy); err != nil {
		return err
	}
	switch {
	case healthy:
		return nil
	case failures == 0:
		return fmt.Errorf("doctor: %s, which strict = true does not allow", plural(warnings, "warning"))
	}
	return fmt.Errorf("doctor: %s, %s", plural(failures, "failure"), plural(warnings, "warning"))
}

func (d *doctor) write(asJSON, healthy bool) error {
	if asJSON {
		return writeJSON(d.p.stdout, struct {
			Healthy bool      `json:"healthy"`
			Checks  []finding `json:"checks"`
		}{healthy, d.findings})
	}
	for _, f := range d.findings {
		// A detail of several lines stays in its column.
		detail := strings.ReplaceAll(f.Detail, "\n", "\n"+strings.Repeat(" ", len("warning  ")+len("duplicate window  ")))
		if err := printf(d.p.stdout, "%-7s  %-16s  %s\n", f.Status, f.Check, detail); err != nil {
			return err
		}
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
