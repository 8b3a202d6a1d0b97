package history

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream/await"
	"github.com/go-outbox/go-outbox/stream/excerpt"
)

const (
	directBatch = 1000
	directBytes = 8 << 20

	// directPause is the pause after a server had no further message. It may be a
	// follower that lags, so it is asked again.
	directPause = 50 * time.Millisecond
)

// scanDirect is Scan without a consumer, for streams that take no further consumer.
// It gets whole messages in batches (one by one before nats-server 2.11), from any
// server that has a copy of the stream. A server that lags gives fewer messages but
// leaves out none in between, and reading goes on until the fence has come.
func (h *History) scanDirect(ctx context.Context, conn *nats.Conn, above *uint64, fence uint64, filter string, visit func(Found) error) error {
	if filter == "" {
		filter = ">"
	}
	messages := make(chan *nats.Msg, directBatch+1)
	var inbox string
	sub, err := await.Call(ctx, func() (*nats.Subscription, error) {
		inbox = conn.NewInbox()
		return conn.ChanSubscribe(inbox, messages)
	})
	if err != nil {
		return err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), scanEnd)
		defer cancel()
		_ = await.Done(ending, sub.Unsubscribe)
	}()
	subject := h.connect.API() + "DIRECT.GET." + h.setup.Stream
	for {
		request, err := json.Marshal(map[string]any{"seq": *above + 1, "next_by_subj": filter, "batch": directBatch, "max_bytes": directBytes})
		if err != nil {
			return err
		}
		if err := await.Done(ctx, func() error { return conn.PublishRequest(subject, inbox, request) }); err != nil {
			return err
		}
		switch got, done, err := directAnswers(ctx, messages, above, fence, visit); {
		case err != nil || done:
			return err
		case got == 0:
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(directPause):
			}
		}
	}
}

// directAnswers takes the answers to one request, and returns how many messages
// were among them, and whether the fence was reached.
func directAnswers(ctx context.Context, messages <-chan *nats.Msg, above *uint64, fence uint64, visit func(Found) error) (got int, done bool, err error) {
	silence := time.NewTimer(scanSilence)
	defer silence.Stop()
	for {
		var msg *nats.Msg
		select {
		case msg = <-messages:
		case <-ctx.Done():
			return got, false, context.Cause(ctx)
		case <-silence.C:
			return got, false, interrupted("no answer to a direct get within %v", scanSilence)
		}
		stored, stands := number(msg.Header, "Nats-Sequence")
		if !stands {
			end, err := directEnd(msg, above)
			if end || err != nil {
				return got, false, err
			}
			continue // Its headers cannot be read: the end of the batch tells up to where it went.
		}
		got++
		switch {
		case stored >= fence:
			return got, true, nil
		case stored <= *above:
			return got, false, interrupted("message %d came after message %d", stored, *above)
		}
		found := find(msg.Header)
		found.Stored, found.Size = stored, len(msg.Data)
		if err := visit(found); err != nil {
			return got, false, &visitError{err}
		}
		*above = stored
		if msg.Header.Get("Nats-Num-Pending") == "" {
			return got, false, nil // The server does not know batches.
		}
	}
}

// directEnd reports whether an answer ends those to a request.
func directEnd(msg *nats.Msg, above *uint64) (bool, error) {
	switch status := msg.Header.Get("Status"); status {
	case "204":
		last, _ := number(msg.Header, "Nats-Last-Sequence")
		*above = max(*above, last)
		return true, nil
	case "404":
		return true, nil
	case "":
		return false, nil
	case "503":
		return true, nats.ErrNoResponders
	default:
		return true, interrupted("%s %s", excerpt.Of(status), excerpt.Of(msg.Header.Get("Description")))
	}
}

// number reads a header that is a number.
func number(header nats.Header, name string) (uint64, bool) {
	n, err := strconv.ParseUint(header.Get(name), 10, 64)
	return n, err == nil
}
