package stream

import "github.com/nats-io/nats.go"

// A ReusingEncoder makes the same messages as its Encoder, for one goroutine and in
// memory that it reuses for each message.
type ReusingEncoder struct {
	encoder  Encoder
	msg      nats.Msg
	values   [plainHeaders]string
	headSize int    // The size of the latest message's header block.
	text     []byte // The message's texts, which share one string.
	block    []byte // A header block.
}

// plainHeaders is how many headers a message has if its row has no headers.
const plainHeaders = 7

// NewReusingEncoder returns an encoder that makes messages as this one, which must be
// valid.
func NewReusingEncoder(encoder Encoder) *ReusingEncoder {
	e := &ReusingEncoder{encoder: encoder}
	e.msg.Header = make(nats.Header, plainHeaders)
	for i, name := range [plainHeaders]string{
		HeaderMsgID, HeaderSeq, HeaderCreatedAt, HeaderTopic, HeaderAggregateType, HeaderAggregateID, HeaderEventType,
	} {
		e.msg.Header[name] = e.values[i : i+1 : i+1]
	}
	return e
}

// plain reports whether an event's message has the plain headers only.
func (e *ReusingEncoder) plain(ev *Event) bool {
	return len(ev.Headers) == 0 && e.encoder.CloudEventsSource == ""
}

// HeadSize returns the size in bytes of the latest message's header block, without
// further lines.
func (e *ReusingEncoder) HeadSize() int { return e.headSize }

// Message returns the event's message. It is valid until the next call: nats.go
// has copied all of it when PublishMsg returns. Its errors are those of
// Encoder.Message.
func (e *ReusingEncoder) Message(ev *Event, reply string) (*nats.Msg, error) {
	if !e.plain(ev) {
		lines, err := e.encoder.lines(ev)
		if err != nil {
			return nil, err
		}
		e.headSize = lines.size
		return &nats.Msg{Subject: e.encoder.Template.Subject(ev), Reply: reply, Header: lines.header(), Data: ev.Data}, nil
	}
	text, ends, err := appendGenerated(e.text[:0], ev)
	if err != nil {
		return nil, err
	}
	text = e.encoder.Template.AppendSubject(text, ev)
	e.text = text
	all := string(text)
	e.values = [plainHeaders]string{
		all[:ends[0]], all[ends[0]:ends[1]], all[ends[1]:ends[2]],
		EncodeHeaderValue(ev.Topic), EncodeHeaderValue(ev.AggregateType), EncodeHeaderValue(ev.AggregateID), EncodeHeaderValue(ev.EventType),
	}
	size := plainHeaderSize
	for _, value := range e.values {
		size += len(value)
	}
	if size > MaxHeader {
		return e.encoder.Message(ev, reply) // It says so.
	}
	e.headSize = size
	e.msg.Subject, e.msg.Reply, e.msg.Data = all[ends[2]:], reply, ev.Data
	return &e.msg, nil
}

// plainHeaderSize is the size of a header block without its values.
const plainHeaderSize = headerOverhead + plainHeaders*len(": \r\n") +
	len(HeaderMsgID) + len(HeaderSeq) + len(HeaderCreatedAt) + len(HeaderTopic) + len(HeaderAggregateType) + len(HeaderAggregateID) + len(HeaderEventType)

// RawMessage returns the parts of the event's message that precede its payload on
// the wire: the subject, and the header block with further lines. Each of those ends
// with \r\n. Both are valid until the next call. Its errors are those of Encoder.Message.
func (e *ReusingEncoder) RawMessage(ev *Event, further []byte) (subject, head []byte, err error) {
	b := append(e.block[:0], "NATS/1.0\r\n"...)
	if e.plain(ev) {
		b, err = e.appendPlain(b, ev)
	} else {
		b, err = e.appendLines(b, ev)
	}
	if err != nil {
		return nil, nil, err
	}
	b = append(b, further...)
	e.block = append(b, "\r\n"...)
	e.text = e.encoder.Template.AppendSubject(e.text[:0], ev)
	e.headSize = len(e.block) - len(further)
	return e.text, e.block, nil
}

func (e *ReusingEncoder) appendPlain(b []byte, ev *Event) ([]byte, error) {
	text, ends, err := appendGenerated(e.text[:0], ev)
	if err != nil {
		return nil, err
	}
	e.text = text
	b = appendLine(b, HeaderMsgID, text[:ends[0]])
	b = appendLine(b, HeaderSeq, text[ends[0]:ends[1]])
	b = appendLine(b, HeaderCreatedAt, text[ends[1]:])
	b = appendLine(b, HeaderTopic, EncodeHeaderValue(ev.Topic))
	b = appendLine(b, HeaderAggregateType, EncodeHeaderValue(ev.AggregateType))
	b = appendLine(b, HeaderAggregateID, EncodeHeaderValue(ev.AggregateID))
	b = appendLine(b, HeaderEventType, EncodeHeaderValue(ev.EventType))
	if len(b)+len("\r\n") > MaxHeader {
		_, err := e.encoder.lines(ev) // It says so.
		return nil, err
	}
	return b, nil
}

func (e *ReusingEncoder) appendLines(b []byte, ev *Event) ([]byte, error) {
	lines, err := e.encoder.lines(ev)
	if err != nil {
		return nil, err
	}
	for _, line := range lines.lines {
		b = appendLine(b, line.name, line.value)
	}
	return b, nil
}

func appendLine[T string | []byte](b []byte, name string, value T) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// SmallestHeader is the size in bytes of the header block of an event whose texts are all
// empty.
const SmallestHeader = int64(plainHeaderSize + len("00000000-0000-0000-0000-000000000000") + len("0") + len("2006-01-02T15:04:05Z"))
