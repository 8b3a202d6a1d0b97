package stream

import "time"

// A stream cannot be replaced by another one, or by an older copy of itself,
// without some time in which nothing answers. Who publishes all the while is told
// by that; who has been idle is not.
//
// Invariant: after idleness, no event is stored before an event of its aggregate
// that the stream has lost, but one at most.
//
// Why:
//  1. After proveAfter without an acknowledgement, the next event goes alone
//     (Alone), or begins an ordered batch.
//  2. It carries the fence, where the stream takes that (fenceLines). A stream
//     without our fence, such as a new one or a copy from before the term,
//     refuses it, and with it all of the batch: nothing is stored.
//  3. A stream that has the fence, or does not look for it, acknowledges it. If
//     that stream has lost something, the sequence is not above all that was
//     acknowledged before (answer.acknowledged), nothing else is sent
//     (Publisher.lose), and the stream is read back.
//
// Asking the stream before each such event would cost it a round trip, which is
// as long as all else that an event waits for.
//
// Test: TestStreamReplacedWhileIdle.

// proveAfter is how long after an acknowledgement the stream counts as the one
// that is known.
const proveAfter = time.Second

// Alone reports whether the next event is to go alone, that is, whether others
// have to wait for its outcome: nothing has been acknowledged for some time, and
// it finds out whether the stream still is the one that is known. It does not
// concern ordered batches, see Pipeline.
func (p *Publisher) Alone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unproven(time.Now())
}

// unproven is Alone. The caller holds mu.
func (p *Publisher) unproven(now time.Time) bool { return now.Sub(p.proved) > proveAfter }
