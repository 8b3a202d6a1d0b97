package stream

import "github.com/nats-io/nats.go"

// reusingEncoder makes the same messages as its Encoder, for one goroutine and in
// memory that it reuses for each message.
type reusingEncoder struct {
	encoder  Encoder
	msg      nats.Msg
	values   [plainHeaders]string
	headSize int    // The size of the latest message's header block.
	mark     uint64 // The mark of the latest message's subject.
	text     []byte // The message's texts, which share one string.
	block    []byte // A header block.
}

// plainHeaders is how many headers a message has if its row has no headers.
const plainHeaders = 7

func newReusingEncoder(encoder Encoder) *reusingEncoder {
	e := &reusingEncoder{encoder: encoder}
	e.msg.Header = make(nats.Header, plainHeaders)
	for i, name := range [plainHeaders]string{
		HeaderMsgID, HeaderSeq, HeaderCreatedAt, HeaderTopic, HeaderAggregateType, HeaderAggregateID, HeaderEventType,
	} {
		e.msg.Header[name] = e.values[i : i+1 : i+1]
	}
	return e
}

// plain reports whether an event's message has the plain headers only.
func (e *reusingEncoder) plain(ev *Event) bool {
	return len(ev.Headers) == 0 && e.encoder.CloudEventsSource == ""
}

// message returns the event's message. It is valid until the next call: nats.go
// has copied all of it when PublishMsg returns.
func (e *reusingEncoder) message(ev *Event, reply string) (*nats.Msg, error) {
	if !e.plain(ev) {
		lines, err := e.encoder.lines(ev)
		if err != nil {
			return nil, err
		}
		subject := e.encoder.Template.Subject(ev)
		e.headSize, e.mark = lines.size, subjectMark(subject)
		return &nats.Msg{Subject: subject, Reply: reply, Header: lines.header(), Data: ev.Data}, nil
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
	e.mark = subjectMark(e.msg.Subject)
	return &e.msg, nil
}

// plainHeaderSize is the size of a header block without its values.
const plainHeaderSize = headerOverhead + plainHeaders*len(": \r\n") +
	len(HeaderMsgID) + len(HeaderSeq) + len(HeaderCreatedAt) + len(HeaderTopic) + len(HeaderAggregateType) + len(HeaderAggregateID) + len(HeaderEventType)

// rawMessage returns the parts of the event's message that precede its payload on
// the wire: the subject, and the header block with the further lines. Both are
// valid until the next call.
func (e *reusingEncoder) rawMessage(ev *Event, further ...headerLine) (subject, head []byte, err error) {
	b := append(e.block[:0], "NATS/1.0\r\n"...)
	if e.plain(ev) {
		b, err = e.appendPlain(b, ev)
	} else {
		b, err = e.appendLines(b, ev)
	}
	if err != nil {
		return nil, nil, err
	}
	for _, line := range further {
		b = appendLine(b, line.name, line.value)
	}
	e.block = append(b, "\r\n"...)
	e.text = e.encoder.Template.AppendSubject(e.text[:0], ev)
	e.headSize, e.mark = len(e.block)-linesSize(further), subjectMark(e.text)
	return e.text, e.block, nil
}

func (e *reusingEncoder) appendPlain(b []byte, ev *Event) ([]byte, error) {
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

func (e *reusingEncoder) appendLines(b []byte, ev *Event) ([]byte, error) {
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
