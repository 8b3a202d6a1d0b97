package doctor

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
)

// examineLimits compares a stream with its limits.
func (d *doctor) examineLimits(info *jetstream.StreamInfo) {
	const check = CheckLimits
	limits := stream.Limits(info)
	for _, l := range limits {
		switch {
		case l.Discards:
			d.ok(check, "the stream has %v, and makes room by discarding its oldest messages, whether or not anybody has read them", l)
		case l.Consumers() && info.Config.AllowDirect:
			d.ok(check, "the stream has %v: without a further one the relay reads back by direct gets", l)
		case l.Full():
			d.fail(check, l.Remedy(&info.Config), "the stream is full, it has %v", l)
		case l.Nearly():
			d.warn(check, l.Remedy(&info.Config), "the stream is nearly full, it has %v", l)
		default:
			d.ok(check, "the stream has %v", l)
		}
	}
	if age := info.Config.MaxAge; age > 0 {
		d.ok(check, "the stream keeps messages for %v (max_age)", age)
	} else if len(limits) == 0 {
		d.ok(check, "the stream has none: it grows with its disk")
	}
}

// examineAccount compares an account with its limits, if it may be asked.
func (d *doctor) examineAccount(ctx context.Context, js jetstream.JetStream, asides *aside) {
	const (
		check  = CheckAccount
		remedy = "raise the limit, or remove streams or messages (`nats account info`, `nats stream report`)"
	)
	var info *jetstream.AccountInfo
	if err := asides.ask(ctx, func(ctx context.Context) (err error) {
		info, err = js.AccountInfo(ctx)
		return err
	}); err != nil {
		return // The relay does not need to ask that.
	}
	for _, l := range stream.AccountLimits(info) {
		switch {
		case l.Streams(): // The relay's is there.
			d.ok(check, "the NATS account has %v", l)
		case l.Full():
			d.fail(check, remedy, "the NATS account has used up a limit, it has %v", l)
		case l.Nearly():
			d.warn(check, remedy, "the NATS account has nearly used up a limit, it has %v", l)
		default:
			d.ok(check, "the NATS account has %v", l)
		}
	}
}

// deniedSubjects returns the subjects of pending events that the relay may not publish to, and how many kinds of events
// were tried.
func (d *doctor) deniedSubjects(template stream.Template, permitted func(subject string) bool) (denied []string, tried int) {
	seen := make(map[string]bool)
	for _, sample := range d.pending {
		subject := template.Subject(&stream.Event{
			Topic: sample.Topic, AggregateType: sample.AggregateType, AggregateID: sample.AggregateID, EventType: sample.EventType,
		})
		if seen[subject] {
			continue
		}
		seen[subject] = true
		if tried++; !permitted(subject) {
			denied = append(denied, fmt.Sprintf("%q", subject))
		}
	}
	return denied, tried
}
