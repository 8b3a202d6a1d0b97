package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/audit"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
)

func newAuditCommand(p *process) *cobra.Command {
	var (
		since  string
		limit  int
		wait   time.Duration
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Compare the archive with the stream: is anything missing, twice or out of order?",
		Long: `Compare what was published within relay.retain, which the archive has, with the stream, and name each
event that is missing, stored twice, or out of order within its aggregate. A TIME is one of RFC 3339,
such as 2026-01-02T15:04:05Z, or how long ago it was, such as 10m.

It changes nothing, may run beside any number of relays, and reads a quarter of a million messages a
second. What the relay is about to mend is not named: if an event is missing, the audit looks for it
again for a while (--patience).

Unchecked are events that the stream's limits, or a purge, may have removed. Late are events that were
stored and settled after later ones of their aggregate, as dead letters are that were requeued, and
events that were replayed.

The exit code is 1 if an event is named, or if the audit could not be done.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			moment, err := parseMoment("--since", since)
			if err != nil {
				return wrongCommand(cmd, err)
			}
			if limit < 1 {
				return wrongCommand(cmd, fmt.Errorf("--limit is %d, want 1 or more", limit))
			}
			if wait <= 0 {
				return wrongCommand(cmd, fmt.Errorf("--patience is %v, want more than 0s", wait))
			}
			c, err := p.config(config.NeedRelay)
			if err != nil {
				return err
			}
			outbox, err := openOutbox(c)
			if err != nil {
				return err
			}
			reader, setup, err := dial(cmd.Context(), c, "outbox-relay audit")
			if err != nil {
				return err
			}
			defer reader.Close()
			report, err := audit.Run(cmd.Context(), outbox, reader, audit.Options{Stream: setup.Stream, Since: moment, Patience: wait, Limit: limit})
			if err != nil {
				return fmt.Errorf("audit: %w", err)
			}
			if asJSON {
				err = writeJSON(p.stdout, auditedOf(&report))
			} else {
				err = writeAudit(p.stdout, &report, c.Relay.Retain)
			}
			if total := report.Total(); err == nil && total > 0 {
				err = fmt.Errorf("audit: %s", violationCount(total))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "only events published at this `time` or later")
	cmd.Flags().IntVar(&limit, "limit", 1000, "name at most `N` events; the others are counted")
	cmd.Flags().DurationVar(&wait, "patience", audit.DefaultPatience, "for how long to look for missing events before they are named")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// dial connects to the NATS of a configuration, to look at its stream.
func dial(ctx context.Context, c config.Config, name string) (*history.Reader, stream.Setup, error) {
	r := relayConfig(c, "nats://"+c.NATS.Listen)
	r.Connect.Name = name
	connect, setup, err := r.Target()
	if err != nil {
		return nil, setup, wrongConfig(err)
	}
	reader, err := history.Dial(ctx, connect, setup)
	return reader, setup, err
}

// audit audits while the relay leads, until ctx ends.
func (s *service) audit(ctx context.Context, outbox *store.Outbox, c relay.Config) {
	connect, setup, _ := c.Target() // The relay has been made of it.
	connect.Name = "outbox-relay audit"
	audit.Watch(ctx, audit.WatchOptions{
		Options: audit.Options{Stream: setup.Stream},
		Archive: outbox,
		Dial: func(ctx context.Context) (audit.Stream, func(), error) {
			reader, err := history.Dial(ctx, connect, setup)
			if err != nil {
				return nil, nil, err
			}
			return reader, reader.Close, nil
		},
		Interval: s.config.Relay.AuditInterval,
		Due:      func() bool { return s.status().State == relay.Leading },
		Logger:   s.log,
		Hooks:    s.audits,
	})
}

func violationCount(n int) string {
	if n == 1 {
		return "1 event breaks the claim"
	}
	return fmt.Sprintf("%d events break the claim", n)
}

// audited is what audit --json shows. Programs read this: fields may be added, not changed.
type audited struct {
	Stream     string             `json:"stream"`
	Since      *time.Time         `json:"since"` // Null for the whole archive.
	Events     int                `json:"events"`
	Messages   int                `json:"messages_read"`
	Unchecked  int                `json:"unchecked"`
	Late       int                `json:"late"`
	Count      map[audit.Kind]int `json:"count"`
	Violations []violation        `json:"violations"`
	Seconds    float64            `json:"took_seconds"`
}

// violation is an event that breaks the claim.
type violation struct {
	Kind          audit.Kind `json:"kind"`
	Seq           int64      `json:"seq"`
	ID            uuid.UUID  `json:"id"`
	Topic         string     `json:"topic"`
	AggregateType string     `json:"aggregate_type"`
	AggregateID   string     `json:"aggregate_id"`
	EventType     string     `json:"event_type"`
	PublishedAt   time.Time  `json:"published_at"`
	Stored        []uint64   `json:"stream_sequences"`
	After         *placed    `json:"after,omitempty"` // Of one that is out of order.
}

// placed is an event and its place in the stream.
type placed struct {
	Seq    int64     `json:"seq"`
	ID     uuid.UUID `json:"id"`
	Stored uint64    `json:"stream_sequence"`
}

func auditedOf(r *audit.Report) audited {
	a := audited{
		Stream: r.Scope.Stream, Events: r.Events, Messages: r.Messages, Unchecked: r.Unchecked, Late: r.Late,
		Count: make(map[audit.Kind]int), Violations: []violation{}, Seconds: r.Took.Seconds(),
	}
	if !r.Scope.Since.IsZero() {
		since := r.Scope.Since.UTC()
		a.Since = &since
	}
	for _, kind := range audit.Kinds() {
		a.Count[kind] = r.Count[kind]
	}
	for i := range r.Violations {
		v := &r.Violations[i]
		shown := violation{
			Kind: v.Kind, Seq: v.Seq, ID: v.ID, Topic: v.Topic, AggregateType: v.AggregateType, AggregateID: v.AggregateID, EventType: v.EventType,
			PublishedAt: v.PublishedAt.UTC(), Stored: v.Stored,
		}
		if v.Stored == nil {
			shown.Stored = []uint64{}
		}
		if v.Kind == audit.Order {
			shown.After = &placed{v.After.Seq, v.After.ID, v.AfterStored}
		}
		a.Violations = append(a.Violations, shown)
	}
	return a
}

func writeAudit(w io.Writer, r *audit.Report, retain time.Duration) error {
	if len(r.Violations) > 0 {
		columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(columns, "SEQ\tID\tTOPIC\tAGGREGATE\tEVENT TYPE\tPUBLISHED AT\tWHAT IS WRONG")
		for i := range r.Violations {
			v := &r.Violations[i]
			fmt.Fprintf(columns, "%d\t%s\t%s\t%s/%s\t%s\t%s\t%s\n", v.Seq, v.ID, brief(v.Topic), brief(v.AggregateType), brief(v.AggregateID),
				brief(v.EventType), v.PublishedAt.UTC().Format(time.RFC3339), v.String())
		}
		if err := columns.Flush(); err != nil {
			return written(err)
		}
		if left := r.Total() - len(r.Violations); left > 0 {
			if err := printf(w, "… and %d more\n", left); err != nil {
				return err
			}
		}
	}
	if r.Events == 0 && retain == 0 {
		return printf(w, "nothing to audit: relay.retain (OUTBOX_RETAIN) is 0, so there is no archive\n")
	}
	err := printf(w, "compared %s of the archive with stream %s (%d messages read, %s): %d missing, %d twice, %d out of order\n",
		eventCount(r.Events), visible(r.Scope.Stream), r.Messages, age(r.Took.Seconds()), r.Count[audit.Missing], r.Count[audit.Twice], r.Count[audit.Order])
	if err == nil && r.Unchecked > 0 {
		err = printf(w, "unchecked: %s, which the stream's limits or a purge may have removed\n", eventCount(r.Unchecked))
	}
	if err == nil && r.Late > 0 {
		err = printf(w, "late: %s, stored and settled after later ones of the aggregate, as requeued dead letters and replayed events are\n", eventCount(r.Late))
	}
	return err
}
