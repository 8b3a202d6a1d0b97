package relay

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// Parts are what [Assemble] makes a relay of. All three are needed.
type Parts struct {
	// Store is the outbox: see store.Open and [StoreOf].
	Store Store
	// Publisher takes events to the broker: see publisher.New and [PublisherOf]. What only publishes is adapted by [PublishOnly].
	Publisher Publisher
	// Elector decides who may publish. [AdvisoryLock] makes that of an outbox, package election has others.
	Elector Elector
}

// Store is the outbox as the relay sees it. [StoreOf] makes one of a *store.Outbox; the interface is there to wrap it, and for
// tests: package relaytest has one in memory, and the tests that every Store must pass.
type Store interface {
	// Table names the outbox, and Retains reports whether what was published is kept in an archive.
	Table() store.Table
	Retains() bool
	// Migrate creates the tables or brings them to this version; Check verifies that they are. Both may be repeated.
	Migrate(ctx context.Context) error
	Check(ctx context.Context) error
	// Close ends the session on which the relay led. The store may be used again after it.
	Close(ctx context.Context) error

	// Begin begins a term: it checks that the outbox can be worked on, and records who leads. The term's number is at least
	// atLeast. A term that began before is over.
	Begin(ctx context.Context, stream, leader string, atLeast int64) (Term, error)
	// Stand tells the other relays whether this one, which does not lead, could publish to stream. Its error says why this
	// relay could not lead, as far as the database is concerned. Obstacle says why no relay can be elected; empty for nothing.
	Stand(ctx context.Context, stream string, c store.Candidacy) (obstacle string, err error)
	// Paused returns the pause that a person has ordered, as Term.RoundTrip or Stand last found it; nil for none. RoundTrip asks
	// twice a second, and whenever the request wants it.
	Paused() *store.Pause
	// Listen calls wake when there may be something to fetch, until ctx ends.
	Listen(ctx context.Context, wake func()) error
	// Watch tells what in the database holds the relay up, until ctx ends.
	Watch(ctx context.Context, report func(store.Finding))
}

// StoreOf makes a [Store] of an outbox.
func StoreOf(outbox *store.Outbox) Store { return outboxStore{outbox} }

type outboxStore struct{ *store.Outbox }

func (s outboxStore) Begin(ctx context.Context, stream, leader string, atLeast int64) (Term, error) {
	term, err := s.Outbox.Begin(ctx, stream, leader, atLeast)
	if err != nil {
		return nil, err // A nil *store.Term would be no nil Term.
	}
	return term, nil
}

// Term is a leader's side of a [Store]. *store.Term implements it. Once the term is over, its methods return an error.
type Term interface {
	// Start returns what the leader knew when the term began: its number, and what the former leader left.
	Start() store.TermStart
	// Standbys returns how many other relays say that they could publish to the term's stream.
	Standbys(ctx context.Context) (int, error)
	// Report records why the leader cannot publish, and for how long that has been so, for those who look at the outbox only.
	// An empty reason records that it can publish.
	Report(ctx context.Context, reason string, since time.Duration) error
	// RoundTrip records outcomes and fetches rows, in one transaction.
	RoundTrip(ctx context.Context, request store.Request) (store.Response, error)
	// Archive returns the archived events that were published to the term's stream with an After of at least from, and perhaps
	// others.
	Archive(ctx context.Context, from uint64) ([]store.Archived, error)
	// Settle removes the events found in the stream, all after the sequence after, from the outbox. It returns how many of them
	// were still in the outbox, and which the database does not let go, each for a reason of its own.
	Settle(ctx context.Context, found []store.Ref, after uint64) (settled int, kept []store.Ref, err error)
	// PutBack puts archived events that the stream has lost back into the outbox, and records the checkpoint unless it
	// is zero.
	PutBack(ctx context.Context, lost []store.Archived, checkpoint store.Checkpoint) (int, error)
	// Sweep calls wake when it has found rows that no notification told of, until ctx ends.
	Sweep(ctx context.Context, wake func())
	// End ends the term, if its session is still there.
	End(ctx context.Context) error
}

// Broker is what a [Sender] and a [Publisher] have in common: a connection, and the outcomes of what was sent over it.
type Broker interface {
	// Open makes the broker ready, or says why it is not; it is called again after trouble. The warnings say which guarantees
	// are weakened. An error that is stream.ErrRefused stops the relay; after any other error the relay tries again.
	Open(ctx context.Context) (warnings []stream.Warning, err error)
	// Outcomes is signalled when Collect has something to return.
	Outcomes() <-chan struct{}
	// Collect appends the outcomes of published events: one for each event that Publish took. Trouble is a failure that concerns
	// no single event, such as a lost connection; nil for none.
	Collect(to []publisher.Outcome) (outcomes []publisher.Outcome, trouble *stream.Error)
	// Close drops the connection and the events that are not sent yet, and ends a Publish that waits for the network. It may be
	// called at any time, from anywhere. A session that began before is over.
	Close()
	// Stream names where the events go.
	Stream() string
}

// Sender sends events and tells what became of them. It is the least that a relay can work with: see [PublishOnly].
type Sender interface {
	Broker

	// Publish sends an event without waiting. Its error says that nothing was sent. Publish must not keep event
	// after it returns: the relay reuses it. Data and Headers are not modified.
	Publish(event *stream.Event) error
}

// Publisher takes events to the broker, with all that the guarantees of a relay rest on. [PublisherOf] makes one of a
// *publisher.Publisher. A type that embeds a Publisher keeps all of it; what can do less is adapted by [PublishOnly]. Nothing
// can be published before Begin.
type Publisher interface {
	Broker

	// ReadsBack reports whether the publisher can tell what the stream holds: whether Begin puts up a fence, and the Scan, Alone,
	// VerifyFirst, Find and Verify of a session work. The answer does not change. If it is false, the relay calls none of those
	// and publishes events that are in doubt again: only the stream's duplicate window keeps them from being stored twice.
	ReadsBack() bool
	// Begin puts up a fence for an outbox's term, which keeps out of the stream what was sent before, and returns the session
	// after it. First tells that the outbox has never been published to the stream. An earlier session is over. See
	// publisher.Publisher.Begin.
	Begin(ctx context.Context, outbox string, term int64, first bool) (Session, history.Fence, error)

	// Guards reports whether the publisher asks what Guard sets before it puts anything on the network. It does not change.
	// A publisher that does not ask may still send events from a buffer after the lease has ended: the relay looks at the
	// lease before it hands over an event, but its process can be stopped for any time before the buffer is written.
	Guards() bool
	// Guard sets the question that connections opened from then on ask before they send; nil for none. Once valid returns
	// false, nothing more is sent on them.
	Guard(valid func() bool)
	// RequireWindow sets the least duplicate window that the stream must have, as a function of the time for which the
	// publisher waits for an acknowledgement: [MinDuplicateWindow]. Open tells if it is shorter.
	RequireWindow(least func(ackTimeout time.Duration) time.Duration)

	// MaxData returns the size in bytes of the largest payload that can be stored, so that larger ones are never read; 0 if
	// that is not known.
	MaxData() int
}

// Session publishes after a fence, and reads back what the stream held before it. *publisher.Session implements it. A session
// that is over publishes nothing. Scan, Find and Verify may be called beside the other methods.
type Session interface {
	// Publish sends an event without waiting: see [Sender].
	Publish(event *stream.Event) error

	// BatchWindow returns how many events may be in flight in an ordered batch; 0 if there can be no such batch now. The broker
	// stores nothing of an ordered batch after an event that failed. So the relay need not wait for the outcome of an
	// aggregate's event before it sends the next one.
	BatchWindow() int
	// PublishOrdered is Publish into the ordered batch, which it begins if need be. It may hold the event back until Flush,
	// which the relay calls when it has no more events just now, or Finish.
	PublishOrdered(event *stream.Event) error
	Flush()
	// Finish closes the ordered batch, so that the outcomes of all events in it become known.
	Finish()

	// Alone reports whether the next event is to go alone, to find out whether the stream is still the one that was read
	// back: see publisher.Session.Alone. An ordered batch finds that out by itself.
	Alone() bool
	// VerifyFirst reports whether the stream is to be verified before the next event is sent. It is for the case in
	// which the event itself would find out only by being stored. See publisher.Session.VerifyFirst.
	VerifyFirst() bool

	// Scan passes on the events that are stored after a sequence, up to the session's fence.
	Scan(ctx context.Context, above uint64, visit func(history.Found) error) error
	// Find returns the event of the message at a sequence.
	Find(ctx context.Context, sequence uint64) (history.Found, error)
	// Verify compares the stream with what it looked like before.
	Verify(ctx context.Context, before history.State, acked uint64) (history.State, error)
}

// PublisherOf makes a [Publisher] that gives nothing up.
func PublisherOf(p *publisher.Publisher) Publisher { return wholePublisher{p} }

type wholePublisher struct{ *publisher.Publisher }

func (wholePublisher) ReadsBack() bool { return true }
func (wholePublisher) Guards() bool    { return true }

func (p wholePublisher) Begin(ctx context.Context, outbox string, term int64, first bool) (Session, history.Fence, error) {
	session, fence, err := p.Publisher.Begin(ctx, outbox, term, first)
	if err != nil {
		return nil, fence, err // A nil *publisher.Session would be no nil Session.
	}
	return session, fence, nil
}

// PublishOnly makes a [Publisher] of what can only send. The relay says at start what is given up by that: it cannot read the
// stream back, nor does it ask for the lease before it writes, nor look at the stream's duplicate window; and it sends no ordered
// batches.
func PublishOnly(sender Sender) Publisher { return publishOnly{sender, sender} }

type publishOnly struct {
	Broker

	sender Sender
}

func (publishOnly) ReadsBack() bool                                 { return false }
func (publishOnly) Guards() bool                                    { return false }
func (publishOnly) Guard(func() bool)                               {}
func (publishOnly) RequireWindow(func(time.Duration) time.Duration) {}
func (publishOnly) MaxData() int                                    { return 0 }

func (p publishOnly) Begin(context.Context, string, int64, bool) (Session, history.Fence, error) {
	return sendOnly{p.sender}, history.Fence{}, nil
}

// sendOnly is the session of a [PublishOnly].
type sendOnly struct{ sender Sender }

// errNoReading is returned by what nobody calls.
var errNoReading = errors.New("this publisher does not read the stream back")

func (s sendOnly) Publish(event *stream.Event) error        { return s.sender.Publish(event) }
func (sendOnly) BatchWindow() int                           { return 0 }
func (s sendOnly) PublishOrdered(event *stream.Event) error { return s.sender.Publish(event) }
func (sendOnly) Flush()                                     {}
func (sendOnly) Finish()                                    {}
func (sendOnly) Alone() bool                                { return false }
func (sendOnly) VerifyFirst() bool                          { return false }

func (sendOnly) Scan(context.Context, uint64, func(history.Found) error) error { return errNoReading }

func (sendOnly) Find(context.Context, uint64) (history.Found, error) {
	return history.Found{}, errNoReading
}

func (sendOnly) Verify(context.Context, history.State, uint64) (history.State, error) {
	return history.State{}, errNoReading
}

// Elector decides who may publish. Package election has some.
type Elector interface {
	// Run calls lead for each term, with a context that ends with the lease, until ctx ends or lead
	// returns an error.
	Run(ctx context.Context, lead func(ctx context.Context, lease *election.Lease) error) error
	// Standby reports whether another is known to lead: then a relay that could lead is ready.
	Standby() bool
	// Trouble says why it cannot campaign, for [Relay.Status]; empty if it can.
	Trouble() string
}

// AdvisoryLock returns the elector by which the relays of an outbox agree: a lock on the outbox's own session, with
// the key [DefaultAdvisoryLock] unless all relays of the outbox use another. It is what [New] takes by default.
func AdvisoryLock(outbox *store.Outbox, key int64, log *slog.Logger) *election.AdvisoryLock {
	return election.NewAdvisoryLock(outbox.Session(), lockOptions(outbox.Table(), key, log))
}

func lockOptions(table store.Table, key int64, log *slog.Logger) election.AdvisoryLockOptions {
	return election.AdvisoryLockOptions{
		Key:           key,
		Table:         table.LockKey(),
		ResignChannel: table.ResignChannel(),
		Fatal:         store.Fatal,
		Logger:        log,
	}
}

// Assemble returns a relay of parts that the program has made or replaced. Like [New] it connects to nothing; its error lists
// every option that is out of range.
func Assemble(parts Parts, options Options) (*Relay, error) {
	if parts.Store == nil || parts.Publisher == nil || parts.Elector == nil {
		return nil, errors.New("relay: store, publisher and elector are all needed")
	}
	options, err := options.validated()
	if err != nil {
		return nil, err
	}
	r := &Relay{
		store:     parts.Store,
		publisher: parts.Publisher,
		readsBack: parts.Publisher.ReadsBack(),
		elector:   parts.Elector,
		options:   options,
		log:       options.Logger,
		hooks:     options.Hooks.orNop(),
	}
	r.publisher.RequireWindow(MinDuplicateWindow)
	r.status.set(Status{State: Campaigning, Since: time.Now(), Trouble: notPrepared})
	return r, nil
}
