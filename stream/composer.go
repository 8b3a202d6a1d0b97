package stream

import "github.com/nats-io/nats.go"

// composer makes the messages of one goroutine, one after the other, in the same
// memory. What it makes is what the Encoder makes.
type composer struct {
	encoder Encoder
	msg     nats.Msg
	values  [plainHeaders]string
	head    int    // The size of the latest message's header block,
	mark    uint64 // and its subject's mark.
	text    []byte // What becomes the message's texts, which share one string.
	block   []byte // A header block.
}

// plainHeaders is how many headers a message has whose row has none of its own.
const plainHeaders = 7

func newComposer(e Encoder) *composer {
	c := &composer{encoder: e}
	c.msg.Header = make(nats.Header, plainHeaders)
	for i, name := range [plainHeaders]string{
		HeaderMsgID, HeaderSeq, HeaderCreatedAt, HeaderTopic, HeaderAggregateType, HeaderAggregateID, HeaderEventType,
	} {
		c.msg.Header[name] = c.values[i : i+1 : i+1]
	}
	return c
}

// plain reports whether an event's message has the plain headers only.
func (c *composer) plain(ev *Event) bool {
	return len(ev.Headers) == 0 && c.encoder.CloudEventsSource == ""
}

// message returns the event's message, which is valid until the next call: nats.go
// has copied all of it by the time that PublishMsg returns.
func (c *composer) message(ev *Event, reply string) (*nats.Msg, error) {
	if !c.plain(ev) {
		lines, err := c.encoder.lines(ev)
		if err != nil {
			return nil, err
		}
		subject := c.encoder.Template.Subject(ev)
		c.head, c.mark = lines.size, subjectMark(subject)
		return &nats.Msg{Subject: subject, Reply: reply, Header: lines.header(), Data: ev.Data}, nil
	}
	text, ends, err := appendGenerated(c.text[:0], ev)
	if err != nil {
		return nil, err
	}
	text = c.encoder.Template.AppendSubject(text, ev)
	c.text = text
	all := string(text)
	c.values = [plainHeaders]string{
		all[:ends[0]], all[ends[0]:ends[1]], all[ends[1]:ends[2]],
		EncodeHeaderValue(ev.Topic), EncodeHeaderValue(ev.AggregateType), EncodeHeaderValue(ev.AggregateID), EncodeHeaderValue(ev.EventType),
	}
	size := plainHeaderSize
	for _, value := range c.values {
		size += len(value)
	}
	if size > MaxHeader {
		return c.encoder.Message(ev, reply) // Which says so.
	}
	c.head = size
	c.msg.Subject, c.msg.Reply, c.msg.Data = all[ends[2]:], reply, ev.Data
	c.mark = subjectMark(c.msg.Subject)
	return &c.msg, nil
}

// plainHeaderSize is the size of a header block without its values.
const plainHeaderSize = headerOverhead + plainHeaders*len(": \r\n") +
	len(HeaderMsgID) + len(HeaderSeq) + len(HeaderCreatedAt) + len(HeaderTopic) + len(HeaderAggregateType) + len(HeaderAggregateID) + len(HeaderEventType)

// wire returns what of the event's message comes before its payload, as it is
// on the wire: the subject, and the header block with some further lines. Both are
// valid until the next call.
func (c *composer) wire(ev *Event, further ...headerLine) (subject, head []byte, err error) {
	b := append(c.block[:0], "NATS/1.0\r\n"...)
	if c.plain(ev) {
		b, err = c.appendPlain(b, ev)
	} else {
		b, err = c.appendLines(b, ev)
	}
	if err != nil {
		return nil, nil, err
	}
	for _, line := range further {
		b = appendLine(b, line.name, line.value)
	}
	c.block = append(b, "\r\n"...)
	c.text = c.encoder.Template.AppendSubject(c.text[:0], ev)
	c.head, c.mark = len(c.block)-linesSize(further), subjectMark(c.text)
	return c.text, c.block, nil
}

func (c *composer) appendPlain(b []byte, ev *Event) ([]byte, error) {
	text, ends, err := appendGenerated(c.text[:0], ev)
	if err != nil {
		return nil, err
	}
	c.text = text
	b = appendLine(b, HeaderMsgID, text[:ends[0]])
	b = appendLine(b, HeaderSeq, text[ends[0]:ends[1]])
	b = appendLine(b, HeaderCreatedAt, text[ends[1]:])
	b = appendLine(b, HeaderTopic, EncodeHeaderValue(ev.Topic))
	b = appendLine(b, HeaderAggregateType, EncodeHeaderValue(ev.AggregateType))
	b = appendLine(b, HeaderAggregateID, EncodeHeaderValue(ev.AggregateID))
	b = appendLine(b, HeaderEventType, EncodeHeaderValue(ev.EventType))
	if len(b)+len("\r\n") > MaxHeader {
		_, err := c.encoder.lines(ev) // Which says so.
		return nil, err
	}
	return b, nil
}

func (c *composer) appendLines(b []byte, ev *Event) ([]byte, error) {
	lines, err := c.encoder.lines(ev)
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
