package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

func (d *doctor) examineBroker(ctx context.Context) {
	embedded := d.options.Embedded
	if embedded {
		if _, port, _ := net.SplitHostPort(strings.TrimPrefix(d.config.NATS, "nats://")); port == "0" {
			d.warn(CheckNATS, "to have it checked, set OUTBOX_NATS_LISTEN to one with a number", "the embedded server listens on any free port, which only the relay knows")
			return
		}
	}
	c := d.config
	c.Connect.Name = "outbox-relay doctor"
	connect, setup, _ := c.Target() // What is wrong with it, the check of the configuration has said.
	var asides aside
	connect.OnError = asides.add
	conn, err := stream.Connect(ctx, connect)
	switch {
	case err != nil && embedded:
		d.warn(CheckNATS, "", "the embedded server runs inside the relay, and none answers: %v", err)
		return
	case err != nil:
		d.pass(Failure, CheckNATS, err.Error())
		return
	}
	defer conn.Close()
	if err := stream.CheckServer(conn); err != nil {
		d.pass(Failure, CheckNATS, err.Error())
		return
	}
	d.ok(CheckNATS, "nats-server %s at %s", conn.ConnectedServerVersion(), stream.RedactURL(conn.ConnectedUrl()))
	if _, err := stream.ParseTemplate(cmp.Or(d.config.Stream.Subject, stream.DefaultTemplate)); err != nil {
		return // Without subjects there is nothing to ask for.
	}
	js, err := connect.JetStream(conn)
	if err != nil {
		d.pass(Failure, CheckJetStream, err.Error())
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
	if answers && d.config.Election.Kind == relay.ElectionJetStream {
		d.examineBucket(ctx, conn, connect.Domain, setup)
	}
}

// examineStream returns the stream as it is, if there is one, whether a relay can use it, and whether JetStream answers.
func (d *doctor) examineStream(ctx context.Context, connect stream.ConnectOptions, conn *nats.Conn, js jetstream.JetStream, setup stream.Setup, asides *aside) (found *jetstream.StreamConfig, fit, answers bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	create := setup.Create
	setup.Create, setup.Strict = false, false // Nothing is to change, and strictness is applied to the findings.
	switch err := asides.ask(ctx, func(ctx context.Context) error {
		_, err := js.Stream(ctx, setup.Stream)
		return err
	}); {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		d.ok(CheckJetStream, "enabled")
		if create {
			d.examineAbsentStream(ctx, connect, js, setup, asides)
			return nil, false, true
		}
	case err != nil:
		d.pass(Failure, CheckJetStream, d.inRelaysWords(ctx, connect, setup, asides).Error()) // It knows what the error means.
		return nil, false, false
	default:
		d.ok(CheckJetStream, "enabled")
	}
	report, err := setup.Ensure(ctx, js)
	if err != nil {
		d.pass(Failure, CheckStream, err.Error())
	} else {
		d.ok(CheckStream, "%q takes the relay's subjects and has %d messages", setup.Stream, report.Info.State.Msgs)
	}
	for _, warning := range report.Warnings {
		d.pass(Warning, CheckStream, fmt.Sprintf("%q: %s", setup.Stream, warning))
	}
	if report.Info == nil {
		return nil, false, true
	}
	fit = err == nil
	found = &report.Info.Config
	if found.Duplicates >= setup.MinWindow {
		d.ok(CheckDuplicateWindow, "%v, at least %v are needed", found.Duplicates, setup.MinWindow)
	}
	d.examineLimits(report.Info)
	d.ok(CheckOrderedBatches, "%s", connect.BatchAdvice(conn, setup.Stream, found.AllowBatchPublish))
	return found, fit, true
}

// inRelaysWords returns the error that a relay has when it looks at the stream.
func (d *doctor) inRelaysWords(ctx context.Context, connect stream.ConnectOptions, setup stream.Setup, asides *aside) error {
	connect.OnError = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	relay, err := publisher.New(publisher.Options{Connect: connect, Setup: setup})
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
	const check, anybody = CheckPublishing, "outbox-relay-doctor"
	if found.NoAck {
		return // Nothing would be answered; the stream's check has said so.
	}
	unheard := ""
	permitted := func(subject string) bool {
		msg := nats.NewMsg(subject)
		msg.Header.Set(jetstream.ExpectedStreamHeader, "outbox-relay doctor") // No stream has such a name.
		err := asides.ask(ctx, func(ctx context.Context) error {
			_, err := conn.RequestMsgWithContext(ctx, msg)
			return err
		})
		if errors.Is(err, nats.ErrNoResponders) {
			unheard = subject
		}
		return !errors.Is(err, nats.ErrPermissionViolation)
	}
	// A stream that removes what was consumed has no such messages.
	if control := setup.ControlSubject(anybody, *found); found.Retention == jetstream.LimitsPolicy && !permitted(control) {
		d.fail(check, "let its NATS user publish to "+strings.Replace(control, anybody, "*", 1), "the relay cannot begin a term")
		return
	}
	denied, tried := d.deniedSubjects(setup.Template, permitted)
	if len(denied) > 0 {
		told := denied[:min(len(denied), samplesTold)]
		d.fail(check, fmt.Sprintf("let it publish to %s, such as %s", setup.Template.StreamSubject(), strings.Join(told, ", ")),
			"%d of %s of pending events are denied to the relay's NATS user, and become dead letters", len(denied), plural(tried, "kind"))
		return
	}
	somebody := stream.Event{Topic: anybody, AggregateType: anybody, AggregateID: anybody, EventType: anybody}
	if subject := setup.Template.Subject(&somebody); !permitted(subject) {
		d.warn(check, fmt.Sprintf("let the relay's NATS user publish to %s, unless it may for the topics that there are", setup.Template.StreamSubject()),
			"an event for %s would be refused", subject)
		return
	}
	if unheard != "" {
		d.fail(check, "remove the account's mapping of these subjects (mappings), or import them from the stream's account, unless the stream has no leader just now",
			"nobody takes what is sent to %s, although stream %q listens there", unheard, found.Name)
		return
	}
	d.ok(check, "permitted: the relay can send events, and what it writes for itself")
}

// examineReading tries what a relay does to find out what is stored, each time that it takes over or is in doubt: with the
// relay's own code, so that whatever it gets past is no failure.
func (d *doctor) examineReading(ctx context.Context, connect stream.ConnectOptions, setup stream.Setup, found *jetstream.StreamConfig) {
	const check = CheckReadingBack
	connect.OnError = nil
	setup.Create, setup.Strict = false, false // Nothing is to change, and strictness is applied to the findings.
	direct, err := d.tryReading(ctx, publisher.Options{Connect: connect, Setup: setup}, found.Retention == jetstream.LimitsPolicy)
	switch {
	case err != nil:
		d.pass(Failure, check, fmt.Sprintf("the relay cannot read what stream %q holds, and publishes nothing without: %s", found.Name, strings.ReplaceAll(err.Error(), "\n", "; ")))
	case direct:
		d.ok(check, "the relay can look up what the stream holds: by direct gets, which take longer, since the stream takes no further consumer")
	default:
		d.ok(check, "permitted: the relay can look up what the stream holds")
	}
}

// tryReading tries it. A stream that removes what was consumed is not read back.
func (d *doctor) tryReading(ctx context.Context, options publisher.Options, back bool) (direct bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	reader, err := publisher.New(options)
	if err != nil {
		return false, err
	}
	defer reader.Close()
	if _, err := reader.Open(ctx); err != nil {
		return false, err
	}
	if !back {
		return false, reader.History().TryFinding(ctx)
	}
	return reader.History().TryReading(ctx)
}

// examineBucket examines what relays are elected by, if that is in NATS.
func (d *doctor) examineBucket(ctx context.Context, conn *nats.Conn, domain string, setup stream.Setup) {
	const check = CheckBucket
	switch err := election.VerifyBucket(ctx, conn, election.KeyValueOptions{Domain: domain}); {
	case err == nil:
		d.ok(check, "%q is there for the election", election.DefaultBucket)
	case errors.Is(err, jetstream.ErrBucketNotFound):
		d.ok(check, "%q does not exist yet; the relay creates it, with %s", election.DefaultBucket, plural(setup.Replicas, "replica"))
	default:
		d.pass(Failure, check, fmt.Sprintf("no relay is elected: %v", err))
	}
}
