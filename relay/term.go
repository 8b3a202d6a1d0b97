package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// Time budgets of a term.
const (
	// openTimeout bounds connecting to NATS and checking the stream, and openTimeoutFirst the first attempt after
	// trouble: a stream without a leader does not answer at all, and mostly has a leader again within a second.
	openTimeout      = 5 * time.Second
	openTimeoutFirst = time.Second
	// endTimeout bounds the last round trip of a term.
	endTimeout = 400 * time.Millisecond
)

// term is one term of a leader. The single goroutine of loop owns it, tells core what happened and carries out what core
// decides.
type term struct {
	*Relay

	lease   *election.Lease
	core    *core
	stop    <-chan struct{}
	healthy func() // Called when a round trip has succeeded: this term works.

	inOutbox   Term    // The term as the outbox knows it.
	session    Session // By which it publishes; nil until the stream has been read back for the first time.
	number     int64
	checkpoint store.Checkpoint // The next read-back begins here.
	first      bool             // The outbox has never been published to this stream.
	id         string           // The outbox's id, by which its fences are known in the stream.

	workers       sync.WaitGroup
	start         func(work func())    // Starts work that takes time: workers.Go.
	woken         chan struct{}        // Holds one token when there may be something to fetch.
	responses     chan roundTripResult // The answer to the round trip under way.
	opened        chan opening         // The result of opening the publisher.
	read          chan recovery        // The result of reading the stream back.
	verifications chan verification    // The result of verifying the stream.

	handed    chan error    // The result of handing over.
	standbys  chan standbys // The answer to the question for standbys.
	originals chan original // The result of examining a double.
	reported  chan told     // The result of telling the outbox why nothing can be published.

	skipped     bool // The stream has skipped events of an ordered batch, and has not been read back since.
	outcomes    []publisher.Outcome
	event       stream.Event // The event being handed to the publisher.
	guarded     bool         // The publisher looks at the lease before it writes.
	refusals    refusalLog
	orderedTold bool // Ordered batches have been used, and the log says so.
	probe       probe
	reminder    reminder // Of the present pause.
}

type roundTripResult struct {
	store.Response

	took time.Duration
	err  error
}

type opening struct {
	warnings []stream.Warning
	err      error
}

// newTerm returns a term that has not begun.
func (r *Relay) newTerm(lease *election.Lease, stop <-chan struct{}, healthy func()) *term {
	t := &term{
		Relay:         r,
		lease:         lease,
		core:          newCore(r.options),
		stop:          stop,
		woken:         make(chan struct{}, 1),
		responses:     make(chan roundTripResult, 1),
		opened:        make(chan opening, 1),
		read:          make(chan recovery, 1),
		verifications: make(chan verification, 1),
		healthy:       healthy,

		handed:    make(chan error, 1),
		standbys:  make(chan standbys, 1),
		originals: make(chan original, 1),
		reported:  make(chan told, 1),
	}
	t.start = t.workers.Go
	return t
}

// lead serves one term. It returns when the lease has ended or the relay is to stop; with a setbackError if this term could
// not go on, and with another error if no further term can begin.
func (r *Relay) lead(ctx context.Context, lease *election.Lease, stop <-chan struct{}, healthy func()) (err error) {
	t := r.newTerm(lease, stop, healthy)
	if r.publisher.Guards() {
		r.publisher.Guard(lease.Valid)
		t.guarded = true
	}
	// What the term started ends with it.
	ctx, cancel := context.WithCancel(ctx)
	defer r.publisher.Close()
	defer t.workers.Wait()
	defer cancel()
	// Also close it as soon as the lease ends: a write to a broker that takes no more would hold up the loop.
	t.workers.Go(func() {
		<-ctx.Done()
		r.publisher.Close()
	})

	r.status.set(Status{State: Leading, Since: time.Now(), Trouble: "beginning a term"})
	t.openPublisher(ctx, time.Now()) // Meanwhile.
	r.watchdog.rest()                // Postgres may take any time, if it says that it needs it.
	number, err := t.begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if deposed := new(history.DeposedError); errors.As(err, &deposed) {
			r.atLeast = deposed.Term + 1 // The number of our next term must be higher than the one the stream has seen.
		}
	}()
	r.status.set(Status{State: Leading, Since: time.Now(), Term: number, Trouble: "making sure of the stream"})
	r.log.InfoContext(ctx, "leading", slog.Int64("term", number), slog.String("stream", r.publisher.Stream()))
	r.hooks.Elected(number)
	err = t.loop(ctx)
	t.end(ctx)
	r.hooks.Resigned(t.endReason(ctx, err))
	r.log.InfoContext(ctx, "no longer leading", slog.Int64("term", number))
	return err
}

// begin takes note of what the former leader left.
func (t *term) begin(ctx context.Context) (number int64, err error) {
	t.workers.Go(func() { t.store.Watch(ctx, func(f store.Finding) { t.found(ctx, f) }) })
	inOutbox, err := t.store.Begin(ctx, t.publisher.Stream(), t.options.Name, t.atLeast)
	t.reach.askedPostgres(err)
	switch {
	case err == nil:
	case store.Fatal(err):
		return 0, fmt.Errorf("begin term: %w", err)
	default:
		return 0, &setbackError{fmt.Errorf("begin term: %w", err)}
	}
	start := inOutbox.Start()
	t.inOutbox, t.number, t.id = inOutbox, start.Number, start.OutboxID.String()
	t.checkpoint, t.first = start.Checkpoint, start.First
	if start.Adopted != "" {
		t.log.WarnContext(ctx, "the outbox goes to another stream from now on, as adopt_stream asks for", slog.String("from", start.Adopted), slog.String("to", t.publisher.Stream()))
	}
	t.core.begin(start, t.readsBack, time.Now())
	t.workers.Go(func() {
		if err := t.store.Listen(ctx, t.wake); err != nil {
			t.log.WarnContext(ctx, "listening for new events failed; polling instead", slog.Any("error", err))
		}
	})
	t.workers.Go(func() { t.inOutbox.Sweep(ctx, t.wake) })
	return t.number, nil
}

// found tells what the outbox's watcher has seen. It may be called from anywhere.
func (t *term) found(ctx context.Context, f store.Finding) {
	if !f.Known {
		t.log.LogAttrs(ctx, f.Level(), "Postgres", append([]slog.Attr{slog.String("finding", f.Text())}, f.Attrs()...)...)
	}
	t.hooks.Database(f)
}

// end gives back what the term holds beside the lease.
func (t *term) end(ctx context.Context) {
	if !t.core.asleep || !t.lease.Valid() {
		return // The session is gone, or its end frees it.
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := t.inOutbox.End(ctx); err != nil {
		t.log.DebugContext(ctx, "ending the term", slog.Any("error", err))
	}
}

// wake tells the loop that there may be something to fetch. It may be called from anywhere.
func (t *term) wake() {
	select {
	case t.woken <- struct{}{}:
	default: // It has been told already.
	}
}

// turn does all that is due now. What takes time it starts; the results are told to the term one by one, and each calls for
// another turn. It reports whether the relay was to stop and has finished.
func (t *term) turn(ctx context.Context, now time.Time) (done bool) {
	t.openPublisher(ctx, now)
	t.recover(ctx)
	verifyFirst := t.core.verifyFirst(t.asksToVerify, now)
	t.verify(ctx, now)
	t.seekStandby(ctx, now)
	t.tellOutbox(ctx, now)
	t.remind(ctx, now)
	t.examine(ctx)
	if !verifyFirst {
		t.publish(ctx, now)
	}
	return t.startRoundTrip(ctx, now)
}

// asksToVerify is Session.VerifyFirst.
func (t *term) asksToVerify() bool { return t.session.VerifyFirst() }

func (t *term) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	stop := t.stop
	for {
		now := time.Now()
		t.watchdog.turn(now)
		if done := t.turn(ctx, now); done {
			return nil
		}
		t.arm(timer, now)

		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				return fmt.Errorf("term: %w", cause)
			}
			return nil
		case <-stop:
			t.core.stopping, stop = true, nil
		case <-t.publisher.Outcomes():
			t.collect(ctx)
		case <-t.woken:
			t.core.wake()
		case r := <-t.responses:
			t.reach.askedPostgres(r.err)
			if r.err != nil {
				t.hooks.RoundTrip(RoundTrip{Took: r.took, Err: r.err})
				return &setbackError{r.err}
			}
			t.answered(ctx, r)
		case o := <-t.opened:
			if errors.Is(o.err, stream.ErrRefused) {
				return o.err // No waiting mends that.
			}
			t.publisherOpened(ctx, o)
		case r := <-t.read:
			if err := t.recovered(ctx, r); err != nil {
				return err
			}
		case v := <-t.verifications:
			t.verified(ctx, v)
		case o := <-t.originals:
			t.examined(ctx, o, time.Now())
		case err := <-t.handed:
			t.left(ctx, err)
		case told := <-t.reported:
			t.toldOutbox(ctx, told)
		case s := <-t.standbys:
			if err := t.soughtStandby(s, time.Now()); err != nil {
				return err
			}
		case <-timer.C:
			t.refusals.flush(ctx, t.log, time.Now())
		}
	}
}

// arm sets the timer to when there is something to do that nothing else signals.
func (t *term) arm(timer *time.Timer, now time.Time) {
	at := t.core.nextTurn(now)
	if due := t.refusals.due(); !t.core.stopping && !due.IsZero() && due.Before(at) {
		at = due
	}
	timer.Reset(max(at.Sub(now), 0))
}

// publish hands the rows that may go out to the publisher. It looks at the lease before each event, since this process may
// have been stopped at any point, for any time. A guarded publisher looks at the lease before it writes. Then looking here
// now and then is enough, and saves a tenth of the time that an event takes.
func (t *term) publish(ctx context.Context, now time.Time) {
	if (t.core.heldRows == 0 || t.core.byHand.paused) && t.core.proceeds() {
		t.resume(ctx) // The event that was to try first has been refused for a reason of its own, or is not to be sent.
	}
	if t.session == nil {
		return
	}
	limit := t.core.limit(t.session.BatchWindow(), t.readsBack && t.session.Alone())
	send := t.session.Publish
	if t.core.ordered {
		send = t.session.PublishOrdered
		if !t.orderedTold && t.core.publishes() {
			t.orderedTold = true
			t.log.InfoContext(ctx, "publishing backlogs in ordered batches")
		}
	}
	every := 1
	if t.guarded {
		every = 32
	}
	for i := 0; t.core.publishes() && (i%every != 0 || t.lease.Valid()); i++ {
		row, ok := t.core.publishable(limit)
		if !ok {
			break
		}
		t.event = eventOf(row)
		if err := send(&t.event); err != nil {
			t.resolve(ctx, publisher.Outcome{Seq: row.Seq, Err: stream.Classify(err)}, now)
		} else if !t.probe.underWay {
			t.probe.begin(row.Seq)
		}
	}
	if t.core.finish(t.core.stopping || t.core.byHand.paused) {
		t.session.Finish()
	} else if t.core.ordered {
		t.session.Flush()
	}
}

func eventOf(row *store.Row) stream.Event {
	return stream.Event{
		Seq:           row.Seq,
		ID:            row.ID,
		Topic:         row.Topic,
		AggregateType: row.AggregateType,
		AggregateID:   row.AggregateID,
		EventType:     row.EventType,
		Data:          row.Data,
		Headers:       row.Headers,
		CreatedAt:     row.CreatedAt,
	}
}

// collect takes the outcomes of the events that were sent.
func (t *term) collect(ctx context.Context) {
	outcomes, trouble := t.publisher.Collect(t.outcomes[:0])
	t.outcomes = outcomes
	now := time.Now()
	if trouble != nil {
		t.core.lostConnection(trouble)
		t.probe.underWay = false
		if skipped := new(publisher.SkippedError); errors.As(trouble, &skipped) {
			t.skipped = true
		}
		t.pause(ctx, trouble, now)
	}
	stored := Published{Ordered: t.core.ordered}
	highest := uint64(0)
	for i := range t.outcomes {
		o := &t.outcomes[i]
		if o.Seq == t.probe.seq {
			if took := t.probe.end(); o.Err == nil && took > 0 {
				stored.Ack = took
			}
		}
		if o.Err == nil {
			t.tellStored(o)
			stored.Events++
			if o.Duplicate {
				stored.Duplicates++
			} else {
				highest = max(highest, o.Stored)
			}
		}
		t.resolve(ctx, *o, now)
	}
	stored.Created, stored.Bytes = t.core.takeStored()
	if stored.Events > 0 {
		t.core.acknowledged(highest, now)
		if t.core.circuit.breaker == breakerHalfOpen {
			t.resume(ctx)
		}
		t.status.published(stored.Events)
		t.hooks.Published(stored)
		if stored.Duplicates > 0 {
			t.log.DebugContext(ctx, "stored already", slog.Int("events", stored.Duplicates))
		}
	}
}

// resolve tells core one outcome, and log, status and hooks if the event was not stored.
func (t *term) resolve(ctx context.Context, o publisher.Outcome, now time.Time) {
	switch {
	case o.Err != nil:
	case o.Duplicate && t.readsBack:
		t.core.double(o.Seq, o.Stored, now)
		return
	default:
		t.core.resolved(o.Seq, nil, now)
		return
	}
	var row store.Row // A copy: core lets go of the row if it was refused.
	if it := t.core.held[o.Seq]; it != nil {
		row = *it.row
	}
	switch verdict := t.core.resolved(o.Seq, o.Err, now); verdict {
	case postponed, forgotten:
		if !o.Retry {
			t.pause(ctx, o.Err, now)
		}
	case stored, refused, givenUp:
		t.refused(ctx, refusal{row, o.Err, verdict}, now)
	}
}

// refused tells of an event that was refused for a reason of its own.
func (t *term) refused(ctx context.Context, r refusal, now time.Time) {
	t.refusals.tell(ctx, t.log, r, now)
	t.hooks.Refused(Refused{EventType: r.row.EventType, Attempts: r.row.Attempts + 1, Dead: r.verdict == givenUp, Err: r.err})
}

// pause opens the breaker: nothing is published until the publisher has been opened again.
func (t *term) pause(ctx context.Context, fault *stream.Error, now time.Time) {
	if t.core.pause() {
		t.setback(ctx, fault, now)
	}
}

// setback notes that publishing is not possible now, and tells why.
func (t *term) setback(ctx context.Context, fault *stream.Error, now time.Time) {
	if fault := error(fault); !errors.Is(fault, store.ErrKept) && !errors.Is(fault, store.ErrUnarchived) {
		t.reach.askedNATS(fault)
	}
	if t.core.setback(fault, now) {
		t.log.LogAttrs(ctx, slog.LevelWarn, "publishing paused; nothing is lost and no attempts are spent",
			slog.String("fault", fault.Fault.String()), slog.Any("error", fault))
		t.status.paused(t.core.circuit.reason)
		t.hooks.Paused(fault)
	}
}

// openPublisher has the publisher opened when that is due.
func (t *term) openPublisher(ctx context.Context, now time.Time) {
	patience, due := t.core.open(now)
	if !due {
		return
	}
	t.start(func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		warnings, err := t.publisher.Open(ctx)
		t.opened <- opening{warnings, err}
	})
}

// publisherOpened takes the result of opening the publisher.
func (t *term) publisherOpened(ctx context.Context, o opening) {
	var fault *stream.Error
	if o.err != nil {
		fault, o.warnings = stream.Classify(o.err), nil
	}
	t.lookedAtStream(o.warnings, o.err)
	for _, warning := range o.warnings {
		t.warn(ctx, warning.Text)
	}
	if still := t.core.opened(fault); still != nil {
		t.setback(ctx, still, time.Now())
	}
	if fault == nil && !t.readsBack && t.session == nil {
		if t.session, _, o.err = t.publisher.Begin(ctx, t.id, t.number, t.first); o.err != nil {
			t.pause(ctx, stream.Classify(o.err), time.Now())
		}
	}
	t.proceed(ctx)
}

// proceed closes the half-open breaker if no event has to try first.
func (t *term) proceed(ctx context.Context) {
	if t.core.proceeds() {
		t.resume(ctx)
	}
}

// resume closes the breaker.
func (t *term) resume(ctx context.Context) {
	lasted := time.Since(t.core.report.since)
	if t.core.resume() {
		t.log.InfoContext(ctx, "publishing again", slog.Duration("after", lasted.Round(time.Millisecond)))
		t.hooks.Resumed()
	}
	t.status.publishing()
}

// startRoundTrip starts the round trip to Postgres that is due, if any. It reports whether the relay was to stop and has
// finished.
func (t *term) startRoundTrip(ctx context.Context, now time.Time) (done bool) {
	var request store.Request
	var due bool
	t.core.maxData = t.publisher.MaxData()
	switch {
	case !t.core.stopping:
		request, due = t.core.nextRoundTrip(now)
	case t.core.inFlight > 0 || t.core.trip != nil:
		return false
	default:
		request, due = t.core.settle()
		done = !due && !t.handOver(ctx, now)
	}
	if due {
		t.start(func() {
			start := time.Now()
			response, err := t.inOutbox.RoundTrip(ctx, request)
			t.responses <- roundTripResult{response, time.Since(start), err}
		})
	}
	return done
}

func (t *term) answered(ctx context.Context, answer roundTripResult) {
	now := time.Now()
	done := t.core.trip.request
	t.core.answered(answer.Response, now)
	t.heedPause(ctx)
	t.healthy()
	if done.Checkpoint > 0 && len(answer.Kept) == 0 {
		t.checkpoint.Sequence, t.checkpoint.Before = done.Checkpoint, t.checkpoint.Sequence
	}
	settled := 0
	for _, s := range done.Settled {
		settled += len(s.Seqs)
	}
	t.hooks.RoundTrip(RoundTrip{Settled: settled, Fetched: len(answer.Rows), Asleep: t.core.asleep, Took: answer.took})
	for _, r := range t.core.unfit {
		t.refused(ctx, r, now)
	}
	t.core.unfit = nil
	for _, k := range answer.Kept {
		t.kept(ctx, k)
	}
	switch {
	case answer.Remaining != nil:
		t.pause(ctx, keptFault(answer.Remaining), now)
	case len(t.core.aside) > asideMost:
		t.pause(ctx, keptFault(fmt.Errorf("%w: more than %d of them; see the reasons given for the first", store.ErrKept, asideMost)), now)
	}
}

// keptFault is a fault of the database's set-up that stops publishing.
func keptFault(err error) *stream.Error { return &stream.Error{Fault: stream.FaultSetup, Err: err} }

// kept tells of a row that the database did not let go, or whose refusal it did not record.
func (t *term) kept(ctx context.Context, k store.Kept) {
	if k.Settle {
		t.log.LogAttrs(ctx, slog.LevelError, "the database does not let a published event's row go; trying again later",
			slog.Int64("seq", k.Seq), slog.String("error", cut(k.Err.Error())))
	} else {
		t.log.LogAttrs(ctx, slog.LevelError, "the database does not record that an event was refused; its row stays in the outbox",
			slog.Int64("seq", k.Seq), slog.String("id", k.ID.String()), slog.Bool("marked", k.Marked), slog.String("error", cut(k.Err.Error())))
	}
	t.hooks.Kept(k)
}
