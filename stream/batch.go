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

	// batchFlow is how many messages a flow ack covers, the most that the
	// server does, and batchAcks how many such stretches may be on their way:
	// with two, the pipe runs dry now and then while the processors have much
	// else to do.
	batchFlow = 500
	batchAcks = 4

	// batchBytes is how much payload a stretch is to cover, by the size of the
	// batch's first event: of large events, fewer are on their way.
	batchBytes = 1 << 20

	// batchIdle is how long a batch may rest and be gone on with; the server ends
	// one after 10 s.
	batchIdle = 5 * time.Second

	// batchVerdict is how long the final count may take once it is known that
	// a batch has failed.
	batchVerdict = time.Second

	// batchRetry is when batches are tried again after the server would not
	// take one at all.
	batchRetry = time.Minute

	// batchRest is how long a cluster is sent plain publishes after a batch
	// ended badly, and at first. A batch takes an ID that is being stored just
	// now for one that is stored, and acknowledges what may yet be lost; a
	// plain publish is told to try again (10158).
	batchRest = 5 * time.Second

	// notFirstRest is how long plain publishes are sent after an event that is
	// too large to begin a batch.
	notFirstRest = time.Second
)

// batch is an ordered batch: one pipe of messages, of which the stream stores
// all up to some place and none behind it. Text and subject belong to the
// goroutine that publishes.
type batch struct {
	raw     bool   // Its messages go past nats.go.
	replies string // What its reply subjects start with.
	text    []byte // The latest reply subject.
	subject string // Some subject that the stream takes.
	id      string
	open    []batched // Those whose outcome is not known.
	known   uint64    // So many before them are stored.
	last    uint64    // A sequence that the stream had given before the first.
	flow    int       // How many messages we asked the server to acknowledge at once.
	most    int64     // The size of the largest message that can be stored.
	sent    uint64    // Changed under mu, by the goroutine that publishes only, which reads it without.
	wary    bool      // Some subjects were denied not long ago.
	held    bool      // It has failed, and waits for the reason.
	ending  bool      // The end was sent.
	counted bool      // The server has said how many are stored: the others are not.

	used    time.Time // When it last had nothing outstanding.
	fault   *Error    // What stopped it, if that is known,
	faultAt uint64    // and at which message.
	until   time.Time
}

// batched is an event in a batch.
type batched struct {
	seq   int64
	sizes sizes
	mark  uint64 // Its subject's; 0 if it has not been noted yet.
}

// measured notes the size of the latest event's headers, and its subject. The
// caller holds mu.
func (b *batch) measured(of *reusingEncoder) {
	if n := len(b.open); n > 0 && b.open[n-1].mark == 0 {
		b.open[n-1].sizes.head, b.open[n-1].mark = sizesOf(0, of.headSize).head, of.mark
	}
}

// Pipeline returns how many events may be in flight in an ordered batch, 0 if
// there can be none now: the stream does not take them, must rest from them, or
// is to be tried with one event first (Alone). PublishInOrder and Finish use it; while one is open,
// Publish must not be called.
func (p *Publisher) Pipeline() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.batches || p.conn == nil || now.Before(p.rest) || p.fence == 0 && p.unproven(now) {
		return 0
	}
	if p.batch != nil && p.batch.ending && len(p.batch.open) > 0 {
		return 0
	}
	return p.flow * batchAcks
}

// PublishInOrder sends an event in an ordered batch, beginning one if none is
// open, and returns without waiting; it may keep the event back until Flush.
// Events so sent are stored in this order, and none that follows one that is
// not: so there is no need to wait for the outcome of an aggregate's former
// event. The outcomes become known in stretches; Finish hastens those of the
// last ones. Its error, an *Error, says that this event was not sent, which
// those before and after it do not feel.
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
		p.Finish() // It goes by itself, after the others.
	}
	return fault
}

// errNotFirst says that an event is too large to begin a batch, whose first
// message carries the fence, but not too large to be sent by itself.
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
	if b.wary && p.isDenied() {
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
	if b.wary && p.isDenied() {
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

// Flush sends the events that PublishInOrder has kept back. If that fails, it
// is their outcome.
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

// unsent deals with the failure to send a batch's last event. What the encoder
// or nats.go refused is taken out again; after any other failure it is open what
// of the batch has left, so that ends it.
func (p *Publisher) unsent(b *batch, fault *Error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.batch != b {
		return nil // Its outcome has been told.
	}
	if fault.Ambiguous() {
		p.endBatch(b, fault)
		return nil
	}
	seq := b.open[len(b.open)-1].seq
	b.open = b.open[:len(b.open)-1]
	b.sent--
	if b.sent == 0 {
		p.batch = nil
	}
	if errors.Is(fault, errNotFirst) || errors.Is(fault, errDenied) {
		p.rest = later(p.rest, time.Now().Add(notFirstRest))
		p.severed = &Outcome{Err: fault, Again: true}
		p.behind(seq)
		return nil
	}
	return fault
}

// behind reports whether a batch has failed of which the caller has not been
// told yet. Then the event is not sent, and that is its outcome: it may have a
// predecessor in that batch, and must not be stored before it. The caller holds
// mu.
func (p *Publisher) behind(seq int64) bool {
	if p.severed == nil {
		return false
	}
	outcome := *p.severed
	outcome.Seq = seq
	p.tell(outcome)
	return true
}

// enter notes an event that is about to be sent, in the open batch or in a new
// one. There is none if it must not be sent: then err says why, unless its
// outcome has been told.
func (p *Publisher) enter(seq int64, size int) (b *batch, conn *nats.Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.behind(seq):
		return nil, nil, nil
	case p.conn == nil:
		return nil, nil, Classify(nats.ErrInvalidConnection)
	case p.lost != nil:
		return nil, nil, withheld(p.lost)
	}
	b = p.batch
	// Flow acks may tell all outcomes of a batch before its end is confirmed.
	if b != nil && len(b.open) == 0 && (b.ending || time.Since(b.used) > batchIdle) {
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
	if len(b.open) == 0 {
		b.until = time.Now().Add(p.options.AckTimeout)
		p.watchBatch(p.options.AckTimeout)
	}
	b.measured(p.encoder)
	b.wary = len(p.denied) > 0
	b.open = append(b.open, batched{seq: seq, sizes: sizesOf(size, 0)})
	b.sent++
	return b, p.conn, nil
}

// Finish ends the open ordered batch, if any, so that the outcomes of all its
// events become known. The next PublishInOrder begins another; it must not be
// called before they are.
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
		return // Of a batch whose outcome has been told.
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

// batchFlowed handles a flow ack: all messages up to this place are stored.
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
	// Each new message has got a sequence of its own, above all before.
	if most := max(a.Seq, b.last) - b.last; most < a.Count {
		p.rest = later(p.rest, time.Now().Add(batchRest))
		p.troubled(Classify(&SkippedError{Stream: p.Stream(), Events: a.Count, Most: most}))
	}
	p.highest = max(p.highest, a.Seq)
	if b.fault == nil && len(b.open) > 0 {
		p.hold(b) // A message is missing.
		return
	}
	p.endBatch(b, b.fault)
}

// hold gives the violation a moment that may be the reason why a message of a batch
// is missing.
func (p *Publisher) hold(b *batch) {
	if b.held {
		return
	}
	b.held = true
	b.until = time.Now().Add(deniedGrace)
	p.watchBatch(deniedGrace)
}

// batchDenied handles the violation that is about a batch's message: the stream has
// not got it, and stores nothing after it.
func (p *Publisher) batchDenied(b *batch, at uint64, fault *Error) {
	if b.fault == nil || at < b.faultAt {
		b.fault, b.faultAt = fault, at
	}
	b.counted = b.counted || at == 1 // Then the batch never came to be.
	if b.counted {
		p.endBatch(b, b.fault)
	}
}

// batchStored tells that all messages up to this place are stored, the last of
// them at this sequence of the stream, if that is known.
func (p *Publisher) batchStored(b *batch, count, sequence uint64) {
	if count <= b.known {
		return
	}
	n := int(count - b.known)
	for _, event := range b.open[:n] {
		p.done = append(p.done, stored(event.seq, 0, false))
	}
	p.done[len(p.done)-1].Stored = sequence
	p.signal()
	b.open = b.open[n:]
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
	case at > b.sent+1 || at <= b.known: // One more than were sent is the end.
		p.endBatch(b, malformed(fmt.Sprintf("it refuses message %d of %d that were sent", at, b.sent)))
	default:
		fault := Classify(reason)
		if at > b.known && at <= b.sent {
			of := b.open[at-b.known-1].sizes
			p.quotaNeeded(fault)
			fault = p.inWords(p.sized(fault, of))
			if at == 1 && fault.Code == codeMessageTooLarge {
				// By itself it is smaller, and may be taken.
				fault.permanent = p.maxMessage > 0 && int64(of.data) > p.maxMessage
			}
		}
		p.batchFailed(b, at, fault)
	}
}

// batchFailed notes what stopped a batch; the final count follows, unless the
// batch never came to be.
func (p *Publisher) batchFailed(b *batch, at uint64, fault *Error) {
	if fault != nil && (b.fault == nil || at < b.faultAt) {
		b.fault, b.faultAt = fault, at
	}
	switch {
	case fault != nil && fault.Code == CodeBatchUnknown:
		p.hold(b) // The stream may not have got the first message.
		return
	case at == 1:
		p.endBatch(b, b.fault)
		return
	}
	b.until = time.Now().Add(batchVerdict)
	p.watchBatch(batchVerdict)
}

var errBatchEnded = errors.New("ordered batch ended")

// endBatch tells the outcome of whatever is left of a batch. The caller holds mu.
func (p *Publisher) endBatch(b *batch, fault *Error) {
	if p.batch != b {
		return
	}
	p.batch = nil
	if len(b.open) == 0 {
		if fault != nil && fault != b.fault {
			p.troubled(fault) // All has been acknowledged, perhaps not by our stream.
			return
		}
		p.stretch = min(2*p.stretch, batchFlow)
		return
	}
	unwanted := fault != nil && (fault.Code == CodeBatchDisabled || fault.Code == CodeBatchesInFlight || fault.Code == codeBatchPattern || fault.Code == codeBatchID)
	others := Outcome{Err: &Error{Fault: FaultWeather, Err: errBatchEnded}}
	if fault != nil {
		others.Err.Err = fmt.Errorf("%w: %w", errBatchEnded, fault.Err)
		others.Again = fault.Fault == FaultRow || unwanted
		if !others.Again {
			others.Err.Fault = fault.Fault
		}
	}
	// In a cluster, what another batch has in process may have been counted.
	others.Err.refused = b.counted && !p.clustered
	p.severed = &others
	for i, event := range b.open {
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
		p.rest = later(p.rest, time.Now().Add(batchRetry))
	case p.clustered:
		p.rest = later(p.rest, time.Now().Add(batchRest))
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
	if b == nil || len(b.open) == 0 {
		return
	}
	if wait := time.Until(b.until); wait > 0 {
		p.watchBatch(wait)
		return
	}
	fault := b.fault
	if fault == nil {
		// On a slow line a stretch may take longer than that; a shorter one does not.
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
