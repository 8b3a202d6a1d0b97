package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
)

func newTailCommand(p *process) *cobra.Command {
	t := tail{p: p, retry: time.Second}
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Follow what is stored in the stream",
		Long: `Follow what is stored in the stream from now on: each message with its sequence, the time and its
headers, and with its payload if --data asks for it. With --topic or --type only events of that topic or
event type are shown.

It asks NATS only, so it works while Postgres is down, and whether or not a relay runs. While NATS or the
stream is not there, it says so, and waits. It leaves nothing behind in the stream. A signal ends it, with
the exit code 0.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if t.config, err = p.config(config.NeedValues); err != nil {
				return err
			}
			return t.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&t.topic, "topic", "", "only events of this `topic`")
	cmd.Flags().StringVar(&t.eventType, "type", "", "only events of this event `type`")
	cmd.Flags().BoolVar(&t.data, "data", false, "show payloads, too")
	cmd.Flags().BoolVar(&t.asJSON, "json", false, "write JSON, one object a line")
	return cmd
}

// tail is what a tail command works with.
type tail struct {
	p                *process
	config           config.Config
	topic, eventType string
	data, asJSON     bool
	retry            time.Duration // How long to wait before it connects again.

	begun   bool
	created time.Time // When the stream was created,
	above   uint64    // and up to where it was shown.
	said    string    // What was said last of what it waits for.
}

// run follows the stream until ctx ends.
func (t *tail) run(ctx context.Context) error {
	for {
		err := t.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // It was asked to stop.
		}
		fault, isFault := errors.AsType[*stream.Error](err)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			t.say("the stream does not exist; waiting until it does")
		case isFault:
			t.say(fmt.Sprintf("waiting until it can be read: %v", fault))
		default:
			return err
		}
		wait := time.NewTimer(t.retry)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil
		}
	}
}

// say tells what tail waits for, unless that was the last thing it said.
func (t *tail) say(what string) {
	if what != t.said {
		fmt.Fprintf(t.p.stderr, "outbox-relay: tail: %s\n", what)
		t.said = what
	}
}

// follow connects and shows messages. Its error is a *stream.Error if it is to be tried again.
func (t *tail) follow(ctx context.Context) error {
	reader, setup, err := dial(ctx, t.config, "outbox-relay tail")
	if err != nil {
		return err
	}
	defer reader.Close()
	asking, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	extent, err := reader.Extent(asking)
	if err != nil {
		return err
	}
	switch {
	case !t.begun:
		t.begun, t.created, t.above = true, extent.Created, extent.Last
	case !t.created.Equal(extent.Created) || extent.Last < t.above:
		t.say("the stream was created anew, or has lost messages; going on from its beginning")
		t.created, t.above = extent.Created, 0
	}
	t.say(fmt.Sprintf("waiting for messages in stream %s after sequence %d", visible(setup.Stream), t.above))
	filter := ""
	if t.topic != "" || t.eventType != "" {
		filter = setup.Template.FilterFor(t.topic, t.eventType)
	}
	return reader.Follow(ctx, history.Stretch{Above: t.above, Filter: filter, Data: t.data}, func(m *history.Message) error {
		t.above = m.Stored
		return t.show(m)
	})
}

// tailed is a message as tail --json shows it. Programs read this: fields may be added, not changed.
type tailed struct {
	Stored    uint64      `json:"stream_sequence"`
	StoredAt  time.Time   `json:"stored_at"`
	Subject   string      `json:"subject"`
	Event     *tailEvent  `json:"event"` // Null if the message carries none.
	Headers   nats.Header `json:"headers"`
	DataBytes int         `json:"data_bytes"`
	Data      []byte      `json:"data,omitempty"` // With --data, in base64,
	Text      *string     `json:"text,omitempty"` // and as text, if it is UTF-8.
}

// tailEvent is the event of a message.
type tailEvent struct {
	Seq           int64     `json:"seq"`
	ID            uuid.UUID `json:"id"`
	Topic         string    `json:"topic"`
	AggregateType string    `json:"aggregate_type"`
	AggregateID   string    `json:"aggregate_id"`
	EventType     string    `json:"event_type"`
	CreatedAt     time.Time `json:"created_at"`
}

// show writes a message, if it is asked for.
func (t *tail) show(m *history.Message) error {
	event, eventErr := stream.Decode(m.Msg.Header, m.Msg.Data)
	if !t.wants(&event, eventErr == nil) {
		return nil
	}
	headers := maps.Clone(m.Msg.Header)
	if !t.data {
		headers.Del(nats.MsgSize) // The server adds it to messages without their payloads.
	}
	shown := tailed{Stored: m.Stored, StoredAt: m.Time().UTC(), Subject: m.Msg.Subject, Headers: headers, DataBytes: sizeOf(m.Msg, t.data)}
	if eventErr == nil {
		shown.Event = &tailEvent{event.Seq, event.ID, event.Topic, event.AggregateType, event.AggregateID, event.EventType, event.CreatedAt}
	}
	if t.asJSON {
		if t.data {
			shown.Data = m.Msg.Data
			if text := string(m.Msg.Data); utf8.ValidString(text) {
				shown.Text = &text
			}
		}
		return writeJSON(t.p.stdout, shown)
	}
	return t.write(&shown, m.Msg.Data, eventErr)
}

// wants reports whether a message is asked for; known tells that it carries the event.
func (t *tail) wants(event *stream.Event, known bool) bool {
	if t.topic == "" && t.eventType == "" {
		return true
	}
	return known && (t.topic == "" || event.Topic == t.topic) && (t.eventType == "" || event.EventType == t.eventType)
}

// sizeOf returns the size of a message's payload.
func sizeOf(msg *nats.Msg, data bool) int {
	if data {
		return len(msg.Data)
	}
	size := 0
	_, _ = fmt.Sscan(msg.Header.Get(nats.MsgSize), &size)
	return size
}

// write writes a message for a person.
func (t *tail) write(shown *tailed, data []byte, eventErr error) error {
	var b strings.Builder
	what := "no event"
	switch {
	case shown.Event != nil:
		what = brief(shown.Event.EventType)
	case !errors.Is(eventErr, stream.ErrNoEvent):
		what = "damaged event: " + visible(eventErr.Error())
	}
	fmt.Fprintf(&b, "%d  %s  %s  %s  %d bytes\n", shown.Stored, shown.StoredAt.Format("2006-01-02T15:04:05.000Z07:00"), visible(shown.Subject), what, shown.DataBytes)
	for _, name := range slices.Sorted(maps.Keys(shown.Headers)) {
		for _, value := range shown.Headers[name] {
			fmt.Fprintf(&b, "    %s: %s\n", visible(name), visible(shorten(value, 1000)))
		}
	}
	if t.data && len(data) > 0 {
		text := string(data)
		if !printable(strings.NewReplacer("\n", "", "\t", "").Replace(text)) {
			text = strings.TrimRight(hex.Dump(data), "\n")
		}
		fmt.Fprintf(&b, "    | %s\n", strings.ReplaceAll(text, "\n", "\n    | "))
	}
	return printf(t.p.stdout, "%s", b.String())
}
