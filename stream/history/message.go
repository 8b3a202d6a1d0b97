package history

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/await"
	"github.com/go-outbox/go-outbox/stream/excerpt"
)

// codeNoMessage answers a request for a message that is not there.
const codeNoMessage = 10037

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
func (h *History) message(ctx context.Context, conn *nats.Conn, query messageQuery) (*storedMessage, error) {
	request, err := json.Marshal(query)
	if err != nil {
		return nil, err
	}
	msg, err := await.Call(ctx, func() (*nats.Msg, error) {
		return conn.RequestWithContext(ctx, h.connect.API()+"STREAM.MSG.GET."+h.setup.Stream, request)
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
		return nil, stream.Malformed(excerpt.Of(err.Error()))
	case answer.Error != nil && answer.Error.ErrorCode == codeNoMessage:
		return nil, nil
	case answer.Error != nil:
		return nil, answer.Error
	}
	m := answer.Message
	switch {
	case m == nil:
		return nil, stream.Malformed("neither a message nor an error")
	case m.Sequence == 0,
		q.LastFor != "" && m.Subject != q.LastFor,
		q.NextFor != "" && (m.Subject != q.NextFor || m.Sequence < q.Sequence),
		q.LastFor == "" && q.NextFor == "" && m.Sequence != q.Sequence:
		return nil, stream.Malformed("it has another message than was asked for")
	}
	return m, nil
}
