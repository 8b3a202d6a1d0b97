package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// A stream may be deleted, and created anew or restored from a backup, under a
// connected publisher. An event that it then stores comes before those events of its
// aggregate that the stream has lost, and nobody can put that right. Three things
// tell of it:
//
//   - While there is no stream nothing answers, or the answer is 503.
//   - The server sends an advisory that a stream was deleted (subscribeToDeletion), to
//     each user who may subscribe to it. On our connection it comes before the
//     answer to anything that the next stream stores.
//   - Without that permission, or if the stream went back to a copy of itself and
//     nobody deleted it, the first event after idleness tells.
//
// Invariant: after idleness, no event is stored before an event of its aggregate
// that the stream has lost. The exception is one event at most, if the stream was
// put back to a state with our fence and no advisory comes.
//
// Why, without the advisory:
//  1. After proveAfter without an acknowledgement or a Verify, the next event goes
//     alone (Alone), or begins an ordered batch.
//  2. It carries the fence, where the stream takes that (fenceLines). A stream
//     without our fence, such as a new one or a copy from before the term,
//     refuses the event, and with it all of its batch: nothing is stored.
//  3. Without a fence, in the first term of all, and where the stream would not
//     look for it, the relay verifies the stream first (VerifyFirst). Elsewhere that
//     would cost the event a round trip, as long as all else that the event waits
//     for.
//  4. A stream that has the fence acknowledges the event. If that stream has lost
//     something, the sequence is not above all that was acknowledged before
//     (answer.acknowledged), nothing else is sent (Publisher.lose), and the stream
//     is read back.
//
// Not covered: an event that is on its way when the stream is deleted, and arrives
// when the next stream is there.
//
// Tests: TestStreamReplacedIsTold, TestStreamReplacedWhileIdle, and
// TestStreamReplacedWhileTheRelayIsIdle in the command.

// deletionSubject is where a server tells that a stream was deleted.
func deletionSubject(stream string) string { return "$JS.EVENT.ADVISORY.STREAM.DELETED." + stream }

// subscribeToDeletion subscribes to that subject. A user who may not subscribe to it does
// without.
func (p *Publisher) subscribeToDeletion(ctx context.Context, conn *nats.Conn, on *dialer) {
	_, _ = await(ctx, func() (*nats.Subscription, error) {
		return conn.Subscribe(deletionSubject(p.Stream()), func(*nats.Msg) { p.deleted(on) })
	})
}

// deleted takes note that the stream has been deleted.
func (p *Publisher) deleted(on *dialer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dialer == on && p.lost == nil {
		p.lose(Classify(&LostError{fmt.Sprintf("stream %q was deleted", p.Stream())}))
	}
}

// proveAfter is how long after an acknowledgement or a Verify the stream counts as
// the one that is known.
const proveAfter = time.Second

// Alone reports whether the next event must go alone, so that all others wait for
// its outcome: nothing has been acknowledged for some time, and this event finds out
// whether the stream still is the one that is known. It does not concern ordered
// batches, see Pipeline.
func (p *Publisher) Alone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unproven(time.Now())
}

// VerifyFirst reports whether the stream must be verified before the next event is
// sent: it may be another one by now, and the event itself would find that out only
// by being stored.
func (p *Publisher) VerifyFirst() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unproven(time.Now()) && (!p.config.AllowBatchPublish || p.fence == 0)
}

// unproven is Alone. The caller holds mu.
func (p *Publisher) unproven(now time.Time) bool { return now.Sub(p.proved) > proveAfter }
