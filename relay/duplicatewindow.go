package relay

import (
	"time"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// What [MinDuplicateWindow] adds to the lease and to the wait for an acknowledgement.
const (
	// brokerPatience is how long a message may be on its way after the relay has let go of it: a write to a frozen server
	// blocks for 10 s before package stream gives the connection up, and a server keeps an idle ordered batch for 10 s.
	brokerPatience = 10 * time.Second
	// windowMargin is for delays that have no limit of their own: by a busy machine, by the network.
	windowMargin = 2 * time.Second
)

// MinDuplicateWindow returns the least duplicate window with which events are stored once even while two relays send: one
// leads, and one was frozen or cut off and does not know yet that it no longer does. It is meant for
// stream.Setup.MinWindow, and takes publisher.Options.AckTimeout, of which 0 stands for the default as it does
// there.
//
// Whatever the new leader stores, the old one may send again until all of this has passed since Postgres last heard of it:
//
//	election.LeaseDuration   the old leader looks at its lease before each write, and stops
//	+ 10 s                   a write to a frozen server blocks that long, or a server keeps a batch open
//	+ ackTimeout             its last message is acknowledged, or counts as lost
//	+ 2 s                    margin
//
// which makes 22 s by default. For that long the stream has to recognise an event's id, and then until the new leader has
// published that event. One sequence of faults goes on for longer and stores an event twice: its message arrives late, after
// the fence, and its row then waits for longer than the window, because of a backlog of hours or because an event before it
// is refused again and again (see "The open hole" in README.md). An interruption between publishing an event and settling
// it, such as an outage of Postgres or NATS, may last for any time.
func MinDuplicateWindow(ackTimeout time.Duration) time.Duration {
	if ackTimeout == 0 {
		ackTimeout = publisher.DefaultAckTimeout
	}
	return election.LeaseDuration + brokerPatience + ackTimeout + windowMargin
}
