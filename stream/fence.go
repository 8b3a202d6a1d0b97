package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// HeaderTerm is a header of the messages on a control subject: the number of the
// term that began with the message. The control subject is
// _outbox.<stream>.<outbox> if the stream listens there, as a stream that the relay
// created does; in any other stream it is one of the template's (ControlSubject).
const HeaderTerm = "Outbox-Term"

// A Fence is a message on a control subject: the stream refuses the ordered batches
// that earlier terms begin after it. For an outbox that has never published to the
// stream, it is the place where its first fence would stand.
type Fence struct {
	// Sequence is the sequence of the fence's message in the stream. If there is no
	// such message, it is the last sequence of the stream, 0 for none.
	Sequence uint64

	// Created is when the stream was created.
	Created time.Time

	// Former is the sequence of the outbox's fence before this one; 0 for none.
	Former uint64

	// First is the first sequence that the stream still had then: earlier messages
	// were purged, or removed by the stream's limits.
	First uint64

	// Gaps says that the stream may remove a message between others when a newer
	// one of its subject comes. So a missing message need not be a lost one.
	Gaps bool

	// Holes says that messages are missing between others: somebody removed them,
	// or a limit as in Gaps did that was lifted since.
	Holes bool

	// Warning tells of a message on the control subject that is not the relay's and
	// was skipped; empty for none.
	Warning string

	// Consumed says that messages vanish when they are consumed (work-queue and
	// interest retention). Then there can be no fence, and nothing to be read back:
	// only the stream's duplicate window recognises duplicates.
	Consumed bool
}

// DeposedError says that the stream has seen a later term: another relay is the
// leader, and we are not.
type DeposedError struct {
	// Term is the highest number that the stream has seen, Ours our own.
	Term, Ours int64
}

// Error tells the terms.
func (e *DeposedError) Error() string {
	return fmt.Sprintf("the stream has seen term %d, after our term %d", e.Term, e.Ours)
}

// Unfenced is Fence for an outbox that has never published to the stream. There is
// nothing to fence off, so it stores no message. Ordered batches can begin as long as
// nobody else has put up a fence.
func (p *Publisher) Unfenced(ctx context.Context, outbox string, term int64) (f Fence, err error) {
	ctx, done := p.ask(ctx)
	defer done(&err)
	conn, subject := p.control(outbox)
	if conn == nil {
		return Fence{}, Classify(nats.ErrInvalidConnection)
	}
	if subject == "" {
		return p.fencedAt(ctx, conn, 0, "")
	}
	last, err := p.lastFence(ctx, conn, subject)
	switch {
	case err != nil:
		return Fence{}, Classify(fmt.Errorf("read the last fence: %w", err))
	case last.sequence > 0:
		return p.Fence(ctx, outbox, term)
	}
	return p.fencedAt(ctx, conn, 0, subject)
}

// control returns the connection, and the outbox's control subject: empty if
// the stream would not keep a fence.
func (p *Publisher) control(outbox string) (*nats.Conn, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.config.Retention != jetstream.LimitsPolicy {
		return p.conn, ""
	}
	return p.conn, p.options.Setup.ControlSubject(outbox, p.config)
}

// Fence stores a message that says that a term has begun, or goes on after an event
// in doubt. An ordered batch that was sent before the fence and has not begun in the
// stream by then is refused. From now on, an ordered batch begins only if no other
// fence has come since ours.
//
// Term numbers rise, and each term may put up any number of fences. The outbox's
// name must be a token of a subject, such as a UUID, and unique in the stream: two
// outboxes of one name would fence each other off in turn.
//
// Its error is a *DeposedError if a later term has begun, and an *Error otherwise.
// After an *Error the fence may be stored or not; it does no harm if it is.
func (p *Publisher) Fence(ctx context.Context, outbox string, term int64) (f Fence, err error) {
	ctx, done := p.ask(ctx)
	defer done(&err)
	conn, subject := p.control(outbox)
	if conn == nil {
		return Fence{}, Classify(nats.ErrInvalidConnection)
	}
	if subject == "" {
		return p.fencedAt(ctx, conn, 0, "")
	}
	for {
		last, err := p.lastFence(ctx, conn, subject)
		switch {
		case err != nil:
			return Fence{}, Classify(fmt.Errorf("read the last fence: %w", err))
		case last.term > term:
			return Fence{}, &DeposedError{Term: last.term, Ours: term}
		}
		msg := nats.NewMsg(subject)
		msg.Header.Set(HeaderTerm, strconv.FormatInt(term, 10))
		// The stream refuses our fence if another one was put up since we read the last.
		msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(last.sequence, 10))
		sequence, err := publishAwaiting(ctx, conn, msg, p.Stream())
		if err == nil {
			f, err := p.fencedAt(ctx, conn, sequence, subject)
			f.Former, f.Warning = last.fence, last.warning
			return f, err
		}
		fault := Classify(err)
		if fault.Code != CodeWrongLastSequence && fault.Code != CodeSequenceInProcess {
			fault.Err = fmt.Errorf("put up a fence: %w", err)
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
				// The stream has just answered with the last fence.
				fault.Err = fmt.Errorf("put up a fence: stream %q answers questions, but nothing that is published: its disk may be, or have been, full (look for \"write error\" in the log of the NATS server), or it was created while it was still being deleted; in both cases the server takes nothing for it before a restart: %w", p.Stream(), err)
			}
			return Fence{}, fault
		}
		// Another relay, or an earlier attempt of ours.
		select {
		case <-ctx.Done():
			return Fence{}, Classify(fmt.Errorf("put up a fence: %w: %w", context.Cause(ctx), err))
		case <-time.After(fenceRetry):
		}
	}
}

// fencedAt notes our fence, or that there is none if its sequence is 0, and reads the
// state of the stream in which it stands.
func (p *Publisher) fencedAt(ctx context.Context, conn *nats.Conn, sequence uint64, subject string) (Fence, error) {
	info, err := p.info(ctx, conn)
	if err != nil {
		return Fence{}, err
	}
	if info.State.LastSeq < sequence {
		return Fence{}, Classify(&LostError{fmt.Sprintf("stream %q ends at sequence %d, although it has just acknowledged %d", p.Stream(), info.State.LastSeq, sequence)})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fence, p.fenceSubject = sequence, subject
	p.highest, p.lost, p.proved = info.State.LastSeq, nil, time.Now()
	if sequence == 0 {
		sequence = info.State.LastSeq
	}
	return Fence{
		Sequence: sequence, Created: info.Created, First: info.State.FirstSeq,
		Gaps: info.Config.MaxMsgsPerSubject > 0, Holes: info.State.NumDeleted > 0, Consumed: info.Config.Retention != jetstream.LimitsPolicy,
	}, nil
}

// fenceRetry is the pause after another fence came before ours.
const fenceRetry = 20 * time.Millisecond

// codeNoMessage answers a request for a message that is not there.
const codeNoMessage = 10037

// controlled is what a control subject holds.
type controlled struct {
	sequence uint64 // The sequence of its last message, whoever wrote it; 0 for none.
	fence    uint64 // The sequence of its last fence; 0 for none.
	term     int64  // The highest term of its fences.
	warning  string // Tells of somebody else's message; empty for none.
}

// maxTerm is the highest number of a term that is believed. A relay that began
// one each millisecond would reach it after 30,000 years.
const maxTerm = 1_000_000_000_000_000

// lastFence returns what the control subject holds. Mostly its last message is
// the last fence. If the last message is not the relay's, the fences before it
// count; it reads those from our own latest fence on.
func (p *Publisher) lastFence(ctx context.Context, conn *nats.Conn, subject string) (controlled, error) {
	msg, err := p.message(ctx, conn, messageQuery{LastFor: subject})
	if err != nil || msg == nil {
		return controlled{}, err
	}
	found := controlled{sequence: msg.Sequence}
	if term, ok := termOf(msg); ok {
		found.fence, found.term = msg.Sequence, term
		return found, nil
	}
	found.warning = fmt.Sprintf("message %d of stream %q, on the relay's own subject %s, is somebody else's, without a term from 1 to %d in header %s, and was skipped: run `nats stream rmm %s %d`, and let nobody else publish there",
		msg.Sequence, p.Stream(), subject, int64(maxTerm), HeaderTerm, p.Stream(), msg.Sequence)
	p.mu.Lock()
	from := p.fence
	p.mu.Unlock()
	for next := max(from, 1); next < found.sequence; {
		msg, err := p.message(ctx, conn, messageQuery{Sequence: next, NextFor: subject})
		switch {
		case err != nil:
			return controlled{}, &Error{Fault: FaultSetup, Err: fmt.Errorf("%s: %w", found.warning, err)}
		case msg == nil || msg.Sequence >= found.sequence:
			return found, nil
		}
		term, ok := termOf(msg)
		if next == from && (!ok || msg.Sequence != from) {
			from, next = 0, 1 // The stream is not the one in which our fence stood.
			continue
		}
		if ok {
			found.fence, found.term = msg.Sequence, max(found.term, term)
		}
		next = msg.Sequence + 1
	}
	return found, nil
}

// termOf returns the term that a message says has begun; false if it is no fence.
func termOf(msg *storedMessage) (int64, bool) {
	header, err := nats.DecodeHeadersMsg(msg.Header)
	if err != nil {
		return 0, false
	}
	term, err := strconv.ParseInt(header.Get(HeaderTerm), 10, 64)
	return term, err == nil && term >= 1 && term <= maxTerm
}

// messageQuery names a message of the stream: one at a sequence, the first on a
// subject from there on, or the last one on a subject.
type messageQuery struct {
	Sequence uint64 `json:"seq,omitempty"`
	NextFor  string `json:"next_by_subj,omitempty"`
	LastFor  string `json:"last_by_subj,omitempty"`
}

// storedMessage is the part of a stored message that is of use here.
type storedMessage struct {
	Subject  string    `json:"subject"`
	Sequence uint64    `json:"seq"`
	Header   []byte    `json:"hdrs"`
	Time     time.Time `json:"time"`
}

// message asks the stream's leader for a message; nil if there is none. A direct get
// would be cheaper, but a server that lags may answer it.
func (p *Publisher) message(ctx context.Context, conn *nats.Conn, query messageQuery) (*storedMessage, error) {
	request, err := json.Marshal(query)
	if err != nil {
		return nil, err
	}
	msg, err := await(ctx, func() (*nats.Msg, error) {
		return conn.RequestWithContext(ctx, p.options.Connect.API()+"STREAM.MSG.GET."+p.Stream(), request)
	})
	if err != nil {
		return nil, err
	}
	return query.answered(msg.Data)
}

// answered reads the answer to a query; nil if there is no such message. An answer
// with another message is malformed.
func (q messageQuery) answered(data []byte) (*storedMessage, error) {
	var answer struct {
		Message *storedMessage      `json:"message"`
		Error   *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(data, &answer); {
	case err != nil:
		return nil, malformed(cut(err.Error()))
	case answer.Error != nil && answer.Error.ErrorCode == codeNoMessage:
		return nil, nil
	case answer.Error != nil:
		return nil, answer.Error
	}
	m := answer.Message
	switch {
	case m == nil:
		return nil, malformed("neither a message nor an error")
	case m.Sequence == 0,
		q.LastFor != "" && m.Subject != q.LastFor,
		q.NextFor != "" && (m.Subject != q.NextFor || m.Sequence < q.Sequence),
		q.LastFor == "" && q.NextFor == "" && m.Sequence != q.Sequence:
		return nil, malformed("it has another message than was asked for")
	}
	return m, nil
}

// publishAwaiting publishes one message and returns its sequence.
func publishAwaiting(ctx context.Context, conn *nats.Conn, msg *nats.Msg, stream string) (uint64, error) {
	answer, err := await(ctx, func() (*nats.Msg, error) { return conn.RequestMsgWithContext(ctx, msg) })
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			err = jetstream.ErrNoStreamResponse
		}
		return 0, err
	}
	a, fault := readAnswer(answer, stream)
	if fault != nil {
		return 0, fault
	}
	sequence, _, fault := a.acknowledged(stream, 0)
	if fault != nil {
		return 0, fault
	}
	return sequence, nil
}

// fenceLines returns the headers that the first message of an ordered batch has
// beside the event's own. With them, the message and so the whole batch is refused by
// another stream, and if our fence is not the latest one or is gone. The server checks
// for a duplicate before it checks these headers.
func (p *Publisher) fenceLines() []headerLine {
	p.mu.Lock()
	defer p.mu.Unlock()
	lines := []headerLine{{jetstream.ExpectedStreamHeader, p.Stream()}}
	if p.fenceSubject == "" {
		return lines
	}
	return append(lines, []headerLine{
		{jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(p.fence, 10)},
		{jetstream.ExpectedLastSubjSeqSubjHeader, p.fenceSubject},
	}...)
}

// linesSize is the size of further lines in a header block.
func linesSize(lines []headerLine) int {
	size := 0
	for _, line := range lines {
		size += len(line.name) + len(": ") + len(line.value) + len("\r\n")
	}
	return size
}

// tooLargeWith reports whether a message of this size fits without the further lines,
// and does not fit with them.
func tooLargeWith(lines []headerLine, size int, most int64) bool {
	return int64(size) <= most && int64(size+linesSize(lines)) > most
}

// fenced returns a message with further headers.
func fenced(msg *nats.Msg, lines []headerLine) *nats.Msg {
	first := *msg
	first.Header = make(nats.Header, len(msg.Header)+len(lines)) // The encoder reuses its map.
	maps.Copy(first.Header, msg.Header)
	for _, line := range lines {
		first.Header[line.name] = []string{line.value}
	}
	return &first
}
