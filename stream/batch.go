package stream

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// The fast-ingest protocol of ADR-50, as nats-server 2.14 and later speak it. A
// message of a batch names its place in the reply subject:
//
//	<inbox>.<batch>.<flow>.<gap mode>.<place>.<operation>.$FI
//
// The server answers with a flow ack each so many messages, {"type":"ack"},
// with what stopped the batch, {"type":"err"} or {"type":"gap"}, and at the end
// with a publish ack that counts what is stored. In gap mode "fail" nothing
// that follows a failed message is stored.
const (
	batchSuffix = ".$FI"

	batchStart  = ".0" + batchSuffix
	batchAppend = ".1" + batchSuffix
	batchEnd    = ".3" + batchSuffix // The batch ends before this message, which is not stored.

	// batchFlow is how many messages a flow ack covers: the most that a server
	// allows. batchAcks is how many such stretches may be in flight. With two,
	// nothing is in flight now and then on busy processors.
	batchFlow = 500
	batchAcks = 4

	// batchBytes is how much payload a stretch may cover, estimated from the size
	// of the batch's first event: if events are large, fewer are in flight.
	batchBytes = 1 << 20

	// batchIdle is how long a batch may be idle and still be used; the server ends
	// an idle one after 10 s.
	batchIdle = 5 * time.Second

	// batchVerdict is how long to wait for the final count once a batch is known
	// to have failed.
	batchVerdict = time.Second

	// batchRetry is how long plain publishes are sent after the server has refused
	// a batch as such.
	batchRetry = time.Minute

	// batchRest is how long plain publishes are sent to a cluster at first, and
	// after a batch ended badly. To a batch, the server acknowledges an event
	// whose ID it is just storing as if it were stored, though it may yet be lost;
	// a plain publish is told to try again (10158).
	batchRest = 5 * time.Second

	// notFirstRest is how long plain publishes are sent after an event that must
	// not go in a batch: it is too large to begin one, or its subject was denied.
	notFirstRest = time.Second
)

// batch is an ordered batch: the stream stores all its messages up to some place
// and none after it. Text and subject belong to the goroutine that publishes.
type batch struct {
	raw          bool   // Its messages go past nats.go.
	replies      string // What its reply subjects start with.
	text         []byte // The latest reply subject.
	subject      string // Some subject that the stream takes.
	id           string
	pending      []batched // The events whose outcome is not known.
	known        uint64    // How many events before them are stored.
	last         uint64    // A sequence that the stream had given before the first.
	flow         int       // How many messages we asked the server to acknowledge at once.
	most         int64     // The size of the largest message that can be stored.
	sent         uint64    // Changed under mu, by the goroutine that publishes only; that one reads it without mu.
	checkDenied  bool      // Some subjects were denied not long ago.
	awaitsReason bool      // It has failed, and waits for the reason.
	ending       bool      // The end was sent.
	counted      bool      // The server has said how many are stored: the others are not.

	used    time.Time // When events were last known to be stored, or it began.
	fault   *Error    // What stopped it; nil if that is not known.
	faultAt uint64    // The message at which it stopped.
	until   time.Time
}

// batched is an event in a batch.
type batched struct {
	seq   int64
	sizes sizes
	mark  uint64 // Its subject's mark; 0 until measured has noted it.
}

// measured notes the size of the latest event's headers, and its subject. The
// caller holds mu.
func (b *batch) measured(of *reusingEncoder) {
	if n := len(b.pending); n > 0 && b.pending[n-1].mark == 0 {
		b.pending[n-1].sizes.head, b.pending[n-1].mark = sizesOf(0, of.headSize).head, of.mark
	}
}

// Pipeline returns how many events may be in flight in an ordered batch. It is 0 if
// no batch can be sent now: the stream does not take batches, plain publishes are
// due for some time (see the package's doc), or one event must go alone first
// (Alone). PublishInOrder and Finish send a batch; while one is open, Publish must
// not be called.
func (p *Publisher) Pipeline() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.batches || p.conn == nil || now.Before(p.noBatches) || p.fence == 0 && p.unproven(now) {
		return 0
	}
	if p.batch != nil && p.batch.ending && len(p.batch.pending) > 0 {
		return 0
	}
	return p.flow * batchAcks
}

// PublishInOrder sends an event in an ordered batch, beginning one if none is
// open, and returns without waiting; it may buffer the event until Flush.
// The stream stores the events of a batch in the order of sending, and no event
// after one that it does not store. So the caller need not wait for the outcome of
// the aggregate's former event. Outcomes become known for many events at once;
// Finish hastens the last ones. If PublishInOrder returns an error, an *Error, the
// event was not sent; the batch goes on with the others.
func (p *Publisher) PublishInOrder(ev *Event) error {
	b, conn, err := p.enter(ev.Seq, len(ev.Data))
	if b == nil {
		return err
	}
	if b.raw {
		err = p.sendRaw(b, ev)
	} else {
		err = p.sendMessage(b, ev, conn)
	}
	if err == nil {
		return nil
	}
	fault := p.unsent(b, Classify(err))
	if errors.Is(err, errDenied) {
		p.Finish() // The event goes by itself, after the others.
	}
	return fault
}

// errNotFirst says that an event is too large to begin a batch: the first message
// carries the fence, too. By itself, the event can be sent.
var errNotFirst = &Error{Fault: FaultWeather, Err: errors.New("the event is too large to begin an ordered batch"), refused: true}

// sendRaw sends a batch's last event past nats.go.
func (p *Publisher) sendRaw(b *batch, ev *Event) error {
	var fence []headerLine
	if b.sent == 1 {
		fence = p.fenceLines()
	}
	subject, head, err := p.encoder.rawMessage(ev, fence...)
	if err != nil {
		return err
	}
	if b.checkDenied && p.isDenied() {
		return errDenied
	}
	if size := len(head) + len(ev.Data); b.sent == 1 && tooLargeWith(fence, size-linesSize(fence), b.most) {
		return errNotFirst
	}
	if b.sent == 1 {
		b.subject = string(subject)
	}
	if err := p.raw.send(subject, b.reply(), head, ev.Data); err != nil {
		return publishError(err)
	}
	return nil
}

// sendMessage sends a batch's last event by way of nats.go.
func (p *Publisher) sendMessage(b *batch, ev *Event, conn *nats.Conn) error {
	msg, err := p.encoder.message(ev, string(b.reply()))
	if err != nil {
		return err
	}
	if b.checkDenied && p.isDenied() {
		return errDenied
	}
	if b.sent == 1 {
		fence := p.fenceLines()
		if tooLargeWith(fence, p.encoder.headSize+len(ev.Data), b.most) {
			return errNotFirst
		}
		b.subject = msg.Subject
		msg = fenced(msg, fence)
	}
	if err := conn.PublishMsg(msg); err != nil {
		return publishError(explained(err, conn, len(ev.Data), p.encoder.headSize))
	}
	return nil
}

// Flush sends the events that PublishInOrder has buffered. If that fails, the
// failure is their outcome.
func (p *Publisher) Flush() {
	p.mu.Lock()
	b := p.batch
	if b != nil {
		b.measured(p.encoder)
	}
	p.mu.Unlock()
	if b != nil && b.raw {
		p.flush(b, nil)
	}
}

// flush is Flush, unless a write has failed already.
func (p *Publisher) flush(b *batch, err error) {
	if err == nil {
		err = p.raw.flush()
	}
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.endBatch(b, Classify(publishError(err)))
	}
}

// reply returns the reply subject of the message entered last, until the next call.
func (b *batch) reply() []byte {
	operation := batchAppend
	if b.sent == 1 {
		operation = batchStart
	}
	b.text = append(b.text[:0], b.replies...)
	b.text = strconv.AppendUint(b.text, b.sent, 10)
	b.text = append(b.text, operation...)
	return b.text
}

// unsent deals with the failure to send a batch's last event. An event that the
// encoder or nats.go refused is removed from the batch. After any other failure
// nobody knows how much of the batch was sent, so the batch is ended.
func (p *Publisher) unsent(b *batch, fault *Error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.batch != b {
		return nil // The batch has ended, and the event has its outcome.
	}
	if fault.Ambiguous() {
		p.endBatch(b, fault)
		return nil
	}
	seq := b.pending[len(b.pending)-1].seq
	b.pending = b.pending[:len(b.pending)-1]
	b.sent--
	if b.sent == 0 {
		p.batch = nil
	}
	if errors.Is(fault, errNotFirst) || errors.Is(fault, errDenied) {
		p.noBatches = later(p.noBatches, time.Now().Add(notFirstRest))
		p.abandoned = &Outcome{Err: fault, Retry: true}
		p.abandon(seq)
		return nil
	}
	return fault
}

// abandon reports whether a batch has failed and the caller has not collected that
// yet. Then the event must not be sent, and gets the outcome of the abandoned ones:
// its predecessor may have been in that batch, and must be stored before it. The
// caller holds mu.
func (p *Publisher) abandon(seq int64) bool {
	if p.abandoned == nil {
		return false
	}
	outcome := *p.abandoned
	outcome.Seq = seq
	p.tell(outcome)
	return true
}

// enter notes an event that is about to be sent, in the open batch or in a new
// one. If the event must not be sent, b is nil: then either err says why, or the
// event has its outcome already.
func (p *Publisher) enter(seq int64, size int) (b *batch, conn *nats.Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.abandon(seq):
		return nil, nil, nil
	case p.conn == nil:
		return nil, nil, Classify(nats.ErrInvalidConnection)
	case p.lost != nil:
		return nil, nil, withheld(p.lost)
	}
	b = p.batch
	// Flow acks may tell all outcomes of a batch before its end is confirmed.
	if b != nil && len(b.pending) == 0 && (b.ending || time.Since(b.used) > batchIdle) {
		b = nil
	}
	if b == nil {
		p.flow = min(p.stretch, max(batchBytes/max(size, 1), 1))
		b = &batch{used: time.Now(), id: nuid.Next(), flow: p.flow, last: p.highest, most: p.largest()}
		b.replies = p.replies + b.id + "." + strconv.Itoa(b.flow) + ".fail."
		if raw := p.dialer.rawConn(); raw != nil {
			b.raw = true
			p.raw.begin(raw, p.maxPayload)
		}
		p.batch = b
	}
	if len(b.pending) == 0 {
		b.until = time.Now().Add(p.options.AckTimeout)
		p.watchBatch(p.options.AckTimeout)
	}
	b.measured(p.encoder)
	b.checkDenied = len(p.denied) > 0
	b.pending = append(b.pending, batched{seq: seq, sizes: sizesOf(size, 0)})
	b.sent++
	return b, p.conn, nil
}

// Finish ends the open ordered batch, if any, so that the outcomes of all its
// events become known. PublishInOrder must not be called before they are; it then
// begins another batch.
func (p *Publisher) Finish() {
	p.mu.Lock()
	b, conn := p.batch, p.conn
	if b == nil || b.ending {
		p.mu.Unlock()
		return
	}
	b.ending = true
	b.measured(p.encoder)
	p.mu.Unlock()
	reply := b.replies + strconv.FormatUint(b.sent+1, 10) + batchEnd
	if b.raw {
		p.flush(b, p.raw.send([]byte(b.subject), []byte(reply), nil, nil))
		return
	}
	if err := conn.PublishMsg(&nats.Msg{Subject: b.subject, Reply: reply}); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.endBatch(b, Classify(fmt.Errorf("end ordered batch: %w", err)))
	}
}

// batchAnswered handles an answer to a batch. The caller holds mu.
func (p *Publisher) batchAnswered(msg *nats.Msg) {
	b := p.batch
	if b == nil {
		return // Of a batch that has ended.
	}
	place, ours := strings.CutPrefix(msg.Subject, b.replies)
	if !ours {
		return
	}
	place, _, _ = strings.Cut(place, ".")
	at, err := strconv.ParseUint(place, 10, 64)
	if err != nil {
		p.endBatch(b, malformed("it is for no message"))
		return
	}
	a, fault := readAnswer(msg, p.Stream())
	switch {
	case fault != nil && errors.Is(fault, jetstream.ErrNoStreamResponse):
		p.batchFailed(b, at, fault)
	case fault != nil:
		p.endBatch(b, fault)
	case a.Type == "ack":
		p.batchFlowed(b, &a)
	case a.Type == "gap":
		p.batchFailed(b, 0, nil)
	case a.Type == "err":
		p.batchRefused(b, a.Seq, a.Error)
	case a.Type != "":
		p.endBatch(b, malformed("type "+strconv.Quote(cut(a.Type))))
	case a.Error != nil:
		p.batchRefused(b, at, a.Error)
	default:
		p.batchCounted(b, &a)
	}
}

// batchFlowed handles a flow ack: all messages up to its place are stored.
func (p *Publisher) batchFlowed(b *batch, a *answer) {
	switch {
	case a.Error != nil:
		p.endBatch(b, malformed("an acknowledgement with an error"))
	case a.Seq > b.sent:
		p.endBatch(b, malformed(fmt.Sprintf("it acknowledges message %d of %d that were sent", a.Seq, b.sent)))
	default:
		if a.Msgs > 0 {
			p.flow = int(min(a.Msgs, uint64(b.flow)))
		}
		p.batchStored(b, a.Seq, 0)
	}
}

// batchCounted handles the publish ack that ends a batch.
func (p *Publisher) batchCounted(b *batch, a *answer) {
	switch {
	case a.Stream == "":
		p.endBatch(b, malformed("it names no stream"))
		return
	case a.Batch != b.id:
		p.endBatch(b, malformed(fmt.Sprintf("it is that of batch %q", cut(a.Batch))))
		return
	case a.Count > b.sent:
		p.endBatch(b, malformed(fmt.Sprintf("it counts %d messages of %d that were sent", a.Count, b.sent)))
		return
	}
	if a.Seq > 0 && a.Seq <= b.last {
		fault := wentBack(p.Stream(), a.Seq, b.last)
		p.lose(fault)
		p.endBatch(b, fault)
		return
	}
	p.batchStored(b, a.Count, a.Seq)
	b.counted = true
	// Each stored message has a sequence of its own, above all earlier ones.
	if most := max(a.Seq, b.last) - b.last; most < a.Count {
		p.noBatches = later(p.noBatches, time.Now().Add(batchRest))
		p.troubled(Classify(&SkippedError{Stream: p.Stream(), Events: a.Count, Most: most}))
	}
	p.highest = max(p.highest, a.Seq)
	if b.fault == nil && len(b.pending) > 0 {
		p.awaitReason(b) // A message is missing.
		return
	}
	p.endBatch(b, b.fault)
}

// awaitReason waits a moment for a permission violation, which may be the reason why
// a message of the batch is missing.
func (p *Publisher) awaitReason(b *batch) {
	if b.awaitsReason {
		return
	}
	b.awaitsReason = true
	b.until = time.Now().Add(deniedGrace)
	p.watchBatch(deniedGrace)
}

// batchDenied handles the permission violation of a batch's message: the stream did
// not get that message, and stores nothing after it.
func (p *Publisher) batchDenied(b *batch, at uint64, fault *Error) {
	if b.fault == nil || at < b.faultAt {
		b.fault, b.faultAt = fault, at
	}
	b.counted = b.counted || at == 1 // Then the stream knows of no batch.
	if b.counted {
		p.endBatch(b, b.fault)
	}
}

// batchStored tells that the first count messages are stored, the last of them at
// this sequence of the stream; 0 if the sequence is not known.
func (p *Publisher) batchStored(b *batch, count, sequence uint64) {
	if count <= b.known {
		return
	}
	n := int(count - b.known)
	for _, event := range b.pending[:n] {
		p.done = append(p.done, stored(event.seq, 0, false))
	}
	p.done[len(p.done)-1].Stored = sequence
	p.signal()
	b.pending = b.pending[n:]
	b.known = count
	b.used = time.Now()
	p.proved = b.used
	b.until = b.used.Add(p.options.AckTimeout)
}

// batchRefused handles the refusal of a batch's message.
func (p *Publisher) batchRefused(b *batch, at uint64, reason *jetstream.APIError) {
	switch {
	case reason == nil:
		p.endBatch(b, malformed("an error without an error object"))
	case at > b.sent+1 || at <= b.known: // The message after the last is the end of the batch.
		p.endBatch(b, malformed(fmt.Sprintf("it refuses message %d of %d that were sent", at, b.sent)))
	default:
		fault := Classify(reason)
		if at > b.known && at <= b.sent {
			of := b.pending[at-b.known-1].sizes
			p.quotaNeeded(fault)
			fault = p.inWords(p.sized(fault, of))
			if at == 1 && fault.Code == codeMessageTooLarge {
				// By itself, without the fence, the message is smaller, and may be taken.
				fault.permanent = p.maxMessage > 0 && int64(of.data) > p.maxMessage
			}
		}
		p.batchFailed(b, at, fault)
	}
}

// batchFailed notes what stopped a batch. The server then sends the final count,
// unless the first message failed: then it knows of no batch.
func (p *Publisher) batchFailed(b *batch, at uint64, fault *Error) {
	if fault != nil && (b.fault == nil || at < b.faultAt) {
		b.fault, b.faultAt = fault, at
	}
	switch {
	case fault != nil && fault.Code == CodeBatchUnknown:
		p.awaitReason(b) // The stream may not have got the first message.
		return
	case at == 1:
		p.endBatch(b, b.fault)
		return
	}
	b.until = time.Now().Add(batchVerdict)
	p.watchBatch(batchVerdict)
}

var errBatchEnded = errors.New("ordered batch ended")

// endBatch ends a batch, and tells the outcomes of its pending events. The caller
// holds mu.
func (p *Publisher) endBatch(b *batch, fault *Error) {
	if p.batch != b {
		return
	}
	p.batch = nil
	if len(b.pending) == 0 {
		if fault != nil && fault != b.fault {
			p.troubled(fault) // All events were acknowledged, perhaps not by our stream.
			return
		}
		p.stretch = min(2*p.stretch, batchFlow)
		return
	}
	unwanted := fault != nil && (fault.Code == CodeBatchDisabled || fault.Code == CodeBatchesInFlight || fault.Code == codeBatchPattern || fault.Code == codeBatchID)
	others := Outcome{Err: &Error{Fault: FaultWeather, Err: errBatchEnded}}
	if fault != nil {
		others.Err.Err = fmt.Errorf("%w: %w", errBatchEnded, fault.Err)
		others.Retry = fault.Fault == FaultRow || unwanted
		if !others.Retry {
			others.Err.Fault = fault.Fault
		}
	}
	// In a cluster, the count may include what another batch has in process.
	others.Err.refused = b.counted && !p.clustered
	p.abandoned = &others
	for i, event := range b.pending {
		if fault != nil && !unwanted && fault == b.fault && b.known+uint64(i)+1 == b.faultAt {
			p.tell(unstored(event.seq, fault))
			continue
		}
		outcome := others
		outcome.Seq = event.seq
		p.tell(outcome)
	}
	switch {
	case unwanted:
		p.noBatches = later(p.noBatches, time.Now().Add(batchRetry))
	case p.clustered:
		p.noBatches = later(p.noBatches, time.Now().Add(batchRest))
	}
}

// Further codes that refuse a batch as such.
const (
	codeBatchPattern = 10206 // The reply subject is not what this server speaks.
	codeBatchID      = 10207
)

// watchBatch makes sure that a batch without answers ends. The caller holds mu.
func (p *Publisher) watchBatch(after time.Duration) {
	if p.batchTimer == nil {
		p.batchTimer = time.AfterFunc(after, p.expireBatch)
		return
	}
	p.batchTimer.Reset(after)
}

func (p *Publisher) expireBatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.batch
	if b == nil || len(b.pending) == 0 {
		return
	}
	if wait := time.Until(b.until); wait > 0 {
		p.watchBatch(wait)
		return
	}
	fault := b.fault
	if fault == nil {
		// On a slow network a stretch may take longer; a shorter one may not.
		p.stretch = max(p.stretch/4, 1)
		fault = Classify(fmt.Errorf("no acknowledgement within %v: %w", p.options.AckTimeout, nats.ErrTimeout))
	}
	p.endBatch(b, fault)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
