package publisher

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/answer"
	"github.com/go-outbox/go-outbox/stream/excerpt"
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

	used    time.Time     // When events were last known to be stored, or it began.
	fault   *stream.Error // What stopped it; nil if that is not known.
	faultAt uint64        // The message at which it stopped.
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
func (b *batch) measured(of latest) {
	if n := len(b.pending); n > 0 && b.pending[n-1].mark == 0 {
		b.pending[n-1].sizes.head, b.pending[n-1].mark = sizesOf(0, of.head).head, of.mark
	}
}

// marked returns the index of the first pending event with a subject; -1 for none.
func (b *batch) marked(mark uint64) int {
	for i := range b.pending {
		// The subject of the latest may not have been noted yet.
		if b.pending[i].mark == mark || b.pending[i].mark == 0 && i == len(b.pending)-1 {
			return i
		}
	}
	return -1
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

// batches are the ordered batch that is open, if any, what its answers say, and when the next one
// may begin. They are guarded by Publisher.mu.
type batches struct {
	ackTimeout time.Duration
	expire     func() // Takes Publisher.mu and calls expired.

	results *results
	known   *known
	limits  *limits

	taken       bool // The stream takes ordered batches.
	clustered   bool
	pausedUntil time.Time // Until when no ordered batch may begin.
	stretch     int       // How many messages we ask the server to acknowledge at once.
	flow        int       // How many messages the server acknowledges at once.
	open        *batch    // Nil for none.
	timer       *time.Timer
}

// opened notes whether the stream takes ordered batches.
func (o *batches) opened(config *jetstream.StreamConfig, wanted bool) {
	o.taken, o.clustered, o.flow = config.AllowBatchPublish && wanted, config.Replicas > 1, o.stretch
	if o.clustered {
		o.pausedUntil = time.Now().Add(batchRest)
	}
}

// pause makes events go by themselves for some time.
func (o *batches) pause(d time.Duration) {
	if until := time.Now().Add(d); until.After(o.pausedUntil) {
		o.pausedUntil = until
	}
}

// forget drops the open batch.
func (o *batches) forget() {
	o.open = nil
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
}

// batchAnswered handles an answer to a batch.
func (o *batches) answered(msg *nats.Msg) {
	b := o.open
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
		o.end(b, stream.Malformed("it is for no message"))
		return
	}
	a, fault := answer.Read(msg, o.known.stream)
	switch {
	case fault != nil && errors.Is(fault, jetstream.ErrNoStreamResponse):
		o.failed(b, at, fault)
	case fault != nil:
		o.end(b, fault)
	case a.Type == "ack":
		o.flowed(b, &a)
	case a.Type == "gap":
		o.failed(b, 0, nil)
	case a.Type == "err":
		o.refused(b, a.Seq, a.Error)
	case a.Type != "":
		o.end(b, stream.Malformed("type "+strconv.Quote(excerpt.Of(a.Type))))
	case a.Error != nil:
		o.refused(b, at, a.Error)
	default:
		o.counted(b, &a)
	}
}

// batchFlowed handles a flow ack: all messages up to its place are stored.
func (o *batches) flowed(b *batch, a *answer.Answer) {
	switch {
	case a.Error != nil:
		o.end(b, stream.Malformed("an acknowledgement with an error"))
	case a.Seq > b.sent:
		o.end(b, stream.Malformed(fmt.Sprintf("it acknowledges message %d of %d that were sent", a.Seq, b.sent)))
	default:
		if a.Msgs > 0 {
			o.flow = int(min(a.Msgs, uint64(b.flow)))
		}
		o.stored(b, a.Seq, 0)
	}
}

// batchCounted handles the publish ack that ends a batch.
func (o *batches) counted(b *batch, a *answer.Answer) {
	switch {
	case a.Stream == "":
		o.end(b, stream.Malformed("it names no stream"))
		return
	case a.Batch != b.id:
		o.end(b, stream.Malformed(fmt.Sprintf("it is that of batch %q", excerpt.Of(a.Batch))))
		return
	case a.Count > b.sent:
		o.end(b, stream.Malformed(fmt.Sprintf("it counts %d messages of %d that were sent", a.Count, b.sent)))
		return
	}
	if a.Seq > 0 && a.Seq <= b.last {
		fault := answer.WentBack(o.known.stream, a.Seq, b.last)
		o.known.lose(fault)
		o.end(b, fault)
		return
	}
	o.stored(b, a.Count, a.Seq)
	b.counted = true
	// Each stored message has a sequence of its own, above all earlier ones.
	if most := max(a.Seq, b.last) - b.last; most < a.Count {
		o.pause(batchRest)
		o.results.troubled(stream.Classify(&SkippedError{Stream: o.known.stream, Events: a.Count, Most: most}))
	}
	o.known.highest = max(o.known.highest, a.Seq)
	if b.fault == nil && len(b.pending) > 0 {
		o.awaitReason(b) // A message is missing.
		return
	}
	o.end(b, b.fault)
}

// awaitReason waits a moment for a permission violation, which may be the reason why
// a message of the batch is missing.
func (o *batches) awaitReason(b *batch) {
	if b.awaitsReason {
		return
	}
	b.awaitsReason = true
	b.until = time.Now().Add(deniedGrace)
	o.watch(deniedGrace)
}

// batchDenied handles the permission violation of a batch's message: the stream did
// not get that message, and stores nothing after it.
func (o *batches) denied(b *batch, at uint64, fault *stream.Error) {
	if b.fault == nil || at < b.faultAt {
		b.fault, b.faultAt = fault, at
	}
	b.counted = b.counted || at == 1 // Then the stream knows of no batch.
	if b.counted {
		o.end(b, b.fault)
	}
}

// batchStored tells that the first count messages are stored, the last of them at
// this sequence of the stream; 0 if the sequence is not known.
func (o *batches) stored(b *batch, count, sequence uint64) {
	if count <= b.known {
		return
	}
	n := int(count - b.known)
	for _, event := range b.pending[:n] {
		o.results.done = append(o.results.done, stored(event.seq, 0, false))
	}
	o.results.done[len(o.results.done)-1].Stored = sequence
	o.results.signal()
	b.pending = b.pending[n:]
	b.known = count
	b.used = time.Now()
	o.known.proved = b.used
	b.until = b.used.Add(o.ackTimeout)
}

// batchRefused handles the refusal of a batch's message.
func (o *batches) refused(b *batch, at uint64, reason *jetstream.APIError) {
	switch {
	case reason == nil:
		o.end(b, stream.Malformed("an error without an error object"))
	case at > b.sent+1 || at <= b.known: // The message after the last is the end of the batch.
		o.end(b, stream.Malformed(fmt.Sprintf("it refuses message %d of %d that were sent", at, b.sent)))
	default:
		fault := stream.Classify(reason)
		if at > b.known && at <= b.sent {
			of := b.pending[at-b.known-1].sizes
			fault = o.limits.refusedMessage(fault, of)
			if at == 1 && fault.Code == stream.CodeMessageTooLarge {
				// By itself, without the fence, the message is smaller, and may be taken.
				fault.Permanent = o.limits.maxMessage > 0 && int64(of.data) > o.limits.maxMessage
			}
		}
		o.failed(b, at, fault)
	}
}

// batchFailed notes what stopped a batch. The server then sends the final count,
// unless the first message failed: then it knows of no batch.
func (o *batches) failed(b *batch, at uint64, fault *stream.Error) {
	if fault != nil && (b.fault == nil || at < b.faultAt) {
		b.fault, b.faultAt = fault, at
	}
	switch {
	case fault != nil && fault.Code == codeBatchUnknown:
		o.awaitReason(b) // The stream may not have got the first message.
		return
	case at == 1:
		o.end(b, b.fault)
		return
	}
	b.until = time.Now().Add(batchVerdict)
	o.watch(batchVerdict)
}

var errBatchEnded = errors.New("ordered batch ended")

// endBatch ends a batch, and tells the outcomes of its pending events.
func (o *batches) end(b *batch, fault *stream.Error) {
	if o.open != b {
		return
	}
	o.open = nil
	if len(b.pending) == 0 {
		if fault != nil && fault != b.fault {
			o.results.troubled(fault) // All events were acknowledged, perhaps not by our stream.
			return
		}
		o.stretch = min(2*o.stretch, batchFlow)
		return
	}
	unwanted := fault != nil && (fault.Code == codeBatchDisabled || fault.Code == codeBatchesInFlight || fault.Code == codeBatchPattern || fault.Code == codeBatchID)
	others := Outcome{Err: &stream.Error{Fault: stream.FaultWeather, Err: errBatchEnded}}
	if fault != nil {
		others.Err.Err = fmt.Errorf("%w: %w", errBatchEnded, fault.Err)
		others.Retry = fault.Fault == stream.FaultRow || unwanted
		if !others.Retry {
			others.Err.Fault = fault.Fault
		}
	}
	// In a cluster, the count may include what another batch has in process.
	others.Err.Refused = b.counted && !o.clustered
	o.results.abandoned = &others
	for i, event := range b.pending {
		if fault != nil && !unwanted && fault == b.fault && b.known+uint64(i)+1 == b.faultAt {
			o.results.tell(unstored(event.seq, fault))
			continue
		}
		outcome := others
		outcome.Seq = event.seq
		o.results.tell(outcome)
	}
	switch {
	case unwanted:
		o.pause(batchRetry)
	case o.clustered:
		o.pause(batchRest)
	}
}

// Codes of JetStream's answers to batches.
const (
	codeBatchDisabled   = 10205 // The stream does not take ordered batches.
	codeBatchUnknown    = 10208 // The batch ended, by its 10 s of idleness or with the stream's leader.
	codeBatchesInFlight = 10211 // Too many ordered batches are open at once.

	codeBatchPattern = 10206 // The reply subject is not what this server speaks.
	codeBatchID      = 10207
)

// watchBatch makes sure that a batch without answers ends.
func (o *batches) watch(after time.Duration) {
	if o.timer == nil {
		o.timer = time.AfterFunc(after, o.expire)
		return
	}
	o.timer.Reset(after)
}

// expired ends a batch to which no answer has come in time.
func (o *batches) expired() {
	b := o.open
	if b == nil || len(b.pending) == 0 {
		return
	}
	if wait := time.Until(b.until); wait > 0 {
		o.watch(wait)
		return
	}
	fault := b.fault
	if fault == nil {
		// On a slow network a stretch may take longer; a shorter one may not.
		o.stretch = max(o.stretch/4, 1)
		fault = stream.Classify(fmt.Errorf("no acknowledgement within %v: %w", o.ackTimeout, nats.ErrTimeout))
	}
	o.end(b, fault)
}
