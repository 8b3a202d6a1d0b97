package stream

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// answer is an answer of any kind to a published message. Anybody who knows the reply
// subject can send one. It counts only if it is well formed, comes from our stream,
// and fits what was sent.
type answer struct {
	Type      string              `json:"type"` // Empty in publish acks.
	Stream    string              `json:"stream"`
	Seq       uint64              `json:"seq"` // Of the batch in flow acks and errors, of the stream in publish acks.
	Duplicate bool                `json:"duplicate"`
	Msgs      uint64              `json:"msgs"`
	Batch     string              `json:"batch"`
	Count     uint64              `json:"count"`
	Error     *jetstream.APIError `json:"error"`
}

// readAnswer reads an answer, or says why the message is no answer of our stream.
func readAnswer(msg *nats.Msg, ours string) (answer, *Error) {
	if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
		return answer{}, Classify(jetstream.ErrNoStreamResponse)
	}
	var a answer
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return answer{}, malformed(cut(err.Error()))
	}
	if a.Stream != "" && a.Stream != ours {
		return answer{}, anotherStream(a.Stream, ours)
	}
	return a, nil
}

// anotherStream says that another stream has answered our message, whether or not it
// stored the message. What our own stream did is unknown.
func anotherStream(name, ours string) *Error {
	return &Error{Fault: FaultSetup, Err: fmt.Errorf(
		"another stream, %q, answers on the subjects of stream %q: let only one of them listen there (see `nats stream find`, also in the other domains of leaf nodes)",
		cut(name), ours)}
}

// acknowledged returns the sequence in the answer to an event that was sent by itself,
// and whether the stream had its ID already. Last is a sequence that the stream had
// given before the event was sent: the sequence of a new message must be higher.
func (a *answer) acknowledged(ours string, last uint64) (sequence uint64, duplicate bool, fault *Error) {
	switch {
	case a.Error != nil:
		return 0, false, Classify(a.Error)
	case a.Type != "":
		return 0, false, malformed("type " + strconv.Quote(cut(a.Type)))
	case a.Stream == "":
		return 0, false, malformed("it names no stream")
	case a.Batch != "":
		return 0, false, malformed("it is that of an ordered batch")
	case a.Duplicate && a.Seq == 0:
		return 0, false, malformed("sequence 0")
	case !a.Duplicate && a.Seq <= last:
		return 0, false, wentBack(ours, a.Seq, last)
	}
	return a.Seq, a.Duplicate, nil
}

// wentBack says that the stream has stored a message at a sequence that it had given
// to another message before: the stream was created anew, or put back from a copy.
func wentBack(stream string, sequence, last uint64) *Error {
	return Classify(&LostError{fmt.Sprintf("stream %q stored a message at sequence %d, although it had given %d before", stream, sequence, last)})
}
