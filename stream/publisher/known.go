package publisher

import (
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
)

// A stream may be deleted, and created anew or restored from a backup, under a
// connected publisher. An event that it then stores comes before those events of its
// aggregate that the stream has lost, and nobody can put that right. Three things
// tell of it:
//
//   - While there is no stream nothing answers, or the answer is 503.
//   - The server sends an advisory that a stream was deleted (deletionSubject), to
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
//  2. It carries the fence, where the stream takes that (known.lines). A stream
//     without our fence, such as a new one or a copy from before the term,
//     refuses the event, and with it all of its batch: nothing is stored.
//  3. Without a fence, in the first term of all, and where the stream would not
//     look for it, the relay verifies the stream first (VerifyFirst). Elsewhere that
//     would cost the event a round trip, as long as all else that the event waits
//     for.
//  4. A stream that has the fence acknowledges the event. If that stream has lost
//     something, the sequence is not above all that was acknowledged before
//     (answer.Answer.Acknowledged), nothing else is sent (known.lose), and the stream
//     is read back.
//
// Not covered: an event that is on its way when the stream is deleted, and arrives
// when the next stream is there.
//
// Tests: TestStreamReplacedIsTold, TestStreamReplacedWhileIdle, and
// TestStreamReplacedWhileTheRelayIsIdle in the command.

// known is what we know of the stream, and since when. It is guarded by Publisher.mu.
type known struct {
	stream  string // Its name.
	results *results

	looks   bool          // The stream looks for the fence in the first message of an ordered batch.
	highest uint64        // The highest sequence that it is known to have given.
	lost    *stream.Error // Why it must be read back first: it is not the one that was known. Nil if it is.
	proved  time.Time     // When it last was the one that was known.
	fence   uint64        // The sequence of our fence; 0 if there is no fence.
	subject string        // The fence's subject; empty before Begin, and if the stream keeps no fences.
}

// opened notes that the stream is as Open has found it. After trouble, the caller reads
// back what the stream has lost. From here on, later sequences must be above this one.
func (k *known) opened(info *jetstream.StreamInfo) {
	k.looks = info.Config.AllowBatchPublish
	k.highest, k.lost, k.proved = info.State.LastSeq, nil, time.Now()
}

// fenced notes our fence.
func (k *known) fenced(f history.Fence) {
	k.fence, k.subject = f.Sequence, f.Subject
	if f.Absent {
		k.fence = 0
	}
	k.highest, k.lost, k.proved = f.Last, nil, time.Now()
}

// verified notes that the stream was found to be the one that was known.
func (k *known) verified(last uint64) { k.highest, k.proved = max(k.highest, last), time.Now() }

// stored notes that the stream has stored a message at a sequence.
func (k *known) stored(sequence uint64) { k.highest, k.proved = max(k.highest, sequence), time.Now() }

// lose notes that the stream is not the one that was known. Nothing is published
// until the stream is opened or fenced again.
func (k *known) lose(fault *stream.Error) {
	k.lost = fault
	k.results.troubled(fault)
}

// withheld says why no event may be sent: the stream must be read back first. It is nil
// if events may be sent.
func (k *known) withheld() error {
	if k.lost == nil {
		return nil
	}
	return &stream.Error{Fault: k.lost.Fault, Err: fmt.Errorf("not published: %w", k.lost.Err), Refused: true}
}

// forget ends the term.
func (k *known) forget() {
	k.fence, k.subject = 0, ""
	k.highest, k.lost, k.proved = 0, nil, time.Time{}
}

// deletionSubject is where a server tells that a stream was deleted. A user who may not
// subscribe to it does without.
func deletionSubject(name string) string { return "$JS.EVENT.ADVISORY.STREAM.DELETED." + name }

// proveAfter is how long after an acknowledgement or a Verify the stream counts as
// the one that is known.
const proveAfter = time.Second

// unproven reports whether nothing has been acknowledged for some time.
func (k *known) unproven(now time.Time) bool { return now.Sub(k.proved) > proveAfter }

// Alone reports whether the next event must go alone, so that all others wait for
// its outcome: nothing has been acknowledged for some time, and this event finds out
// whether the stream still is the one that is known. It does not concern ordered
// batches, see BatchWindow.
func (s *Session) Alone() bool {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known.unproven(time.Now())
}

// VerifyFirst reports whether the stream must be verified before the next event is
// sent: it may be another one by now, and the event itself would find that out only
// by being stored.
func (s *Session) VerifyFirst() bool {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known.unproven(time.Now()) && (!p.known.looks || p.known.fence == 0)
}

// headerLine is a line of a header block.
type headerLine struct{ name, value string }

// lines returns the headers that the first message of an ordered batch has
// beside the event's own. With them, the message and so the whole batch is refused by
// another stream, and if our fence is not the latest one or is gone. The server checks
// for a duplicate before it checks these headers.
func (k *known) lines() []headerLine {
	lines := []headerLine{{jetstream.ExpectedStreamHeader, k.stream}}
	if k.subject == "" {
		return lines
	}
	return append(lines, []headerLine{
		{jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(k.fence, 10)},
		{jetstream.ExpectedLastSubjSeqSubjHeader, k.subject},
	}...)
}

// fenceLines is known.lines, for the goroutine that publishes.
func (p *Publisher) fenceLines() []headerLine {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known.lines()
}

// blockOf returns lines as they stand in a header block.
func blockOf(lines []headerLine) []byte {
	var block []byte
	for _, line := range lines {
		block = fmt.Appendf(block, "%s: %s\r\n", line.name, line.value)
	}
	return block
}

// linesSize is the size of further lines in a header block.
func linesSize(lines []headerLine) int {
	size := 0
	for _, line := range lines {
		size += len(line.name) + len(": ") + len(line.value) + len("\r\n")
	}
	return size
}

// tooLargeWith reports whether a message of this size fits without the further lines,
// and does not fit with them.
func tooLargeWith(lines []headerLine, size int, most int64) bool {
	return int64(size) <= most && int64(size+linesSize(lines)) > most
}

// fenced returns a message with further headers.
func fenced(msg *nats.Msg, lines []headerLine) *nats.Msg {
	first := *msg
	first.Header = make(nats.Header, len(msg.Header)+len(lines)) // The encoder reuses its map.
	maps.Copy(first.Header, msg.Header)
	for _, line := range lines {
		first.Header[line.name] = []string{line.value}
	}
	return &first
}
