package publisher

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/go-outbox/go-outbox/stream"
)

// BatchWindow returns how many events may be in flight in an ordered batch. It is 0 if
// no batch can be sent now: the stream does not take batches, plain publishes are
// due for some time (see the package's doc), or one event must go alone first
// (Alone). PublishOrdered and Finish send a batch; while one is open, Publish must
// not be called.
func (s *Session) BatchWindow() int {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.batches.taken || p.link.conn == nil || p.session != s || now.Before(p.batches.pausedUntil) || p.known.fence == 0 && p.known.unproven(now) {
		return 0
	}
	if b := p.batches.open; b != nil && b.ending && len(b.pending) > 0 {
		return 0
	}
	return p.batches.flow * batchAcks
}

// PublishOrdered sends an event in an ordered batch, beginning one if none is
// open, and returns without waiting; it may buffer the event until Flush.
// The stream stores the events of a batch in the order of sending, and no event
// after one that it does not store. So the caller need not wait for the outcome of
// the aggregate's former event. Outcomes become known for many events at once;
// Finish hastens the last ones. If PublishOrdered returns an error, an *stream.Error, the
// event was not sent; the batch goes on with the others.
func (s *Session) PublishOrdered(ev *stream.Event) error {
	p := s.p
	b, conn, err := p.enter(s, ev.Seq, len(ev.Data))
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
	fault := p.unsent(b, stream.Classify(err))
	if errors.Is(err, errDenied) {
		s.Finish() // The event goes by itself, after the others.
	}
	return fault
}

// errNotFirst says that an event is too large to begin a batch: the first message
// carries the fence, too. By itself, the event can be sent.
var errNotFirst = &stream.Error{Fault: stream.FaultWeather, Err: errors.New("the event is too large to begin an ordered batch"), Refused: true}

// sendRaw sends a batch's last event past nats.go.
func (p *Publisher) sendRaw(b *batch, ev *stream.Event) error {
	var fence []headerLine
	var further []byte
	if b.sent == 1 {
		fence = p.fenceLines()
		further = blockOf(fence)
	}
	subject, head, err := p.encoder.RawMessage(ev, further)
	if err != nil {
		return err
	}
	p.latest = latest{p.encoder.HeadSize(), subjectMark(subject)}
	if b.checkDenied && p.isDenied() {
		return errDenied
	}
	if size := len(head) + len(ev.Data); b.sent == 1 && tooLargeWith(fence, size-len(further), b.most) {
		return errNotFirst
	}
	if b.sent == 1 {
		b.subject = string(subject)
	}
	if err := p.raw.Send(subject, b.reply(), head, ev.Data); err != nil {
		return publishError(explained(err, p.raw.MaxPayload, len(ev.Data), len(head)))
	}
	return nil
}

// sendMessage sends a batch's last event by way of nats.go.
func (p *Publisher) sendMessage(b *batch, ev *stream.Event, conn *nats.Conn) error {
	msg, err := p.encoder.Message(ev, string(b.reply()))
	if err != nil {
		return err
	}
	p.latest = latest{p.encoder.HeadSize(), subjectMark(msg.Subject)}
	if b.checkDenied && p.isDenied() {
		return errDenied
	}
	if b.sent == 1 {
		fence := p.fenceLines()
		if tooLargeWith(fence, p.latest.head+len(ev.Data), b.most) {
			return errNotFirst
		}
		b.subject = msg.Subject
		msg = fenced(msg, fence)
	}
	if err := conn.PublishMsg(msg); err != nil {
		return publishError(explained(err, conn.MaxPayload, len(ev.Data), p.latest.head))
	}
	return nil
}

// Flush sends the events that PublishOrdered has buffered. If that fails, the
// failure is their outcome.
func (s *Session) Flush() {
	p := s.p
	p.mu.Lock()
	b := p.batches.open
	if b != nil {
		b.measured(p.latest)
	}
	p.mu.Unlock()
	if b != nil && b.raw {
		p.flush(b, nil)
	}
}

// flush is Flush, unless a write has failed already.
func (p *Publisher) flush(b *batch, err error) {
	if err == nil {
		err = p.raw.Flush()
	}
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.batches.end(b, stream.Classify(publishError(err)))
	}
}

// unsent deals with the failure to send a batch's last event. An event that the
// encoder or nats.go refused is removed from the batch. After any other failure
// nobody knows how much of the batch was sent, so the batch is ended.
func (p *Publisher) unsent(b *batch, fault *stream.Error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.batches.open != b {
		return nil // The batch has ended, and the event has its outcome.
	}
	if fault.Ambiguous() {
		p.batches.end(b, fault)
		return nil
	}
	seq := b.pending[len(b.pending)-1].seq
	b.pending = b.pending[:len(b.pending)-1]
	b.sent--
	if b.sent == 0 {
		p.batches.open = nil
	}
	if errors.Is(fault, errNotFirst) || errors.Is(fault, errDenied) {
		p.batches.pause(notFirstRest)
		p.results.abandoned = &Outcome{Err: fault, Retry: true}
		p.results.abandon(seq)
		return nil
	}
	return fault
}

// enter notes an event that is about to be sent, in the open batch or in a new
// one. If the event must not be sent, b is nil: then either err says why, or the
// event has its outcome already.
func (p *Publisher) enter(s *Session, seq int64, size int) (b *batch, conn *nats.Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.results.abandon(seq):
		return nil, nil, nil
	case p.link.conn == nil:
		return nil, nil, stream.Classify(nats.ErrInvalidConnection)
	case p.known.lost != nil:
		return nil, nil, p.known.withheld()
	case p.session != s:
		return nil, nil, errSessionOver
	}
	b = p.batches.open
	// Flow acks may tell all outcomes of a batch before its end is confirmed.
	if b != nil && len(b.pending) == 0 && (b.ending || time.Since(b.used) > batchIdle) {
		b = nil
	}
	if b == nil {
		p.batches.flow = min(p.batches.stretch, max(batchBytes/max(size, 1), 1))
		b = &batch{used: time.Now(), id: nuid.Next(), flow: p.batches.flow, last: p.known.highest, most: p.limits.largest()}
		b.replies = p.link.replies + b.id + "." + strconv.Itoa(b.flow) + ".fail."
		if raw := p.link.dialer.Raw(); raw != nil {
			b.raw = true
			p.raw.Begin(raw, p.limits.maxPayload)
		}
		p.batches.open = b
	}
	if len(b.pending) == 0 {
		b.until = time.Now().Add(p.options.AckTimeout)
		p.batches.watch(p.options.AckTimeout)
	}
	b.measured(p.latest)
	b.checkDenied = p.denied.any()
	b.pending = append(b.pending, batched{seq: seq, sizes: sizesOf(size, 0)})
	b.sent++
	return b, p.link.conn, nil
}

// Finish ends the open ordered batch, if any, so that the outcomes of all its
// events become known. PublishOrdered must not be called before they are; it then
// begins another batch.
func (s *Session) Finish() {
	p := s.p
	p.mu.Lock()
	b, conn := p.batches.open, p.link.conn
	if b == nil || b.ending {
		p.mu.Unlock()
		return
	}
	b.ending = true
	b.measured(p.latest)
	p.mu.Unlock()
	reply := b.replies + strconv.FormatUint(b.sent+1, 10) + batchEnd
	if b.raw {
		p.flush(b, p.raw.Send([]byte(b.subject), []byte(reply), nil, nil))
		return
	}
	if err := conn.PublishMsg(&nats.Msg{Subject: b.subject, Reply: reply}); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.batches.end(b, stream.Classify(fmt.Errorf("end ordered batch: %w", err)))
	}
}

// expireBatch is batches.expired.
func (p *Publisher) expireBatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.batches.expired()
}
