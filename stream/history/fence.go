package history

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/answer"
	"github.com/go-outbox/go-outbox/stream/await"
)

// HeaderTerm is a header of the messages on a control subject: the number of the
// term that began with the message. The control subject is
// _outbox.<stream>.<outbox> if the stream listens there, as a stream that the relay
// created does; in any other stream it is one of the template's (stream.Setup.ControlSubject).
const HeaderTerm = "Outbox-Term"

// A Fence is a message on a control subject: the stream refuses the ordered batches
// that earlier terms begin after it. For an outbox that has never published to the
// stream, it is the place where its first fence would stand.
type Fence struct {
	// Sequence is the sequence of the fence's message in the stream. If there is no
	// such message, it is the last sequence of the stream, 0 for none.
	Sequence uint64

	// Absent says that there is no such message: the outbox has never published to the
	// stream (FirstFence), or the stream would not keep it (Consumed).
	Absent bool

	// Subject is the outbox's control subject; empty if the stream keeps no fences.
	Subject string

	// Last is the last sequence that the stream had given when the fence stood.
	Last uint64

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

// A DeposedError says that the stream has seen a later term: another relay is the
// leader, and we are not.
type DeposedError struct {
	// Term is the highest number that the stream has seen, Ours our own.
	Term, Ours int64
}

// Error tells the terms.
func (e *DeposedError) Error() string {
	return fmt.Sprintf("the stream has seen term %d, after our term %d", e.Term, e.Ours)
}

// FirstFence is Fence for an outbox that has never published to the stream. There is
// nothing to fence off, so it stores no message. Ordered batches can begin as long as
// nobody else has put up a fence.
func (h *History) FirstFence(ctx context.Context, outbox string, term int64) (f Fence, err error) {
	ctx, done := h.connection.Ask(ctx)
	defer done(&err)
	conn, subject, err := h.control(outbox)
	if err != nil {
		return Fence{}, err
	}
	if subject == "" {
		return h.fencedAt(ctx, conn, 0, "")
	}
	last, err := h.lastFence(ctx, conn, subject)
	switch {
	case err != nil:
		return Fence{}, stream.Classify(fmt.Errorf("read the last fence: %w", err))
	case last.sequence > 0:
		return h.Fence(ctx, outbox, term)
	}
	return h.fencedAt(ctx, conn, 0, subject)
}

// control returns the connection, and the outbox's control subject: empty if
// the stream would not keep a fence.
func (h *History) control(outbox string) (conn *nats.Conn, subject string, err error) {
	if conn = h.connection.Current(); conn == nil {
		return nil, "", stream.Classify(nats.ErrInvalidConnection)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.config.Retention != jetstream.LimitsPolicy {
		return conn, "", nil
	}
	return conn, h.setup.ControlSubject(outbox, h.config), nil
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
// Its error is a *DeposedError if a later term has begun, and a *stream.Error otherwise.
// After a *stream.Error the fence may be stored or not; it does no harm if it is.
func (h *History) Fence(ctx context.Context, outbox string, term int64) (f Fence, err error) {
	ctx, done := h.connection.Ask(ctx)
	defer done(&err)
	conn, subject, err := h.control(outbox)
	if err != nil {
		return Fence{}, err
	}
	if subject == "" {
		return h.fencedAt(ctx, conn, 0, "")
	}
	for {
		last, err := h.lastFence(ctx, conn, subject)
		switch {
		case err != nil:
			return Fence{}, stream.Classify(fmt.Errorf("read the last fence: %w", err))
		case last.term > term:
			return Fence{}, &DeposedError{Term: last.term, Ours: term}
		}
		msg := nats.NewMsg(subject)
		msg.Header.Set(HeaderTerm, strconv.FormatInt(term, 10))
		// The stream refuses our fence if another one was put up since we read the last.
		msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(last.sequence, 10))
		sequence, err := publishAwaiting(ctx, conn, msg, h.setup.Stream)
		if err == nil {
			f, err := h.fencedAt(ctx, conn, sequence, subject)
			f.Former, f.Warning = last.fence, last.warning
			return f, err
		}
		fault := stream.Classify(err)
		if fault.Code != stream.CodeWrongLastSequence && fault.Code != stream.CodeSequenceInProcess {
			fault.Err = fmt.Errorf("put up a fence: %w", err)
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
				// The stream has just answered with the last fence.
				fault.Err = fmt.Errorf("put up a fence: stream %q answers questions, but nothing that is published: its disk may be, or have been, full (look for \"write error\" in the log of the NATS server), or it was created while it was still being deleted; in both cases the server takes nothing for it before a restart: %w", h.setup.Stream, err)
			}
			return Fence{}, fault
		}
		// Another relay, or an earlier attempt of ours.
		select {
		case <-ctx.Done():
			return Fence{}, stream.Classify(fmt.Errorf("put up a fence: %w: %w", context.Cause(ctx), err))
		case <-time.After(fenceRetry):
		}
	}
}

// fencedAt notes our fence, or that there is none if its sequence is 0, and reads the
// state of the stream in which it stands.
func (h *History) fencedAt(ctx context.Context, conn *nats.Conn, sequence uint64, subject string) (Fence, error) {
	info, err := h.info(ctx, conn)
	if err != nil {
		return Fence{}, err
	}
	if info.State.LastSeq < sequence {
		return Fence{}, stream.Classify(&stream.LostError{Reason: fmt.Sprintf("stream %q ends at sequence %d, although it has just acknowledged %d", h.setup.Stream, info.State.LastSeq, sequence)})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fence, h.subject = sequence, subject
	absent := sequence == 0
	if absent {
		sequence = info.State.LastSeq
	}
	gaps, consumed := removals(&info.Config)
	return Fence{
		Sequence: sequence, Absent: absent, Subject: subject, Last: info.State.LastSeq, Created: info.Created, First: info.State.FirstSeq,
		Gaps: gaps, Holes: info.State.NumDeleted > 0, Consumed: consumed,
	}, nil
}

// removals tells what a stream removes besides its oldest messages: see Fence.
func removals(c *jetstream.StreamConfig) (gaps, consumed bool) {
	return c.MaxMsgsPerSubject > 0, c.Retention != jetstream.LimitsPolicy
}

// fenceRetry is the pause after another fence came before ours.
const fenceRetry = 20 * time.Millisecond

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
func (h *History) lastFence(ctx context.Context, conn *nats.Conn, subject string) (controlled, error) {
	msg, err := h.message(ctx, conn, messageQuery{LastFor: subject})
	if err != nil || msg == nil {
		return controlled{}, err
	}
	found := controlled{sequence: msg.Sequence}
	if term, ok := termOf(msg); ok {
		found.fence, found.term = msg.Sequence, term
		return found, nil
	}
	found.warning = fmt.Sprintf("message %d of stream %q, on the relay's own subject %s, is somebody else's, without a term from 1 to %d in header %s, and was skipped: run `nats stream rmm %s %d`, and let nobody else publish there",
		msg.Sequence, h.setup.Stream, subject, int64(maxTerm), HeaderTerm, h.setup.Stream, msg.Sequence)
	h.mu.Lock()
	from := h.fence
	h.mu.Unlock()
	for next := max(from, 1); next < found.sequence; {
		msg, err := h.message(ctx, conn, messageQuery{Sequence: next, NextFor: subject})
		switch {
		case err != nil:
			return controlled{}, &stream.Error{Fault: stream.FaultSetup, Err: fmt.Errorf("%s: %w", found.warning, err)}
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

// publishAwaiting publishes one message and returns its sequence.
func publishAwaiting(ctx context.Context, conn *nats.Conn, msg *nats.Msg, ours string) (uint64, error) {
	reply, err := await.Call(ctx, func() (*nats.Msg, error) { return conn.RequestMsgWithContext(ctx, msg) })
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			err = jetstream.ErrNoStreamResponse
		}
		return 0, err
	}
	a, fault := answer.Read(reply, ours)
	if fault != nil {
		return 0, fault
	}
	sequence, _, fault := a.Acknowledged(ours, 0)
	if fault != nil {
		return 0, fault
	}
	return sequence, nil
}
