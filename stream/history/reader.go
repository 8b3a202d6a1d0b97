package history

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
)

// A Reader is a History on a connection of its own, for programs that look at the
// stream and publish nothing. Use Dial, and Close it after use.
type Reader struct {
	*History

	link *link
}

// Dial connects to NATS as stream.Connect does. The stream need not exist.
func Dial(ctx context.Context, options stream.ConnectOptions, setup stream.Setup) (*Reader, error) {
	l := &link{asking: make(map[*context.CancelCauseFunc]struct{})}
	tell := options.OnError
	options.OnError = func(err error) {
		if denied, ok := stream.AsPermissionError(err); ok {
			l.refuse(denied)
		}
		if tell != nil {
			tell(err)
		}
	}
	conn, err := stream.Connect(ctx, options)
	if err != nil {
		return nil, err
	}
	l.conn = conn
	return &Reader{New(l, setup, options), l}, nil
}

// Close closes the connection.
func (r *Reader) Close() { r.link.conn.Close() }

// link is the Connection of a Reader.
type link struct {
	conn *nats.Conn // Set once, by Dial.

	mu     sync.Mutex // Guards what follows.
	asking map[*context.CancelCauseFunc]struct{}
}

// Current returns the connection.
func (l *link) Current() *nats.Conn { return l.conn }

// Ask ends a call if the server denies a request: a violation does not tell which one.
func (l *link) Ask(ctx context.Context) (asking context.Context, done func(*error)) {
	asking, refuse := context.WithCancelCause(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asking[&refuse] = struct{}{}
	return asking, func(err *error) {
		l.mu.Lock()
		delete(l.asking, &refuse)
		l.mu.Unlock()
		if denied, ok := errors.AsType[*stream.PermissionError](context.Cause(asking)); ok && *err != nil && ctx.Err() == nil {
			*err = refusal(denied)
		}
		refuse(nil)
	}
}

func (l *link) refuse(denied *stream.PermissionError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for refuse := range l.asking {
		(*refuse)(denied)
	}
}

// An Extent says which messages the stream has, at one moment.
type Extent struct {
	// Created is when the stream was created.
	Created time.Time

	// First and Last are the first sequence that the stream still has, and the highest
	// that it has given to a message. In an empty stream, First is Last+1.
	First, Last uint64

	// Gaps and Consumed are as in a Fence.
	Gaps, Consumed bool
}

// Extent asks for the stream's extent. Its error is a *stream.Error.
func (h *History) Extent(ctx context.Context) (e Extent, err error) {
	ctx, done := h.connection.Ask(ctx)
	defer done(&err)
	conn := h.connection.Current()
	if conn == nil {
		return Extent{}, stream.Classify(nats.ErrInvalidConnection)
	}
	info, err := h.info(ctx, conn)
	if err != nil {
		return Extent{}, err
	}
	e = Extent{Created: info.Created, First: info.State.FirstSeq, Last: info.State.LastSeq}
	e.Gaps, e.Consumed = removals(&info.Config)
	return e, nil
}

// A Message is a message that Follow has read.
type Message struct {
	Found

	// Msg has the subject, the headers and, if it was asked for, the payload.
	Msg *nats.Msg
}

// Time returns when the stream stored the message; zero if that cannot be told.
func (m *Message) Time() time.Time {
	about, err := m.Msg.Metadata()
	if err != nil {
		return time.Time{}
	}
	return about.Timestamp
}

// A Stretch is the part of the stream that Follow reads.
type Stretch struct {
	// Above is the sequence after which reading begins.
	Above uint64

	// Until is the sequence at which reading ends, or at the last message before it.
	// Default: reading ends with the context only.
	Until uint64

	// Filter is a subject, perhaps with wildcards. Default: all subjects.
	Filter string

	// Data asks for payloads, too.
	Data bool
}

// followQuiet is for how long no message comes before Follow asks whether there are any
// more up to where it is to end: the last of them may have been removed.
const followQuiet = 2 * time.Second

// followTries is how often in a row Follow believes a server that says that there are more.
const followTries = 3

// Follow reads messages in the stream's order, and passes each to visit, events and
// others. If visit returns an error, Follow ends and returns it. If ctx ends, Follow
// returns its cause. Any other error is a *stream.Error: then all messages up to the
// last one that visit saw have been read, and a caller may go on from there.
func (h *History) Follow(ctx context.Context, s Stretch, visit func(*Message) error) (err error) {
	if s.Until > 0 && s.Above >= s.Until {
		return nil
	}
	asking, done := h.connection.Ask(ctx)
	defer done(&err)
	conn := h.connection.Current()
	if conn == nil {
		return stream.Classify(nats.ErrInvalidConnection)
	}
	for quiet := 0; ; {
		begun := s.Above
		err := h.follow(asking, conn, &s, visit)
		visited, isVisit := errors.AsType[*visitError](err)
		switch {
		case err == nil:
			return nil
		case isVisit:
			return visited.error
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case s.Above > begun:
			quiet = 0
		case errors.Is(err, errQuiet):
			quiet++
		}
		if errors.Is(err, errInterrupted) && s.Above > begun || errors.Is(err, errQuiet) && quiet < followTries {
			continue // There may be a better server, or nothing more to come.
		}
		return stream.Classify(h.explainScan(err))
	}
}

// errQuiet says that no message has come for a while, although one is to come.
var errQuiet = fmt.Errorf("no message has come for %v", followQuiet)

// follow is Follow through one consumer. It sets Above to the sequence of the latest
// visited message.
func (h *History) follow(ctx context.Context, conn *nats.Conn, s *Stretch, visit func(*Message) error) error {
	reading, err := h.readFrom(ctx, conn, s.Above, s.Filter, s.Data)
	if err != nil {
		return err
	}
	defer reading.stop(ctx)
	if s.Until > 0 {
		if reading.pending == 0 {
			return nil
		}
		reading.quiet = followQuiet
	}
	for {
		msg, stored, err := reading.next(ctx)
		switch {
		case err != nil:
			return err
		case s.Until > 0 && stored > s.Until:
			return nil
		}
		found := find(msg.Header)
		found.Stored = stored
		if s.Data {
			found.Size = len(msg.Data)
		}
		if err := visit(&Message{found, msg}); err != nil {
			return &visitError{err}
		}
		if s.Above = stored; stored == s.Until {
			return nil
		}
	}
}
