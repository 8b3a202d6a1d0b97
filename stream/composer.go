package stream

import "github.com/nats-io/nats.go"

// composer makes the messages of one goroutine, one after the other, in the same
// memory: nats.go has written a message out by the time that PublishMsg returns.
// What it makes is what the Encoder makes.
type composer struct {
	encoder Encoder
	msg     nats.Msg
	values  [plainHeaders]string
	text    []byte // What becomes the message's texts, which share one string.
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

// message returns the event's message, which is valid until the next call.
func (c *composer) message(ev *Event, reply string) (*nats.Msg, error) {
	if len(ev.Headers) > 0 || c.encoder.CloudEventsSource != "" {
		return c.encoder.Message(ev, reply)
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
	c.msg.Subject, c.msg.Reply, c.msg.Data = all[ends[2]:], reply, ev.Data
	return &c.msg, nil
}

// plainHeaderSize is the size of a header block without its values.
const plainHeaderSize = headerOverhead + plainHeaders*len(": \r\n") +
	len(HeaderMsgID) + len(HeaderSeq) + len(HeaderCreatedAt) + len(HeaderTopic) + len(HeaderAggregateType) + len(HeaderAggregateID) + len(HeaderEventType)
