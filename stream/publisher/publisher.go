package publisher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/await"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/wire"
)

// DefaultAckTimeout is how long a publisher waits for the stream's answer.
const DefaultAckTimeout = 5 * time.Second

// Options configure a Publisher.
type Options struct {
	// Connect says how to reach the servers. The publisher has a connection of
	// its own, and sets OnDisconnect, OnClosed, OnError and Dialer itself.
	Connect stream.ConnectOptions

	// Setup is the stream to publish to.
	Setup stream.Setup

	// Encoder turns events into messages. Its Template defaults to that of
	// Setup.
	Encoder stream.Encoder

	// NoBatches sends each event by itself even if the stream takes ordered
	// batches.
	NoBatches bool

	// AckTimeout is how long to wait for the stream's answer; then the event is
	// in doubt. The default is DefaultAckTimeout.
	AckTimeout time.Duration
}

// A Publisher sends events without waiting for each answer, and collects the
// answers. Begin puts up a fence and returns the Session that publishes after it: each
// event by itself (Publish) or in ordered batches (PublishOrdered). The session also
// reads back what the stream held before the fence, over the same connection. It works with every server that has JetStream, ordered batches with
// nats-server 2.14 and later.
//
// It retries nothing: a client that repeats a message by itself changes the
// order. After a failed Publish the stream stores later events all the same. So a
// caller that keeps an order publishes an event only when the outcome of its
// predecessor is known.
//
// Open, Collect and all that publishes belong to one goroutine. Close may be called
// from any goroutine, also to end a Publish that waits for the network.
type Publisher struct {
	options Options

	// These three belong to the goroutine that publishes.
	encoder *stream.ReusingEncoder
	latest  latest
	raw     wire.Writer

	requests *requests
	history  *history.History

	mu sync.Mutex // Guards the fields below, which the connection's goroutines share.

	guard   func() bool // Nil for none.
	session *Session    // The latest; nil before Begin and after Close.
	seen    bool        // Open has seen the stream.
	link    link

	results results
	known   known
	limits  limits
	denied  denials

	acks    pendingAcks // Of events that were sent by themselves.
	timer   *time.Timer // Runs while one of them is pending.
	batches batches
}

// latest is the message that was encoded last.
type latest struct {
	head int    // The size of its header block.
	mark uint64 // Its subject's mark.
}

// New returns a publisher that must be opened before use. It connects to
// nothing. It fails only for invalid options, and reports all of them at once.
func New(options Options) (*Publisher, error) {
	var ackErr error
	switch {
	case options.AckTimeout == 0:
		options.AckTimeout = DefaultAckTimeout
	case options.AckTimeout < 0:
		ackErr = fmt.Errorf("AckTimeout: %v is negative", options.AckTimeout)
	}
	options.Setup = options.Setup.OrDefault()
	if options.Encoder.Template.IsZero() {
		options.Encoder.Template = options.Setup.Template
	}
	if err := errors.Join(options.Connect.Check(), options.Setup.Validate(), options.Encoder.Validate(), ackErr); err != nil {
		return nil, err
	}
	p := &Publisher{
		options: options,
		encoder: stream.NewReusingEncoder(options.Encoder),
		results: results{signals: make(chan struct{}, 1)},
	}
	name := options.Setup.Stream
	p.requests = &requests{stream: name, explain: p.explain}
	p.history = history.New(p.requests, options.Setup, options.Connect)
	p.known = known{stream: name, results: &p.results}
	p.limits.capacity.Config.Name = name
	p.batches = batches{
		ackTimeout: options.AckTimeout, expire: p.expireBatch, stretch: batchFlow,
		results: &p.results, known: &p.known, limits: &p.limits,
	}
	return p, nil
}

// Stream returns the name of the stream that the publisher sends to.
func (p *Publisher) Stream() string { return p.options.Setup.Stream }

// Open makes the publisher ready: it connects if there is no connection, and
// creates the stream or checks its configuration. Call it before the first Begin,
// and again after an outcome with FaultWeather or FaultSetup, to find out whether
// publishing can go on. The warnings name conditions of the exactly-once claim that
// do not hold. The error is a *stream.Error.
func (p *Publisher) Open(ctx context.Context) (warnings []stream.Warning, err error) {
	warnings, err = p.open(ctx)
	if err == nil {
		p.askAccount(ctx)
	}
	return warnings, err
}

// open is Open.
func (p *Publisher) open(ctx context.Context) (warnings []stream.Warning, err error) {
	ctx, done := p.requests.Ask(ctx)
	defer done(&err)
	conn, err := p.connected(ctx)
	if err != nil {
		return nil, err
	}
	js, err := p.options.Connect.JetStream(conn)
	if err != nil {
		return nil, err
	}
	report, err := await.Call(ctx, func() (stream.Report, error) {
		if err := stream.CheckServer(conn); err != nil {
			return stream.Report{}, err
		}
		return p.options.Setup.Ensure(ctx, js)
	})
	if err != nil {
		return nil, stream.Classify(err)
	}
	maxPayload, err := await.Call(ctx, func() (int64, error) { return conn.MaxPayload(), nil })
	if err != nil {
		return nil, stream.Classify(fmt.Errorf("connection to NATS: %w", err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if report.Created && p.seen {
		report.Warnings = append(report.Warnings, stream.Warning{Text: fmt.Sprintf("stream %q was gone and has been created again: what it held is lost", p.Stream())})
	}
	p.seen = true
	p.known.opened(report.Info)
	p.limits.opened(report.Info, maxPayload)
	p.batches.opened(&report.Info.Config, !p.options.NoBatches)
	p.history.Opened(report.Info.Config)
	return report.Warnings, nil
}

// RequireWindow sets Setup.MinWindow, unless the options did, to what least returns
// for AckTimeout. It is called before the first Open.
func (p *Publisher) RequireWindow(least func(ackTimeout time.Duration) time.Duration) {
	if p.options.Setup.MinWindow == 0 {
		p.options.Setup.MinWindow = least(p.options.AckTimeout)
	}
}

// Guard sets a function that is called before each write to connections that are
// opened from then on. Once it returns false, nothing more is sent on them, not even
// what is in a buffer. It must be fast.
func (p *Publisher) Guard(valid func() bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guard = valid
}

// Outcomes returns a channel that is signalled when Collect has something to return.
func (p *Publisher) Outcomes() <-chan struct{} { return p.results.signals }

// Collect appends the outcomes that have become known since the last call. Each
// event that Publish or PublishOrdered took has exactly one. Trouble is a fault that
// concerns no single event and began since the last call, such as a lost connection;
// nil for none. After trouble, the stream must be read back before anything else is
// published.
func (p *Publisher) Collect(to []Outcome) (outcomes []Outcome, trouble *stream.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.results.take(to)
}

// failAll ends the wait for every answer that is pending on the connection of a
// dialer, and tells why.
func (p *Publisher) failAll(on *wire.Dialer, reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link.dialer != on {
		return // A former one.
	}
	p.fail(stream.Classify(reason))
}

// fail is failAll. The caller holds mu.
func (p *Publisher) fail(fault *stream.Error) {
	p.results.troubled(fault) // Even if nothing is pending, nothing can be sent either.
	if b := p.batches.open; b != nil {
		p.batches.end(b, fault)
	}
	for {
		token, oldest, ok := p.acks.oldest()
		if !ok {
			return
		}
		p.acks.take(token)
		p.results.tell(unstored(oldest.seq, fault))
	}
}

// deleted takes note that the stream has been deleted.
func (p *Publisher) deleted(on *wire.Dialer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link.dialer == on && p.known.lost == nil {
		p.known.lose(stream.Classify(&stream.LostError{Reason: fmt.Sprintf("stream %q was deleted", p.Stream())}))
	}
}

// Close closes the connection at once. Buffered events are not sent any more, and
// events without an outcome get none. Open makes the publisher usable again.
func (p *Publisher) Close() {
	p.mu.Lock()
	former := p.link
	p.link, p.session = link{}, nil
	p.requests.reset()
	p.history.Forget()
	p.acks.clear()
	p.known.forget()
	p.batches.forget()
	p.results.forget()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	p.mu.Unlock()
	former.close()
	select {
	case <-p.results.signals:
	default:
	}
}

// publishError says what failed. Without a connection nats.go complains of its
// reconnect buffer, which we have switched off.
func publishError(err error) error {
	if errors.Is(err, nats.ErrReconnectBufExceeded) {
		return fmt.Errorf("publish: not connected to NATS (%w)", err)
	}
	return fmt.Errorf("publish: %w", err)
}
