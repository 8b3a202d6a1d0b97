package history

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/await"
)

// A State is what the stream was like at one moment: see History.Verify.
type State struct {
	// Created is when the stream was created.
	Created time.Time

	// Last is the highest sequence that the stream has given to a message.
	Last uint64

	// MaxMessage is the size in bytes of the largest message that the stream takes, headers
	// included; not positive for no limit.
	MaxMessage int64

	leader   string
	identity string // Identifies the message at Last; empty if there was none.
}

// Verify compares the stream with its previous state, to find out whether the
// broker has lost data: a crash may lose what was acknowledged and not yet on the
// disk, and somebody may restore files from a backup. Acked is a sequence that the
// stream has acknowledged. With the zero State only that is compared.
//
// Its error is a *stream.LostError if the stream must be read back, and a *stream.Error if the
// stream's state could not be read. If somebody has changed the stream so that it cannot be used,
// there is a *stream.UnfitError in the chain of the latter.
func (h *History) Verify(ctx context.Context, previous State, acked uint64) (state State, err error) {
	ctx, done := h.connection.Ask(ctx)
	defer done(&err)
	conn := h.connection.Current()
	if conn == nil {
		return State{}, stream.Classify(nats.ErrInvalidConnection)
	}
	info, err := h.info(ctx, conn)
	if err != nil {
		return State{}, err
	}
	state = State{Created: info.Created, Last: info.State.LastSeq, MaxMessage: int64(info.Config.MaxMsgSize)}
	if info.Cluster != nil {
		state.leader = info.Cluster.Leader
	}
	lost := func(format string, args ...any) (State, error) {
		return state, &stream.LostError{Reason: fmt.Sprintf("stream %q ", h.setup.Stream) + fmt.Sprintf(format, args...)}
	}
	switch {
	case previous.Created.IsZero():
	case !previous.Created.Equal(state.Created):
		return lost("was created anew at %v", state.Created.Format(time.RFC3339Nano))
	case state.Last < previous.Last:
		return lost("ends at sequence %d and not at %d any more", state.Last, previous.Last)
	case previous.leader != state.leader:
		return lost("has another leader, %q instead of %q", state.leader, previous.leader)
	case previous.identity != "" && previous.Last >= info.State.FirstSeq:
		identity, err := h.identity(ctx, conn, previous.Last)
		switch {
		case err != nil:
			return State{}, err
		case identity == "":
			// A person or a limit removed it. FirstSeq tells of limits, but it may have moved on since we read it.
		case identity != previous.identity:
			return lost("has another message at sequence %d than before", previous.Last)
		}
	}
	if state.Last < acked {
		return lost("ends at sequence %d, although it acknowledged %d", state.Last, acked)
	}
	if state.identity, err = h.identity(ctx, conn, state.Last); err != nil {
		return State{}, err
	}
	return state, h.setup.Check(info.Config)
}

// info asks for the stream's state. Its error is a *stream.Error.
func (h *History) info(ctx context.Context, conn *nats.Conn) (*jetstream.StreamInfo, error) {
	info, err := await.Call(ctx, func() (*jetstream.StreamInfo, error) {
		js, err := h.connect.JetStream(conn)
		if err != nil {
			return nil, err
		}
		str, err := js.Stream(ctx, h.setup.Stream)
		if err != nil {
			return nil, err
		}
		return str.CachedInfo(), nil
	})
	if err != nil {
		return nil, stream.Classify(fmt.Errorf("read the state of stream %q: %w", h.setup.Stream, err))
	}
	return info, nil
}

// identity identifies the message at a sequence; empty if there is none.
func (h *History) identity(ctx context.Context, conn *nats.Conn, sequence uint64) (string, error) {
	if sequence == 0 {
		return "", nil
	}
	msg, err := h.message(ctx, conn, messageQuery{Sequence: sequence})
	if err != nil {
		return "", stream.Classify(fmt.Errorf("read message %d of stream %q: %w", sequence, h.setup.Stream, err))
	}
	if msg == nil {
		return "", nil
	}
	return msg.Subject + " " + msg.Time.Format(time.RFC3339Nano), nil
}
