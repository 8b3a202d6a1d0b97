package publisher

import (
	"testing"

	"github.com/nats-io/nats.go"
)

// Flow acks may tell all outcomes of a batch before its end is confirmed. What
// is published in between belongs to another batch, which that end does not
// concern.
func TestBatchFollowsOneThatIsEnding(t *testing.T) {
	p := deafPublisher(t)
	publish := func(seq int64) *batch {
		t.Helper()
		b, _, _ := p.enter(p.session, seq, 1)
		return b
	}
	first := publish(1)
	first.ending = true // As Finish has it.
	p.batches.answered(&nats.Msg{Subject: first.replies + "1" + batchAppend, Data: []byte(`{"type":"ack","seq":1,"msgs":500}`)})
	second := publish(2)
	if second == first {
		t.Fatal("event 2 was added to a batch that is ending")
	}
	p.batches.answered(&nats.Msg{Subject: first.replies + "2" + batchEnd, Data: []byte(`{"stream":"OUTBOX","seq":1,"batch":"b","count":1}`)})
	if got, _ := p.Collect(nil); len(got) != 1 || got[0].Seq != 1 || got[0].Err != nil {
		t.Errorf("got outcomes %+v, want only that event 1 is stored", got)
	}
	if p.batches.open != second {
		t.Error("the first batch's end ended the second")
	}
}
