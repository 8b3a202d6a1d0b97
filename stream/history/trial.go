package history

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/await"
	"github.com/go-outbox/go-outbox/stream/excerpt"
)

// trialEnd is how long to wait until the server has forgotten the consumer that was
// made only to find out whether that works.
const trialEnd = 500 * time.Millisecond

// TryReading reads one message back as [History.Find] and [History.Scan] do, to
// find out whether that works. The connection must be there. Direct reports that the
// stream is read without a consumer, since it takes no further consumer. The error
// names everything that is in the way.
func (h *History) TryReading(ctx context.Context) (direct bool, err error) {
	conn := h.connection.Current()
	if conn == nil {
		return false, stream.Classify(nats.ErrInvalidConnection)
	}
	state, err := h.stateAsking(ctx, conn)
	if err != nil {
		return false, err
	}
	above, found, findErr := h.tryFinding(ctx, state)
	direct, scanErr := h.tryScanning(ctx, conn, above, found)
	return direct, errors.Join(findErr, scanErr)
}

// TryFinding is the half of TryReading that finds a single message, for streams that
// are not read back.
func (h *History) TryFinding(ctx context.Context) error {
	_, _, err := h.tryFinding(ctx, jetstream.StreamState{})
	return err
}

// stateAsking asks for the stream's state.
func (h *History) stateAsking(ctx context.Context, conn *nats.Conn) (state jetstream.StreamState, err error) {
	ctx, done := h.connection.Ask(ctx)
	defer done(&err)
	info, err := h.info(ctx, conn)
	if err != nil {
		return state, err
	}
	return info.State, nil
}

// tryFinding finds the latest message. If the stream has a message, it returns the
// sequence before one.
func (h *History) tryFinding(ctx context.Context, state jetstream.StreamState) (above uint64, found bool, err error) {
	ctx, done := h.connection.Ask(ctx)
	defer done(&err)
	latest, err := h.Find(ctx, max(state.LastSeq, 1))
	switch {
	case state.Msgs == 0:
		return state.LastSeq, false, err
	case latest.Stored == 0: // It was removed. The first one is there.
		return state.FirstSeq - 1, true, err
	}
	return latest.Stored - 1, true, err
}

// tryScanning reads one message, or has the server say that there is none.
func (h *History) tryScanning(ctx context.Context, conn *nats.Conn, above uint64, found bool) (direct bool, err error) {
	ctx, done := h.connection.Ask(ctx)
	defer done(&err)
	err = h.tryConsumer(ctx, conn, above)
	if direct = h.readsDirectly(err); direct {
		if found {
			err = h.scanDirect(ctx, conn, &above, above+1, "", func(Found) error { return nil })
		} else {
			err = h.tryDirect(ctx, conn)
		}
	}
	if err == nil {
		return direct, nil
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
		err = cause
	}
	return direct, stream.Classify(h.explainScan(err))
}

// tryConsumer waits for what a consumer of its own is sent first.
func (h *History) tryConsumer(ctx context.Context, conn *nats.Conn, above uint64) error {
	reading, err := h.readBackFrom(ctx, conn, above, "")
	if err != nil {
		return err
	}
	defer func() {
		reading.stop(ctx)
		// Whoever only tries is likely to close the connection next.
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), trialEnd)
		defer cancel()
		_ = await.Done(ending, func() error { return conn.FlushWithContext(ending) })
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
func (h *History) tryDirect(ctx context.Context, conn *nats.Conn) error {
	answer, err := await.Call(ctx, func() (*nats.Msg, error) {
		return conn.RequestWithContext(ctx, h.connect.API()+"DIRECT.GET."+h.setup.Stream, []byte(`{"seq":1,"next_by_subj":">"}`))
	})
	if err != nil {
		return err
	}
	if status := answer.Header.Get("Status"); status != "" && status != "404" {
		return fmt.Errorf("direct get: %s %s", excerpt.Of(status), excerpt.Of(answer.Header.Get("Description")))
	}
	return nil
}
