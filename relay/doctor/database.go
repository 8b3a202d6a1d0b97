package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

func (d *doctor) examineDatabase(ctx context.Context) {
	outbox, err := d.config.Outbox()
	if err != nil {
		return // The check of the configuration has said so.
	}
	found, err := outbox.Diagnose(ctx)
	switch {
	case errors.Is(err, store.ErrPooler):
		d.pass(Failure, CheckPooler, err.Error())
		return
	case err != nil:
		d.pass(Failure, CheckPostgres, err.Error())
		return
	case found.Standby:
		d.fail(CheckPostgres, "point database_dsn at the primary", "PostgreSQL %s, database %q: is a standby, which takes no events and no locks", found.Version, found.Database)
		return // What it says of a leader and of locks would be untrue.
	default:
		d.ok(CheckPostgres, "PostgreSQL %s, database %q, role %q", found.Version, found.Database, found.Role)
	}
	d.ok(CheckPooler, "none is in between")
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
	var lax, settings []string
	find := func(setting, problem string) {
		lax, settings = append(lax, setting+" is off: "+problem), append(settings, setting)
	}
	if found.SynchronousCommit == "off" {
		find("synchronous_commit", "a crash of Postgres may undo the latest commits, and the events in them that consumers have seen")
	}
	if found.Fsync != "on" {
		find("fsync", "a crash of the machine may destroy the database")
	}
	if found.FullPageWrites != "on" {
		find("full_page_writes", "a crash of the machine may damage the tables")
	}
	if len(lax) > 0 {
		d.warn(CheckDurability, "set "+strings.Join(settings, " and ")+" to on", "a committed event can be lost: %s", strings.Join(lax, "; "))
		return
	}
	d.ok(CheckDurability, "synchronous_commit is %s", found.SynchronousCommit)
}

// examineTables reports whether there is an outbox to examine further.
func (d *doctor) examineTables(found *store.Diagnosis) bool {
	err := found.Tables
	schema := func() { d.ok(CheckSchema, "version %d", found.Schema) }
	privileges := func() { d.ok(CheckPrivileges, "role %q has all that the relay needs", found.Role) }
	switch {
	case err == nil:
		schema()
		privileges()
		d.ok(CheckRowSecurity, "hides no rows from the relay")
		return true
	case errors.Is(err, store.ErrRowSecurity):
		schema()
		privileges()
		d.pass(Failure, CheckRowSecurity, err.Error())
		return true
	case errors.Is(err, store.ErrPrivilege):
		if found.Schema == found.SchemaNeeded {
			schema()
		}
		d.pass(Failure, CheckPrivileges, err.Error())
	case !d.config.NoMigrate && found.MayCreate && errors.Is(err, store.ErrNoTable):
		d.ok(CheckSchema, "there are no tables yet; the relay creates them when it starts")
	case !d.config.NoMigrate && found.MayCreate && errors.Is(err, store.ErrOldSchema):
		d.ok(CheckSchema, "version %d; the relay brings it to %d when it starts", found.Schema, found.SchemaNeeded)
	case !d.config.NoMigrate && errors.Is(err, store.ErrNoTable):
		d.pass(Failure, CheckSchema, fmt.Sprintf("%v, as a role that may create tables there, which %q may not", err, found.Role))
	default:
		d.pass(Failure, CheckSchema, err.Error())
	}
	return false
}

func (d *doctor) examineTrigger(found *store.Diagnosis) {
	consequence := fmt.Sprintf("new events are found by polling only, up to %v late", cmp.Or(d.config.PollInterval, relay.DefaultPollInterval))
	switch found.Trigger {
	case store.TriggerEnabled:
		d.ok(CheckTrigger, "enabled; it wakes the relay")
	case store.TriggerDisabled:
		d.warn(CheckTrigger, fmt.Sprintf("an owner must run `%s`", d.config.Table.EnableTrigger()), "disabled: %s", consequence)
	case store.TriggerMissing, store.TriggerForeign:
		d.warn(CheckTrigger, "create it as `outbox-relay migrate --print` has it", "%s: %s", found.Trigger, consequence)
	}
}

// examineGrants compares what producers may do with what they need.
func (d *doctor) examineGrants(ctx context.Context, outbox *store.Outbox) {
	findings, err := outbox.CheckGrants(ctx)
	if err != nil {
		d.pass(Warning, CheckProducers, fmt.Sprintf("their privileges could not be read: %v", err))
		return
	}
	for _, found := range findings {
		d.warn(CheckProducers, fmt.Sprintf("an owner must run `%s`", found.Remedy), "role %q %s", found.Role, found.Problem)
	}
	if len(findings) == 0 {
		d.ok(CheckProducers, "may insert events, and nothing else")
	}
}

// examineHazards examines what others may have set up in the database.
func (d *doctor) examineHazards(ctx context.Context, outbox *store.Outbox) {
	hazards, err := outbox.Hazards(ctx)
	if err != nil {
		d.pass(Failure, CheckHazards, err.Error())
		return
	}
	d.noteHazards(hazards)
}

func (d *doctor) noteHazards(hazards []store.Hazard) {
	for _, h := range hazards {
		switch h.Severity {
		case store.Harmless:
			d.pass(OK, h.Check, h.Text)
		case store.Doubtful:
			d.pass(Warning, h.Check, h.Text)
		case store.Harmful:
			d.pass(Failure, h.Check, h.Text)
		}
	}
}

func (d *doctor) examineContents(ctx context.Context, outbox *store.Outbox) {
	found, err := outbox.Inspect(ctx)
	if err != nil {
		d.pass(Failure, CheckContents, err.Error())
		return
	}
	obstacles := found.Obstacles()
	if len(obstacles) == 0 {
		d.ok(CheckLocks, "nobody waits for any, and no old transaction holds up vacuum to a degree that matters")
	}
	d.noteHazards(obstacles)
	d.noteHazards([]store.Hazard{found.CheckStream(cmp.Or(d.config.Stream.Name, stream.DefaultStream), d.config.Stream.Adopt)})
	d.examineLeader(&found)
	d.examineCandidates(&found)
	d.examinePause(&found)
	d.examineTrouble(&found)
	switch waiting := many(found.Waiting); {
	case found.Oldest == nil:
		d.ok(CheckBacklog, "nothing waits")
	case *found.Oldest > longWait && found.Pause != nil:
		d.warn(CheckBacklog, "", "%s waiting, the first of them for %s: the outbox is paused by hand", waiting, age(*found.Oldest))
	case *found.Oldest > longWait:
		d.warn(CheckBacklog, "", "%s waiting, the first of them for %s: does a relay run, and what does its log say?", waiting, age(*found.Oldest))
	default:
		d.ok(CheckBacklog, "%s waiting, the first of them for %s", waiting, age(*found.Oldest))
	}
	if found.Dead.Rows > 0 {
		d.warn(CheckDeadLetters, "see `outbox-relay dead list`, then requeue or discard them", "%s", many(found.Dead))
		return
	}
	d.ok(CheckDeadLetters, "none")
}

// examineLeader tells who leads, as far as the database knows.
func (d *doctor) examineLeader(found *store.Inspection) {
	if len(found.Terms) == 0 {
		d.ok(CheckLeader, "none so far")
		return
	}
	latest := &found.Terms[0]
	leader := visible(latest.Leader)
	switch {
	case !d.elected() || found.Locked == nil:
		leader += ", as far as the database knows"
	case !*found.Locked:
		leader = "none now; the latest was " + leader
	}
	d.ok(CheckLeader, "%s, term %d on stream %q, since %s", leader, latest.Number, latest.Stream, latest.Since.UTC().Format(time.RFC3339))
}

// examineCandidates tells why relays could not lead. If none leads, that is why nothing is published.
func (d *doctor) examineCandidates(found *store.Inspection) {
	if len(found.Unfit) == 0 {
		d.ok(CheckCandidates, "none says that it could not lead")
		return
	}
	said := make([]string, len(found.Unfit))
	for i := range found.Unfit {
		u := &found.Unfit[i]
		said[i] = fmt.Sprintf("%s (for %s, as it said %s ago): %s", visible(u.Name), age(u.Trouble.For), age(u.Trouble.Age), visible(u.Trouble.Text))
	}
	if d.elected() && found.Locked != nil && !*found.Locked {
		d.pass(Failure, CheckCandidates, fmt.Sprintf("no relay leads; %s cannot: %s", plural(len(said), "candidate"), strings.Join(said, "; ")))
		return
	}
	d.pass(Warning, CheckCandidates, fmt.Sprintf("%s could not lead: %s", plural(len(said), "candidate"), strings.Join(said, "; ")))
}

// elected reports whether relays are elected through Postgres, so that it knows whether one leads.
func (d *doctor) elected() bool {
	return cmp.Or(d.config.Election.Kind, relay.ElectionPostgres) == relay.ElectionPostgres
}

// examinePause tells whether a person has paused the outbox.
func (d *doctor) examinePause(found *store.Inspection) {
	if p := found.Pause; p != nil {
		d.warn(CheckPause, "run `outbox-relay resume` when events are to go on", "%s has had all relays publish nothing for %s: %s", visible(p.By), age(p.For), visible(p.Reason))
		return
	}
	d.ok(CheckPause, "nobody has paused the outbox")
}

// examineTrouble tells what the leader says.
func (d *doctor) examineTrouble(found *store.Inspection) {
	switch latest := found.Terms; {
	case len(latest) == 0:
	case latest[0].Trouble.Text == "":
		d.ok(CheckPublishingNow, "nothing keeps the leader from it, as far as it has said")
	case latest[0].Trouble.Age > freshTrouble:
		d.pass(Warning, CheckPublishingNow, fmt.Sprintf("the latest leader could not, when it last said so %s ago: %s", age(latest[0].Trouble.Age), visible(latest[0].Trouble.Text)))
	default:
		d.pass(Failure, CheckPublishingNow, fmt.Sprintf("the leader has not been able to for %s: %s", age(latest[0].Trouble.For), visible(latest[0].Trouble.Text)))
	}
}
