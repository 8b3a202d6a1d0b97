package stream

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The reason for which an event is refused is short, whatever its headers.
func TestRefusalIsShort(t *testing.T) {
	fault := Classify(rowFault(errors.New(strings.Repeat("header: no\n", 1000))))
	if len(fault.Error()) > maxRefusal || !fault.Permanent {
		t.Errorf("%d bytes, permanent %v", len(fault.Error()), fault.Permanent)
	}
}

// Permanent is what the event is: not what the stream's configuration, or the weather, makes of it.
func TestPermanent(t *testing.T) {
	template := defaultTemplate(t)
	for name, change := range map[string]func(*Event){
		"no ID":            func(ev *Event) { ev.ID = [16]byte{} },
		"a reserved name":  func(ev *Event) { ev.Headers = []byte(`{"Nats-Rollup":"all"}`) },
		"no object":        func(ev *Event) { ev.Headers = []byte(`[`) },
		"large headers":    func(ev *Event) { ev.Topic = strings.Repeat("x", 1<<16) },
		"many long values": func(ev *Event) { ev.Headers = []byte(`{"a":"` + strings.Repeat("x", 1<<17) + `"}`) },
	} {
		ev := testEvent(1)
		change(ev)
		_, err := Encoder{Template: template}.Message(ev, "")
		if fault := Classify(err); fault == nil || !fault.Permanent {
			t.Errorf("%s: %v is not permanent", name, err)
		}
	}
}

// Of what a server or client refuses, the size is permanent, and what nats.go cannot send at all.
func TestPermanentAnswers(t *testing.T) {
	for _, test := range []struct {
		err       error
		permanent bool
	}{
		{&jetstream.APIError{Code: 400, ErrorCode: 10054}, true},
		{&jetstream.APIError{Code: 400, ErrorCode: 10097}, true},
		{&jetstream.APIError{Code: 503, ErrorCode: 10077, Description: "message too large"}, true},
		{nats.ErrMaxPayload, true},
		{nats.ErrBadHeaderMsg, true},
		{&jetstream.APIError{Code: 503, ErrorCode: 10077, Description: "maximum messages exceeded"}, false},
		{&jetstream.APIError{Code: 400, ErrorCode: 10111}, false},
		{&jetstream.APIError{Code: 400, ErrorCode: 10166}, false},
		{&jetstream.APIError{Code: 404, ErrorCode: 10059}, false},
		{nats.ErrTimeout, false},
	} {
		if got := Classify(fmt.Errorf("publish: %w", test.err)).Permanent; got != test.permanent {
			t.Errorf("%v: permanent is %v, want %v", test.err, got, test.permanent)
		}
	}
}
