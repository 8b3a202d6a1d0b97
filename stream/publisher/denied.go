package publisher

import (
	"errors"
	"hash/maphash"
	"time"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/wire"
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

// deniedFault is the fault of an event of a denied subject. It is not permanent: a
// person may give the permission.
func deniedFault(e *stream.PermissionError) *stream.Error {
	return &stream.Error{Fault: stream.FaultRow, Err: e, Refused: true}
}

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

// errDenied says that an event's subject was denied to us not long ago. The event
// goes by itself, since it would end the ordered batch.
var errDenied = &stream.Error{Fault: stream.FaultWeather, Err: errors.New("the event's subject was denied: it does not go in an ordered batch"), Refused: true}

// denials are the subjects that were denied to us not long ago, with the time until
// when their events do not go in ordered batches. They are guarded by Publisher.mu.
type denials struct{ until map[uint64]time.Time }

// add keeps events of a subject out of ordered batches.
func (d *denials) add(mark uint64) {
	if len(d.until) >= deniedMost {
		clear(d.until)
	}
	if d.until == nil {
		d.until = make(map[uint64]time.Time)
	}
	d.until[mark] = time.Now().Add(deniedMemory)
}

// remove forgets a subject: an event of it was stored, so a person has given the permission.
func (d *denials) remove(mark uint64) {
	if len(d.until) > 0 {
		delete(d.until, mark)
	}
}

// has reports whether a subject was denied not long ago.
func (d *denials) has(mark uint64) bool {
	until, known := d.until[mark]
	return known && time.Now().Before(until)
}

// any reports whether any subject was denied.
func (d *denials) any() bool { return len(d.until) > 0 }

// isDenied reports whether the latest event's subject was denied not long ago.
func (p *Publisher) isDenied() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.denied.has(p.latest.mark)
}

// violated finds the event or the request that a permission violation is about. on is
// the dialer of the connection that told of it.
func (p *Publisher) violated(on *wire.Dialer, denied *stream.PermissionError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fault := &stream.Error{Fault: stream.FaultSetup, Err: denied}
	switch ofEvent, _ := p.options.Setup.Template.Match(denied.Subject); {
	case p.link.dialer != on: // A former one.
	case denied.Subscribe && denied.Subject == deletionSubject(p.Stream()): // We do without.
	case denied.Subscribe:
		p.requests.deaf(fault)
		p.fail(fault)
	case p.deniedEvent(denied):
	case ofEvent:
		// The subject of an event that has its outcome already.
	default:
		p.requests.refuse(fault) // If no request is pending, nobody waits for the answer.
	}
}

// deniedEvent refuses the pending event whose subject is denied. If several have the
// subject, it refuses the one that was sent first: each has a violation of its own. It
// reports whether there is such an event. The caller holds mu.
func (p *Publisher) deniedEvent(denied *stream.PermissionError) bool {
	mark := subjectMark(denied.Subject)
	if sent, found := p.acks.takeMarked(mark); found {
		p.denied.add(mark)
		p.batches.pause(deniedRest)
		p.results.tell(unstored(sent.seq, deniedFault(denied)))
		return true
	}
	b := p.batches.open
	if b == nil {
		return false
	}
	i := b.marked(mark)
	if i < 0 {
		return false
	}
	p.denied.add(mark)
	p.batches.pause(deniedRest)
	p.batches.denied(b, b.known+uint64(i)+1, deniedFault(denied))
	return true
}
