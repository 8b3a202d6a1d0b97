package stream

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// If our user may not publish to a subject, the server does not answer the message. It
// sends a violation instead, which names the subject and nothing else. So the subject
// decides what the violation is about:
//
//   - the subject of a pending event: this event is refused, and no other. In an
//     ordered batch, this event and all events after it are not stored;
//   - the subject of a request that waits for its answer: the request has failed,
//     and its error names the permission to give;
//   - the subject of acknowledgements: nothing can be published until the permission
//     is given.
//
// An event of a denied subject would end every ordered batch that it is in. So it
// goes by itself from then on, and for some time all other events do, too.

const (
	// deniedRest is how long plain publishes are sent after a violation: others
	// may follow, and each would end an ordered batch.
	deniedRest = 5 * time.Second

	// deniedMemory is how long an event of a denied subject does not go in an
	// ordered batch, and deniedMost how many subjects are remembered.
	deniedMemory = 10 * time.Minute
	deniedMost   = 50_000

	// deniedGrace is how long a batch with a missing event waits for the violation
	// that may be the reason. The server sends the violation first, but another
	// goroutine handles it.
	deniedGrace = 50 * time.Millisecond
)

// PermissionError says that our user may not do something on a subject.
type PermissionError struct {
	// Subject is what was denied.
	Subject string

	// Subscribe says that our user may not subscribe to the subject; otherwise it
	// may not publish to it.
	Subscribe bool

	cause error
}

// Error names the permission to give. The text is the same for all subjects of a
// kind, so that the log tells it once.
func (e *PermissionError) Error() string {
	verb := "publish"
	if e.Subscribe {
		verb = "subscribe"
	}
	text := fmt.Sprintf("the relay's NATS user may not %s to %s: permit it", verb, cutTo(e.Permission(), maxRefusal/4))
	if e.Subscribe {
		text += ", or set nats_inbox_prefix (ConnectOptions.InboxPrefix) to what it may subscribe to"
	}
	return text
}

// Unwrap returns the violation as nats.go tells it.
func (e *PermissionError) Unwrap() error { return e.cause }

// Permission returns the subject to permit, with wildcards where the next subject
// of its kind will be another one.
func (e *PermissionError) Permission() string {
	tokens := strings.Split(e.Subject, ".")
	if tokens[0] == controlPrefix && len(tokens) == 3 {
		return strings.Join(tokens[:2], ".") + ".*"
	}
	if e.Subscribe {
		return inboxesOf(tokens)
	}
	for i, token := range tokens {
		// $JS.API.CONSUMER.CREATE.<stream>.<consumer>[.<filter>], and others with an operation of two words.
		if token != "CONSUMER" || tokens[0] != "$JS" {
			continue
		}
		keep := i + 3
		if i+1 < len(tokens) && (tokens[i+1] == "MSG" || tokens[i+1] == "DURABLE") {
			keep++
		}
		if keep < len(tokens) {
			return strings.Join(tokens[:keep], ".") + ".>"
		}
	}
	return e.Subject
}

// inboxesOf returns the subject of all inboxes, given one: <prefix>.<unique>, perhaps
// followed by tokens that are wildcards.
func inboxesOf(tokens []string) string {
	for len(tokens) > 2 && (tokens[len(tokens)-1] == ">" || tokens[len(tokens)-1] == "*") {
		tokens = tokens[:len(tokens)-1]
	}
	return strings.Join(tokens[:max(len(tokens)-1, 1)], ".") + ".>"
}

var violationText = regexp.MustCompile(`Permissions Violation for (Publish|Subscription) to ("(?:[^"\\]|\\.)*")`)

// violation reads a server's permission violation; false if the error is none, or one
// of another kind.
func violation(err error) (*PermissionError, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return nil, false
	}
	parts := violationText.FindStringSubmatch(err.Error())
	if parts == nil {
		return nil, false
	}
	subject, unquoting := strconv.Unquote(parts[2])
	return &PermissionError{Subject: subject, Subscribe: parts[1] == "Subscription", cause: err}, unquoting == nil
}

// deniedFault is the fault of an event of a denied subject. It is not permanent: a
// person may give the permission.
func deniedFault(e *PermissionError) *Error { return &Error{Fault: FaultRow, Err: e, refused: true} }

var markSeed = maphash.MakeSeed() //nolint:gochecknoglobals // Immutable.

// subjectMark recognises a pending event by its subject.
func subjectMark[T string | []byte](subject T) uint64 {
	switch subject := any(subject).(type) {
	case string:
		return maphash.String(markSeed, subject)
	case []byte:
		return maphash.Bytes(markSeed, subject)
	}
	return 0
}

// violated finds the event or the request that a permission violation is about. on is
// the dialer of the connection that told of it.
func (p *Publisher) violated(on *dialer, denied *PermissionError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fault := &Error{Fault: FaultSetup, Err: denied}
	switch {
	case p.dialer != on: // A former one.
	case denied.Subscribe && denied.Subject == deletionSubject(p.Stream()): // We do without.
	case denied.Subscribe:
		p.noAnswers = fault
		p.requests.refuse(fault)
		p.fail(fault)
	case p.deniedEvent(denied):
	case covers(p.options.Setup.Template.Filter(), denied.Subject) && !strings.Contains(denied.Subject, tokenControl):
		// The subject of an event that has its outcome already.
	default:
		p.requests.refuse(fault) // If no request is pending, nobody waits for the answer.
	}
}

// deniedEvent refuses the pending event whose subject is denied. If several have the
// subject, it refuses the one that was sent first: each has a violation of its own. It
// reports whether there is such an event. The caller holds mu.
func (p *Publisher) deniedEvent(denied *PermissionError) bool {
	mark := subjectMark(denied.Subject)
	if sent, found := p.acks.takeMarked(mark); found {
		p.remember(mark)
		p.tell(unstored(sent.seq, deniedFault(denied)))
		return true
	}
	if p.batch == nil {
		return false
	}
	i := p.batch.marked(mark)
	if i < 0 {
		return false
	}
	p.remember(mark)
	p.batchDenied(p.batch, p.batch.known+uint64(i)+1, deniedFault(denied))
	return true
}

// marked returns the index of the first pending event with a subject; -1 for none.
func (b *batch) marked(mark uint64) int {
	for i := range b.pending {
		// The subject of the latest may not have been noted yet.
		if b.pending[i].mark == mark || b.pending[i].mark == 0 && i == len(b.pending)-1 {
			return i
		}
	}
	return -1
}

// remember keeps events of a subject out of ordered batches. The caller holds mu.
func (p *Publisher) remember(mark uint64) {
	now := time.Now()
	p.noBatches = later(p.noBatches, now.Add(deniedRest))
	if len(p.denied) >= deniedMost {
		clear(p.denied)
	}
	if p.denied == nil {
		p.denied = make(map[uint64]time.Time)
	}
	p.denied[mark] = now.Add(deniedMemory)
}

// errDenied says that an event's subject was denied to us not long ago. The event
// goes by itself, since it would end the ordered batch.
var errDenied = &Error{Fault: FaultWeather, Err: errors.New("the event's subject was denied: it does not go in an ordered batch"), refused: true}

// isDenied reports whether the latest event's subject was denied not long ago.
func (p *Publisher) isDenied() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, known := p.denied[p.encoder.mark]
	return known && time.Now().Before(until)
}

// requests are the requests that wait for an answer.
type requests struct {
	pending map[*request]struct{}
}

type request struct{ refuse context.CancelCauseFunc }

// refuse ends all requests: the violation does not tell which one it is about.
func (r *requests) refuse(fault *Error) {
	for waiting := range r.pending {
		waiting.refuse(fault)
	}
}

// ask prepares a call that sends requests to the server. A permission violation ends
// the context that ask returns; the caller calls done with its error, to which done
// adds the reason.
func (p *Publisher) ask(ctx context.Context) (asking context.Context, done func(*error)) {
	asking, refuse := context.WithCancelCause(ctx)
	waiting := &request{refuse}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests.pending == nil {
		p.requests.pending = make(map[*request]struct{})
	}
	p.requests.pending[waiting] = struct{}{}
	return asking, func(err *error) {
		p.mu.Lock()
		delete(p.requests.pending, waiting)
		p.mu.Unlock()
		if fault, denied := errors.AsType[*Error](context.Cause(asking)); denied && *err != nil && ctx.Err() == nil {
			*err = &Error{Fault: fault.Fault, Err: fmt.Errorf("stream %q: %w", p.Stream(), fault.Err), refused: true}
		} else if *err != nil {
			*err = p.explain(*err)
		}
		refuse(nil)
	}
}
