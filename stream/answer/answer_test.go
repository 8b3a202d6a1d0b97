package answer_test

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/answer"
)

// Whatever does not count leaves the message in doubt, and what was lost is told apart. Package publisher tests the
// rest, with what becomes of the event.
func TestAcknowledged(t *testing.T) {
	for _, test := range []struct {
		name, data string
		sequence   uint64 // 0 if the answer does not count.
		duplicate  bool
		lost       bool
		malformed  bool
	}{
		{name: "stored", data: `{"stream":"OUTBOX","seq":101}`, sequence: 101},
		{name: "had already", data: `{"stream":"OUTBOX","seq":7,"duplicate":true}`, sequence: 7, duplicate: true},
		{name: "a sequence given before", data: `{"stream":"OUTBOX","seq":100}`, lost: true},
		{name: "another stream's", data: `{"stream":"OTHER","seq":101}`},
		{name: "a batch's", data: `{"stream":"OUTBOX","seq":101,"batch":"x","count":1}`, malformed: true},
		{name: "a flow ack", data: `{"type":"ack","stream":"OUTBOX","seq":101}`, malformed: true},
		{name: "nobody's", data: `{"seq":101}`, malformed: true},
		{name: "text", data: `hello`, malformed: true},
	} {
		a, fault := answer.Read(&nats.Msg{Data: []byte(test.data)}, "OUTBOX")
		var sequence uint64
		var duplicate bool
		if fault == nil {
			sequence, duplicate, fault = a.Acknowledged("OUTBOX", 100)
		}
		if sequence != test.sequence || duplicate != test.duplicate || (fault == nil) != (test.sequence > 0) || fault != nil && !fault.Ambiguous() {
			t.Errorf("%s: got %d, %v, %v", test.name, sequence, duplicate, fault)
			continue
		}
		if fault == nil {
			continue
		}
		if _, lost := errors.AsType[*stream.LostError](fault); lost != test.lost || errors.Is(fault, jetstream.ErrInvalidJSAck) != test.malformed {
			t.Errorf("%s: got %v", test.name, fault)
		}
	}
	if _, fault := answer.Read(&nats.Msg{Header: nats.Header{"Status": {"503"}}}, "OUTBOX"); !errors.Is(fault, jetstream.ErrNoStreamResponse) {
		t.Errorf("if nobody listens: got %v", fault)
	}
}
