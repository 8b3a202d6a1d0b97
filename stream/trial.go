package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// trialEnd is how long to wait until the server has forgotten the consumer that was
// made only to find out whether that works.
const trialEnd = 500 * time.Millisecond

// TryReading reads one message back as [Publisher.Find] and [Publisher.Scan] do, to
// find out whether that works. The publisher must be open. Direct reports that the
// stream is read without a consumer, since it takes no further consumer. The error
// names everything that is in the way.
func (p *Publisher) TryReading(ctx context.Context) (direct bool, err error) {
	conn := p.connection()
	if conn == nil {
		return false, Classify(nats.ErrInvalidConnection)
	}
	state, err := p.stateAsking(ctx, conn)
	if err != nil {
		return false, err
	}
	above, found, findErr := p.tryFinding(ctx, state)
	direct, scanErr := p.tryScanning(ctx, conn, above, found)
	return direct, errors.Join(findErr, scanErr)
}

// TryFinding is the half of TryReading that finds a single message, for streams that
// are not read back.
func (p *Publisher) TryFinding(ctx context.Context) error {
	_, _, err := p.tryFinding(ctx, jetstream.StreamState{})
	return err
}

// stateAsking asks for the stream's state.
func (p *Publisher) stateAsking(ctx context.Context, conn *nats.Conn) (state jetstream.StreamState, err error) {
	ctx, done := p.ask(ctx)
	defer done(&err)
	info, err := p.info(ctx, conn)
	if err != nil {
		return state, err
	}
	return info.State, nil
}

// tryFinding finds the latest message. If the stream has a message, it returns the
// sequence before one.
func (p *Publisher) tryFinding(ctx context.Context, state jetstream.StreamState) (above uint64, found bool, err error) {
	ctx, done := p.ask(ctx)
	defer done(&err)
	latest, err := p.Find(ctx, max(state.LastSeq, 1))
	switch {
	case state.Msgs == 0:
		return state.LastSeq, false, err
	case latest.Stored == 0: // It was removed. The first one is there.
		return state.FirstSeq - 1, true, err
	}
	return latest.Stored - 1, true, err
}

// tryScanning reads one message, or has the server say that there is none.
func (p *Publisher) tryScanning(ctx context.Context, conn *nats.Conn, above uint64, found bool) (direct bool, err error) {
	ctx, done := p.ask(ctx)
	defer done(&err)
	err = p.tryConsumer(ctx, conn, above)
	if direct = p.readsDirectly(err); direct {
		if found {
			err = p.scanDirect(ctx, conn, &above, above+1, "", func(Found) error { return nil })
		} else {
			err = p.tryDirect(ctx, conn)
		}
	}
	if err == nil {
		return direct, nil
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
		err = cause
	}
	return direct, Classify(p.explainScan(err))
}

// tryConsumer waits for what a consumer of its own is sent first.
func (p *Publisher) tryConsumer(ctx context.Context, conn *nats.Conn, above uint64) error {
	reading, err := p.readBackFrom(ctx, conn, above, "")
	if err != nil {
		return err
	}
	defer func() {
		reading.stop(ctx)
		// Whoever only tries is likely to close the connection next.
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), trialEnd)
		defer cancel()
		_ = awaitErr(ending, func() error { return conn.FlushWithContext(ending) })
	}()
	if err := reading.pull(ctx); err != nil {
		return err
	}
	msg, err := reading.receive(ctx)
	if err != nil || msg.Reply != "" {
		return err
	}
	return reading.told(msg)
}

// tryDirect asks an empty stream for a message.
func (p *Publisher) tryDirect(ctx context.Context, conn *nats.Conn) error {
	answer, err := await(ctx, func() (*nats.Msg, error) {
		return conn.RequestWithContext(ctx, p.options.Connect.API()+"DIRECT.GET."+p.Stream(), []byte(`{"seq":1,"next_by_subj":">"}`))
	})
	if err != nil {
		return err
	}
	if status := answer.Header.Get("Status"); status != "" && status != "404" {
		return fmt.Errorf("direct get: %s %s", cut(status), cut(answer.Header.Get("Description")))
	}
	return nil
}
