package publisher

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/answer"
)

// Publish sends an event by itself and returns without waiting: Collect returns its
// outcome. If Publish returns an error, a *stream.Error, nothing was sent.
func (s *Session) Publish(ev *stream.Event) error {
	p := s.p
	msg, err := p.encoder.Message(ev, "")
	if err != nil {
		return stream.Classify(err)
	}
	p.latest = latest{p.encoder.HeadSize(), subjectMark(msg.Subject)}
	head := p.latest.head
	conn, token, reply, first, err := p.expect(s, ev.Seq, sizesOf(len(ev.Data), head), p.latest.mark)
	if err != nil {
		return err
	}
	if first {
		if fence := p.fenceLines(); !tooLargeWith(fence, len(ev.Data)+head, p.largest()) {
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
	return stream.Classify(publishError(explained(err, conn.MaxPayload, len(ev.Data), head)))
}

// expect notes the pending acknowledgement of an event before the event is sent.
// First says that this event must find out whether the stream still is the one that
// is known.
func (p *Publisher) expect(s *Session, seq int64, of sizes, mark uint64) (conn *nats.Conn, token uint64, reply string, first bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.known.lost != nil:
		return nil, 0, "", false, p.known.withheld()
	case p.session != s && p.link.conn != nil:
		return nil, 0, "", false, errSessionOver
	}
	now := time.Now()
	// Before 2.14 a server takes the fence's subject for the event's own.
	first = p.known.looks && p.known.unproven(now) && p.acks.empty()
	token = p.acks.push(pendingAck{seq: seq, until: now.Add(p.options.AckTimeout), last: p.known.highest, sizes: of, mark: mark})
	if p.timer == nil {
		p.timer = time.AfterFunc(p.options.AckTimeout, p.expire)
	}
	return p.link.conn, token, p.link.replies + strconv.FormatUint(token, 36), first, nil
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
		p.batches.answered(msg)
		return
	}
	text, ours := strings.CutPrefix(msg.Subject, p.link.replies)
	token, err := strconv.ParseUint(text, 36, 64)
	if !ours || err != nil {
		return // From a former connection: the event has its outcome.
	}
	if sent, pending := p.acks.take(token); pending {
		p.results.tell(p.outcome(&sent, msg))
	}
}

// outcome returns what an answer says of the event that was sent. The caller holds
// mu.
func (p *Publisher) outcome(sent *pendingAck, msg *nats.Msg) Outcome {
	a, fault := answer.Read(msg, p.Stream())
	if fault != nil {
		return unstored(sent.seq, fault)
	}
	sequence, duplicate, fault := a.Acknowledged(p.Stream(), sent.last)
	if fault != nil {
		if _, lost := errors.AsType[*stream.LostError](fault); lost {
			p.known.lose(fault)
		}
		return unstored(sent.seq, p.limits.refusedMessage(fault, sent.sizes))
	}
	if !duplicate {
		p.known.stored(sequence)
	}
	p.denied.remove(sent.mark)
	return stored(sent.seq, sequence, duplicate)
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
		p.results.tell(unstored(oldest.seq, stream.Classify(fmt.Errorf("no acknowledgement within %v: %w", p.options.AckTimeout, nats.ErrTimeout))))
	}
}
