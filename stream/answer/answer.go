// Package answer reads the answers to published messages, and judges which of them count.
//
// Anybody who knows a reply subject can answer, and another stream may listen on our
// subjects. An answer counts if it is well formed, fits what was sent, names our
// stream, and has a sequence above all that the stream had given before the message
// was sent. After any other answer the event is in doubt: it is never reported as
// stored.
//
//   - An answer with another stream's name is the set-up's fault.
//   - An answer with a sequence that the stream had given before is a [stream.LostError]:
//     the stream was created anew, or put back from a copy.
//   - An answer that does not follow the protocol is [stream.Malformed].
package answer

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/excerpt"
)

// An Answer is one of any kind to a published message, to an event by itself or to a
// message of an ordered batch.
type Answer struct {
	// Type is that of an answer within a batch: "ack", "gap" or "err". It is empty in
	// publish acks.
	Type string `json:"type"`

	// Stream names the stream that answers.
	Stream string `json:"stream"`

	// Seq is a place in the batch in flow acks and errors, a sequence of the stream in
	// publish acks.
	Seq uint64 `json:"seq"`

	// Duplicate says that the stream had the message's ID already, at Seq.
	Duplicate bool `json:"duplicate"`

	// Msgs is how many messages each flow ack covers.
	Msgs uint64 `json:"msgs"`

	// Batch is the batch that a publish ack ends, Count how many of its messages are
	// stored.
	Batch string `json:"batch"`
	Count uint64 `json:"count"`

	// Error says why the message was refused; nil if it was not.
	Error *jetstream.APIError `json:"error"`
}

// Read reads an answer, or says why the message is no answer of our stream. A message
// that says that nobody listens is a jetstream.ErrNoStreamResponse.
func Read(msg *nats.Msg, ours string) (Answer, *stream.Error) {
	if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
		return Answer{}, stream.Classify(fmt.Errorf("nobody takes what is sent to the subjects of stream %q: it has no leader just now; or the account maps the subjects to others (mappings), or does not import them from the stream's account: %w",
			ours, jetstream.ErrNoStreamResponse))
	}
	var a Answer
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return Answer{}, stream.Malformed(excerpt.Of(err.Error()))
	}
	if a.Stream != "" && a.Stream != ours {
		return Answer{}, anotherStream(a.Stream, ours)
	}
	return a, nil
}

// anotherStream says that another stream has answered our message, whether or not it
// stored the message. What our own stream did is unknown.
func anotherStream(name, ours string) *stream.Error {
	return &stream.Error{Fault: stream.FaultSetup, Err: fmt.Errorf(
		"another stream, %q, answers on the subjects of stream %q: let only one of them listen there (see `nats stream find`, also in the other domains of leaf nodes)",
		excerpt.Of(name), ours)}
}

// Acknowledged returns the sequence in the answer to an event that was sent by itself,
// and whether the stream had its ID already. Last is a sequence that the stream had
// given before the event was sent: the sequence of a new message must be higher.
func (a *Answer) Acknowledged(ours string, last uint64) (sequence uint64, duplicate bool, fault *stream.Error) {
	switch {
	case a.Error != nil:
		return 0, false, stream.Classify(a.Error)
	case a.Type != "":
		return 0, false, stream.Malformed("type " + strconv.Quote(excerpt.Of(a.Type)))
	case a.Stream == "":
		return 0, false, stream.Malformed("it names no stream")
	case a.Batch != "":
		return 0, false, stream.Malformed("it is that of an ordered batch")
	case a.Duplicate && a.Seq == 0:
		return 0, false, stream.Malformed("sequence 0")
	case !a.Duplicate && a.Seq <= last:
		return 0, false, WentBack(ours, a.Seq, last)
	}
	return a.Seq, a.Duplicate, nil
}

// WentBack says that the stream has stored a message at a sequence that it had given
// to another message before: the stream was created anew, or put back from a copy.
func WentBack(ours string, sequence, last uint64) *stream.Error {
	return stream.Classify(&stream.LostError{Reason: fmt.Sprintf("stream %q stored a message at sequence %d, although it had given %d before", ours, sequence, last)})
}
