package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/await"
)

const (
	// verifyEvery is how often the stream is compared with what was read of it.
	verifyEvery = 5 * time.Second
	// requestTimeout bounds one request to JetStream.
	requestTimeout = 5 * time.Second
	// forgetAfter is how long the server keeps a reader's consumer after the reader has vanished.
	forgetAfter = 30 * time.Second
	// heartbeat is how often the server gives a sign of life while it has no messages. After two that are missing, reading begins
	// anew: a server that was restarted has forgotten the consumer that it is read by.
	heartbeat = time.Second
	// readAhead is how many messages are asked for at a time.
	readAhead = 500
)

// errChanged ends reading: the stream is not what it was.
var errChanged = errors.New("the stream is not the one that was read")

// message is one of the stream.
type message struct {
	place

	jetstream.Msg

	created time.Time // Of the stream.
	event   stream.Event
	damaged error  // Why it could not be decoded; nil for an event.
	key     string // Of the event's aggregate.
	stale   bool   // It is too old for the inbox to tell whether it was handled.
	settled bool   // It needs nothing more.
	done    bool   // Belongs to pending.
}

// read reads the stream from where reading ended last and passes the messages to the lanes, until something fails. Whatever
// fails, the next call goes on after the last message that was passed on.
func (t *term) read(ctx context.Context) error {
	js := t.config.JetStream
	s, err := t.stream(ctx)
	if err != nil {
		return err
	}
	if err := t.resume(ctx, s); err != nil {
		return err
	}
	at := t.readTo()
	request, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	reader, err := await.Call(request, func() (jetstream.Consumer, error) {
		return js.CreateConsumer(request, t.config.Stream, jetstream.ConsumerConfig{
			Description:       "reads for " + t.config.Name,
			DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
			OptStartSeq:       at.sequence + 1,
			AckPolicy:         jetstream.AckNonePolicy,
			FilterSubjects:    t.config.Subjects,
			InactiveThreshold: forgetAfter,
			MemoryStorage:     true,
			Replicas:          1,
		})
	})
	if err != nil {
		return fmt.Errorf("read stream %s: %w", t.config.Stream, err)
	}
	defer t.forget(ctx, reader)
	messages, err := reader.Messages(jetstream.PullMaxMessages(readAhead), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return fmt.Errorf("read stream %s: %w", t.config.Stream, err)
	}
	defer messages.Stop()
	unhook := context.AfterFunc(ctx, messages.Stop)
	defer unhook()

	changed := make(chan struct{})
	verifying, stop := context.WithCancel(ctx)
	defer stop()
	go t.verifyAtTimes(verifying, s, func() { close(changed); messages.Stop() })

	t.log.InfoContext(ctx, "consuming", slog.String("stream", t.config.Stream), slog.Uint64("after", at.sequence))
	t.become(Consuming, "")
	for delivery := uint64(1); ; delivery++ {
		msg, err := messages.Next()
		select {
		case <-changed:
			return errChanged
		default:
		}
		if err != nil {
			return fmt.Errorf("read stream %s: %w", t.config.Stream, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read stream %s: %w", t.config.Stream, err)
		}
		if meta.Sequence.Consumer != delivery {
			return fmt.Errorf("read stream %s: delivery %d came where %d was due; reading again from there", t.config.Stream, meta.Sequence.Consumer, delivery)
		}
		t.left.Store(meta.NumPending)
		if !t.pass(ctx, &message{place: place{meta.Sequence.Stream, meta.Timestamp}, Msg: msg, created: t.created}) {
			return ctx.Err()
		}
	}
}

// stream asks for the stream.
func (t *term) stream(ctx context.Context) (jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := await.Call(ctx, func() (jetstream.Stream, error) { return t.config.JetStream.Stream(ctx, t.config.Stream) })
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("stream %s does not exist yet; the first relay to lead creates it", t.config.Stream)
	}
	if err != nil {
		return nil, fmt.Errorf("look for stream %s: %w", t.config.Stream, err)
	}
	return s, nil
}

// resume finds out where to go on reading: where reading ended, unless the stream is another one, or an earlier state of it.
func (t *term) resume(ctx context.Context, s jetstream.Stream) error {
	created := s.CachedInfo().Created
	t.mu.Lock()
	first := t.created.IsZero()
	if first && t.began.stream == t.config.Stream && t.began.created.Equal(created.Truncate(time.Microsecond)) { // Postgres' precision.
		t.created, t.at = created, t.began.place
	}
	known, at := t.created, t.at
	t.mu.Unlock()

	same := known.Equal(created)
	if same {
		var err error
		if same, err = t.same(ctx, s, at); err != nil {
			return err
		}
	}
	switch {
	case !same && first && t.began.stream == "":
		t.log.InfoContext(ctx, "reading the stream from its beginning for the first time", slog.String("stream", t.config.Stream))
	case !same:
		t.log.WarnContext(ctx, "the stream was made anew, or put back to an earlier state; reading it from its beginning, and skipping what was handled",
			slog.String("stream", t.config.Stream), slog.Uint64("read_to", max(at.sequence, t.began.sequence)))
	case !first:
		return nil
	}
	if !same {
		at = place{}
	}
	t.mu.Lock()
	t.created, t.at, t.recorded = created, at, at
	t.mu.Unlock()
	t.pending.begin(at)
	return nil
}

// same reports whether the stream has the message that was read last, or could have had it: messages that were removed leave
// a gap.
func (t *term) same(ctx context.Context, s jetstream.Stream, at place) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := await.Call(ctx, func() (*jetstream.StreamInfo, error) { return s.Info(ctx) })
	if err != nil {
		return false, fmt.Errorf("look at stream %s: %w", t.config.Stream, err)
	}
	t.mu.Lock()
	created := t.created
	t.mu.Unlock()
	switch {
	case !info.Created.Equal(created), info.State.LastSeq < at.sequence:
		return false, nil
	case at.sequence == 0:
		return true, nil
	}
	msg, err := await.Call(ctx, func() (*jetstream.RawStreamMsg, error) { return s.GetMsg(ctx, at.sequence) })
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at stream %s: %w", t.config.Stream, err)
	}
	return msg.Time.Equal(at.stored), nil
}

// verifyAtTimes calls changed, and returns, once the stream is not the one that is read.
func (t *term) verifyAtTimes(ctx context.Context, s jetstream.Stream, changed func()) {
	for sleep(ctx, verifyEvery); ctx.Err() == nil; sleep(ctx, verifyEvery) {
		if same, err := t.same(ctx, s, t.readTo()); err == nil && !same && ctx.Err() == nil {
			changed()
			return
		}
	}
}

// forget removes the reader's consumer. The server would do that by itself, later.
func (t *term) forget(ctx context.Context, reader jetstream.Consumer) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	_ = await.Done(ctx, func() error { return t.config.JetStream.DeleteConsumer(ctx, t.config.Stream, reader.CachedInfo().Name) })
}

func (t *term) readTo() place {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at
}

// pass passes a message to its lane, as soon as there is room. It reports whether that was before ctx ended.
func (t *term) pass(ctx context.Context, m *message) bool {
	var err error
	m.event, err = stream.Decode(m.Headers(), m.Data())
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	t.pending.add(m)
	t.mu.Lock()
	t.at = m.place
	t.mu.Unlock()
	switch {
	case errors.Is(err, stream.ErrNoEvent): // Somebody else's, or one of the relay's own.
		t.done(m)
		return true
	case err != nil:
		m.damaged, m.key = err, m.Subject()
	default:
		m.key = aggregateKey(&m.event)
	}
	t.lane(m.key).queue <- m // There is room for all.
	return true
}
