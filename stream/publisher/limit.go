package publisher

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
)

// limits are what the server, the stream and the account take. They are guarded by
// Publisher.mu.
type limits struct {
	maxPayload  int64           // The server's, headers included; 0 if it is not known.
	maxMessage  int64           // The stream's, headers included; not positive for none.
	capacity    stream.Capacity // What refusals at a limit are explained with.
	asksAccount bool            // The next Open asks what the account uses.
}

// opened notes the limits of the stream.
func (l *limits) opened(info *jetstream.StreamInfo, maxPayload int64) {
	l.capacity.Config, l.capacity.State = info.Config, info.State
	l.maxPayload, l.maxMessage = maxPayload, int64(info.Config.MaxMsgSize)
}

// largest returns the size of the largest message that can be stored now, headers
// included; 0 if it is not known.
func (l *limits) largest() int64 {
	if l.maxPayload > 0 && l.maxMessage > 0 {
		return min(l.maxPayload, l.maxMessage)
	}
	return max(l.maxPayload, 0)
}

// refused adds to a refusal at a limit the figures, and what to do.
func (l *limits) refused(fault *stream.Error) *stream.Error {
	l.asksAccount = l.asksAccount || fault.OfAccount()
	return l.capacity.Explain(fault)
}

// refusedMessage is refused for a message of these sizes.
func (l *limits) refusedMessage(fault *stream.Error, of sizes) *stream.Error {
	l.asksAccount = l.asksAccount || fault.OfAccount()
	if fault.Code == stream.CodeMessageTooLarge {
		if size := int64(of.data) + int64(of.head); l.maxMessage <= 0 || size <= l.maxMessage {
			// Somebody has lowered the limit meanwhile, perhaps below what any event has. Verify and Open will know it.
			fault.Permanent = false
		}
		fault.Err = &sizeError{data: int(of.data), head: int(of.head), limit: limitStream, most: max(l.maxMessage, 0), cause: fault.Err}
	}
	return l.capacity.Explain(fault)
}

// MaxData returns the size in bytes of the largest payload that can be stored
// now: the limit of the server or of the stream, less the smallest headers that an
// event has. It is 0 until the publisher was opened. It may be called from any
// goroutine.
//
// The size is that of the last Open, Verify or reconnect. A server does not tell its
// clients when its max_payload is lowered by a reload: it closes the connection
// of the first one that sends more, and Open makes another.
func (p *Publisher) MaxData() int {
	most := p.largest()
	if most == 0 {
		return 0
	}
	return int(max(most-stream.SmallestHeader, 1))
}

func (p *Publisher) largest() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limits.largest()
}

// reconnected notes what the server takes to which the connection was made anew.
func (p *Publisher) reconnected(conn *nats.Conn) {
	maxPayload := conn.MaxPayload()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits.maxPayload = maxPayload
}

// askAccount asks what the account uses if a refusal was about that.
func (p *Publisher) askAccount(ctx context.Context) {
	p.mu.Lock()
	conn, wanted := p.link.conn, p.limits.asksAccount
	p.limits.asksAccount = false
	p.mu.Unlock()
	if !wanted || conn == nil {
		return
	}
	js, err := p.options.Connect.JetStream(conn)
	if err != nil {
		return
	}
	use := stream.AccountUse(ctx, js)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits.capacity.Account = use
}

// explain adds to the error of a request the figures, and what to do.
func (p *Publisher) explain(err error) error {
	fault, ok := errors.AsType[*stream.Error](err)
	if !ok || fault.Code == 0 {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	whole := *fault
	whole.Err = err
	return p.limits.refused(&whole)
}
