package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DefaultAckTimeout is how long a publisher waits for the stream's answer.
const DefaultAckTimeout = 5 * time.Second

// PublisherOptions configure a Publisher.
type PublisherOptions struct {
	// Connect says how to reach the servers. The publisher has a connection of
	// its own, and sets OnDisconnect, OnClosed and OnError itself.
	Connect ConnectOptions

	// Setup is the stream to publish to.
	Setup Setup

	// Encoder turns events into messages. Its Template defaults to that of
	// Setup.
	Encoder Encoder

	// NoBatches sends each event by itself even if the stream takes ordered
	// batches.
	NoBatches bool

	// AckTimeout is how long to wait for the stream's answer; then the event is
	// in doubt. The default is DefaultAckTimeout.
	AckTimeout time.Duration
}

// A Publisher sends events without waiting for each answer, and collects the
// answers: each event by itself (Publish) or in ordered batches (PublishInOrder). It
// also fences off earlier terms, and reads back what the stream holds. It works with
// every server that has JetStream, ordered batches with nats-server 2.14 and later.
//
// It retries nothing: a client that repeats a message by itself changes the
// order. After a failed Publish the stream stores later events all the same. So a
// caller that keeps an order publishes an event only when the outcome of its
// predecessor is known.
//
// Open, Collect and all that publishes belong to one goroutine. Close may be called
// from any goroutine, also to end a Publish that waits for the network.
type Publisher struct {
	options  PublisherOptions
	encoder  *reusingEncoder // Belongs to the goroutine that publishes.
	raw      rawWriter       // Belongs to the goroutine that publishes.
	outcomes chan struct{}

	mu sync.Mutex // Protects the fields below, which the connection's goroutines share.

	guard   func() bool // Nil for none.
	conn    *nats.Conn
	dialer  *dialer
	replies string // The prefix of the reply subjects on this connection.
	acks    pendingAcks
	timer   *time.Timer // Runs while an acknowledgement is pending.
	done    []Outcome   // Outcomes that were not collected yet.
	trouble *Error      // Trouble that was not collected yet; nil for none.

	highest uint64    // The highest sequence that the stream is known to have given.
	lost    *Error    // Why the stream must be read back first: it is not the one that was known. Nil if it is.
	proved  time.Time // When the stream last was the one that was known.

	seen         bool                   // Open has seen the stream.
	config       jetstream.StreamConfig // The stream's configuration then.
	state        jetstream.StreamState  // The stream's state then.
	fence        uint64                 // The sequence of our fence; 0 if there is no fence.
	fenceSubject string                 // The fence's subject; empty before Fence or Unfenced.

	batches    bool // The stream takes ordered batches.
	clustered  bool
	maxPayload int64     // The server's limit, headers included; 0 if it is not known.
	maxMessage int64     // The stream's limit, headers included; not positive for none.
	noBatches  time.Time // Until when no ordered batch may begin.
	stretch    int       // How many messages we ask the server to acknowledge at once.
	flow       int       // How many messages the server acknowledges at once.
	batch      *batch    // The open one.
	batchTimer *time.Timer
	abandoned  *Outcome // The outcome of events after a batch's failure, until Collect has told of it; nil for none.

	requests  requests             // Requests that wait for an answer.
	noAnswers *Error               // Why no answer can come on this connection: a subscription was denied. Nil if answers can come.
	denied    map[uint64]time.Time // Until when events of a subject do not go in ordered batches.

	asksQuota bool   // The next Open asks for quota.
	quota     string // What the account uses of its limits; empty if that is not known.
}

// NewPublisher returns a publisher that must be opened before use. It connects to
// nothing. It fails only for invalid options, and reports all of them at once.
func NewPublisher(options PublisherOptions) (*Publisher, error) {
	var ackErr error
	switch {
	case options.AckTimeout == 0:
		options.AckTimeout = DefaultAckTimeout
	case options.AckTimeout < 0:
		ackErr = fmt.Errorf("AckTimeout: %v is negative", options.AckTimeout)
	}
	options.Setup = options.Setup.orDefault()
	if len(options.Encoder.Template.tokens) == 0 {
		options.Encoder.Template = options.Setup.Template
	}
	urls, urlsErr := options.Connect.servers()
	err := errors.Join(urlsErr, options.Connect.checkFields(urls), options.Setup.Validate(), options.Encoder.Validate(), ackErr)
	if err != nil {
		return nil, err
	}
	return &Publisher{
		options:  options,
		encoder:  newReusingEncoder(options.Encoder),
		outcomes: make(chan struct{}, 1),
		stretch:  batchFlow,
	}, nil
}

// Stream returns the name of the stream that the publisher sends to.
func (p *Publisher) Stream() string { return p.options.Setup.Stream }

// Open makes the publisher ready: it connects if there is no connection, and
// creates the stream or checks its configuration. Call it before the first Publish,
// and again after an outcome with FaultWeather or FaultSetup, to find out whether
// publishing can go on. The warnings name conditions of the exactly-once claim that
// do not hold. The error is an *Error.
func (p *Publisher) Open(ctx context.Context) (warnings []string, err error) {
	warnings, err = p.open(ctx)
	if err == nil {
		p.askQuota(ctx)
	}
	return warnings, err
}

// open is Open.
func (p *Publisher) open(ctx context.Context) (warnings []string, err error) {
	ctx, done := p.ask(ctx)
	defer done(&err)
	conn, err := p.connected(ctx)
	if err != nil {
		return nil, err
	}
	js, err := p.options.Connect.JetStream(conn)
	if err != nil {
		return nil, err
	}
	report, err := await(ctx, func() (Report, error) {
		if err := CheckServer(conn); err != nil {
			return Report{}, err
		}
		return p.options.Setup.Ensure(ctx, js)
	})
	if err != nil {
		return nil, Classify(err)
	}
	maxPayload, err := await(ctx, func() (int64, error) { return conn.MaxPayload(), nil })
	if err != nil {
		return nil, Classify(fmt.Errorf("connection to NATS: %w", err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if report.Created && p.seen {
		report.Warnings = append(report.Warnings, fmt.Sprintf("stream %q was gone and has been created again: what it held is lost", p.Stream()))
	}
	config := report.Info.Config
	p.seen, p.config, p.state = true, config, report.Info.State
	// After trouble, the caller reads back what the stream has lost. From here on, later sequences must be above this one.
	p.highest, p.lost, p.proved = report.Info.State.LastSeq, nil, time.Now()
	p.maxPayload, p.maxMessage = maxPayload, int64(config.MaxMsgSize)
	p.batches, p.clustered, p.flow = config.AllowBatchPublish && !p.options.NoBatches, config.Replicas > 1, p.stretch
	if p.clustered {
		p.noBatches = time.Now().Add(batchRest)
	}
	return report.Warnings, nil
}

// ReadsBack reports that the publisher can tell what the stream holds. Package relay
// asks, since a publisher that wraps this one may not be able to.
func (p *Publisher) ReadsBack() bool { return true }

// Guards reports that the publisher calls the function that Guard sets. Package relay
// asks, for the same reason.
func (p *Publisher) Guards() bool { return true }

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

func (p *Publisher) connection() *nats.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

// usableConn returns the connection. It returns nil if there is none, or if no answer can
// come on it: a connection on which a subscription was denied is closed, since the
// subscription stays denied there.
func (p *Publisher) usableConn() *nats.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil || p.noAnswers == nil {
		return p.conn
	}
	p.dialer.close()
	go p.conn.Close() // It waits for the network.
	return nil
}

// connected returns the connection, or makes one if there is none. Its error is an *Error.
func (p *Publisher) connected(ctx context.Context) (*nats.Conn, error) {
	conn := p.usableConn()
	if conn == nil {
		return p.connect(ctx)
	}
	type state struct {
		closed, connected bool
		reason            error
	}
	now, err := await(ctx, func() (state, error) {
		return state{conn.IsClosed(), conn.IsConnected(), conn.LastError()}, nil
	})
	switch {
	case err != nil: // It is reconnecting, to a server that says nothing.
		now.reason = err
	case now.closed: // nats.go has given it up, after an error that it does not know.
		return p.connect(ctx)
	case now.connected:
		return conn, nil
	case now.reason == nil:
		now.reason = nats.ErrDisconnected
	}
	where := p.options.Connect.where()
	return nil, Classify(fmt.Errorf("not connected to NATS at %s: %w%s", where, now.reason, p.options.Connect.loginHint(now.reason, where)))
}

// connect makes a connection. Its error is an *Error.
func (p *Publisher) connect(ctx context.Context) (*nats.Conn, error) {
	p.mu.Lock()
	dialer := newDialer(p.guard)
	if p.batch != nil || !p.acks.empty() {
		p.fail(Classify(fmt.Errorf("connection to NATS closed: %w", nats.ErrConnectionClosed)))
	}
	p.conn, p.dialer, p.replies, p.noAnswers = nil, dialer, "", nil // A former connection is not listened to any more.
	p.mu.Unlock()
	options := p.options.Connect
	options.dialer = dialer
	options.OnDisconnect = func(err error) {
		if err == nil {
			err = nats.ErrDisconnected
		}
		// The answers to what is pending went to the old connection.
		p.failAll(dialer, fmt.Errorf("connection to NATS lost: %w", err))
	}
	options.OnClosed = nil
	options.OnError = func(err error) {
		if denied, ok := violation(err); ok {
			p.violated(dialer, denied)
		} else if Classify(err).Fault == FaultSetup {
			p.failAll(dialer, err)
		}
	}
	options.OnReconnect = func() {
		if conn := p.connection(); conn != nil {
			p.limits(conn.MaxPayload())
		}
		if p.options.Connect.OnReconnect != nil {
			p.options.Connect.OnReconnect()
		}
	}
	conn, err := Connect(ctx, options)
	if err != nil {
		return nil, err
	}
	replies, err := p.listen(ctx, conn)
	if err != nil {
		dialer.close()
		conn.Close()
		return nil, Classify(fmt.Errorf("subscribe to acknowledgements: %w", err))
	}
	p.subscribeToDeletion(ctx, conn, dialer)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dialer != dialer { // Close was called meanwhile.
		dialer.close()
		conn.Close()
		return nil, Classify(fmt.Errorf("connect to NATS: %w", nats.ErrConnectionClosed))
	}
	p.conn, p.dialer, p.replies = conn, dialer, replies
	return conn, nil
}

// listen subscribes to acknowledgements, and returns the prefix of their subjects.
func (p *Publisher) listen(ctx context.Context, conn *nats.Conn) (replies string, err error) {
	return await(ctx, func() (string, error) {
		replies := conn.NewInbox() + "."
		_, err := conn.Subscribe(replies+">", p.answered)
		if err == nil {
			err = conn.FlushTimeout(connectTimeout) // By then, a refusal has come.
		}
		if err == nil && inboxDenied(conn) {
			err = noInbox(conn, conn.LastError())
		}
		return replies, err
	})
}

// Publish sends an event by itself and returns without waiting: Collect returns its
// outcome. If Publish returns an error, an *Error, nothing was sent.
func (p *Publisher) Publish(ev *Event) error {
	msg, err := p.encoder.message(ev, "")
	if err != nil {
		return Classify(err)
	}
	conn, token, reply, first, err := p.expect(ev.Seq, sizesOf(len(ev.Data), p.encoder.headSize), p.encoder.mark)
	if err != nil {
		return err
	}
	if first {
		if fence := p.fenceLines(); !tooLargeWith(fence, len(ev.Data)+p.encoder.headSize, p.most()) {
			msg = fenced(msg, fence)
		}
	}
	msg.Reply = reply
	if err = conn.PublishMsg(msg); err == nil {
		return nil
	}
	if !p.withdraw(token) {
		return nil // The connection broke meanwhile: Collect returns that as the outcome.
	}
	return Classify(publishError(explained(err, conn, len(ev.Data), p.encoder.headSize)))
}

// explained says more about what nats.go refused.
func explained(err error, conn *nats.Conn, data, head int) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return &sizeError{data: data, head: head, limit: limitServer, most: conn.MaxPayload(), cause: err}
	}
	return err
}

// publishError says what failed. Without a connection nats.go complains of its
// reconnect buffer, which we have switched off.
func publishError(err error) error {
	if errors.Is(err, nats.ErrReconnectBufExceeded) {
		return fmt.Errorf("publish: not connected to NATS (%w)", err)
	}
	return fmt.Errorf("publish: %w", err)
}

// expect notes the pending acknowledgement of an event before the event is sent.
// First says that this event must find out whether the stream still is the one that
// is known.
func (p *Publisher) expect(seq int64, of sizes, mark uint64) (conn *nats.Conn, token uint64, reply string, first bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost != nil {
		return nil, 0, "", false, withheld(p.lost)
	}
	now := time.Now()
	// Before 2.14 a server takes the fence's subject for the event's own.
	first = p.config.AllowBatchPublish && p.unproven(now) && p.acks.empty()
	token = p.acks.push(pendingAck{seq: seq, until: now.Add(p.options.AckTimeout), last: p.highest, sizes: of, mark: mark})
	if p.timer == nil {
		p.timer = time.AfterFunc(p.options.AckTimeout, p.expire)
	}
	return p.conn, token, p.replies + strconv.FormatUint(token, 36), first, nil
}

// withdraw removes the pending acknowledgement of an event that was not sent; false
// if the event has its outcome already.
func (p *Publisher) withdraw(token uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, pending := p.acks.take(token)
	return pending
}

// answered handles an acknowledgement or refusal.
func (p *Publisher) answered(msg *nats.Msg) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.HasSuffix(msg.Subject, batchSuffix) {
		p.batchAnswered(msg)
		return
	}
	text, ours := strings.CutPrefix(msg.Subject, p.replies)
	token, err := strconv.ParseUint(text, 36, 64)
	if !ours || err != nil {
		return // From a former connection: the event has its outcome.
	}
	if sent, pending := p.acks.take(token); pending {
		p.tell(p.outcome(&sent, msg))
	}
}

// outcome returns what an answer says of the event that was sent. The caller holds
// mu.
func (p *Publisher) outcome(sent *pendingAck, msg *nats.Msg) Outcome {
	a, fault := readAnswer(msg, p.Stream())
	if fault != nil {
		return unstored(sent.seq, fault)
	}
	sequence, duplicate, fault := a.acknowledged(p.Stream(), sent.last)
	if fault != nil {
		if is[*LostError](fault) {
			p.lose(fault)
		}
		p.quotaNeeded(fault)
		return unstored(sent.seq, p.inWords(p.sized(fault, sent.sizes)))
	}
	if !duplicate {
		p.highest, p.proved = max(p.highest, sequence), time.Now()
	}
	if len(p.denied) > 0 {
		delete(p.denied, sent.mark) // A person has given the permission.
	}
	return stored(sent.seq, sequence, duplicate)
}

// sized adds the sizes to a refusal for a message's size. The caller holds mu.
func (p *Publisher) sized(fault *Error, of sizes) *Error {
	if fault.Code == codeMessageTooLarge {
		fault.Err = &sizeError{data: int(of.data), head: int(of.head), limit: limitStream, most: max(p.maxMessage, 0), cause: fault.Err}
	}
	return fault
}

// expire ends the wait for acknowledgements that did not come in time.
func (p *Publisher) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for {
		token, oldest, ok := p.acks.oldest()
		if !ok {
			p.timer = nil
			return
		}
		if wait := oldest.until.Sub(now); wait > 0 {
			p.timer.Reset(wait)
			return
		}
		p.acks.take(token)
		p.tell(unstored(oldest.seq, Classify(fmt.Errorf("no acknowledgement within %v: %w", p.options.AckTimeout, nats.ErrTimeout))))
	}
}

// failAll ends the wait for every answer that is pending on the connection of a
// dialer, and tells why.
func (p *Publisher) failAll(on *dialer, reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dialer != on {
		return // A former one.
	}
	p.fail(Classify(reason))
}

// fail is failAll. The caller holds mu.
func (p *Publisher) fail(fault *Error) {
	p.troubled(fault) // Even if nothing is pending, nothing can be sent either.
	if p.batch != nil {
		p.endBatch(p.batch, fault)
	}
	for {
		token, oldest, ok := p.acks.oldest()
		if !ok {
			return
		}
		p.acks.take(token)
		p.tell(unstored(oldest.seq, fault))
	}
}

// withheld says that an event was not sent, since the stream must be read back
// first.
func withheld(lost *Error) *Error {
	return &Error{Fault: lost.Fault, Err: fmt.Errorf("not published: %w", lost.Err), refused: true}
}

// lose notes that the stream is not the one that was known. Nothing is published
// until the stream is opened or fenced again. The caller holds mu.
func (p *Publisher) lose(fault *Error) {
	p.lost = fault
	p.troubled(fault)
}

// troubled notes trouble that concerns no single event. The caller holds mu.
func (p *Publisher) troubled(fault *Error) {
	// Of several troubles, the one that a person must mend says most.
	if p.trouble == nil || p.trouble.Fault == FaultWeather && fault.Fault == FaultSetup {
		p.trouble = fault
	}
	p.signal()
}

// tell adds an outcome. The caller holds mu.
func (p *Publisher) tell(o Outcome) {
	p.done = append(p.done, o)
	p.signal()
}

// signal makes Outcomes tell that there is something to collect.
func (p *Publisher) signal() {
	select {
	case p.outcomes <- struct{}{}:
	default: // Signalled already.
	}
}

// Outcomes returns a channel that is signalled when Collect has something to return.
func (p *Publisher) Outcomes() <-chan struct{} { return p.outcomes }

// Collect appends the outcomes that have become known since the last call. Each
// event that Publish or PublishInOrder took has exactly one. Trouble is a fault that
// concerns no single event and began since the last call, such as a lost connection;
// nil for none. After trouble, the stream must be read back before anything else is
// published.
func (p *Publisher) Collect(to []Outcome) (outcomes []Outcome, trouble *Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	outcomes = append(to, p.done...)
	clear(p.done)
	p.done = p.done[:0]
	trouble, p.trouble = p.trouble, nil
	p.abandoned = nil
	return outcomes, trouble
}

// Close closes the connection at once. Buffered events are not sent any more, and
// events without an outcome get none. Open makes the publisher usable again.
func (p *Publisher) Close() {
	p.mu.Lock()
	conn, dialer := p.conn, p.dialer
	p.conn, p.dialer, p.replies = nil, nil, ""
	p.acks.clear()
	p.fence, p.fenceSubject, p.noAnswers = 0, "", nil
	p.highest, p.lost, p.proved = 0, nil, time.Time{}
	p.batch, p.done, p.trouble, p.abandoned = nil, nil, nil, nil
	if p.batchTimer != nil {
		p.batchTimer.Stop()
		p.batchTimer = nil
	}
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	p.mu.Unlock()
	if dialer != nil {
		dialer.close()
	}
	if conn != nil {
		conn.Close()
	}
	select {
	case <-p.outcomes:
	default:
	}
}
