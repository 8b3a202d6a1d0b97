package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/store"
)

func newReplayCommand(p *process) *cobra.Command {
	r := replay{p: p}
	var limit int
	var dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "replay ID... | --all | --since TIME ...",
		Short: "Publish again what was published, from the archive",
		Long: `Put published events back into the outbox, from the archive, where the relay keeps them for
relay.retain. Name the events by their IDs (UUIDs), or select them by flags, all of which must match,
or take everything: --all. A TIME is one of RFC 3339, such as 2026-01-02T15:04:05Z, or how long ago
it was, such as 10m.

With --new-ids the events get new ids and new seqs. Consumers of the stream receive them again, as new
messages, after all pending events and in their old order.

Without --new-ids they keep id and seq, and the relay publishes only those that the stream no longer
has. The command ends the leader's session, and within a second or so a new term begins. The relay
reads the stream back from before the oldest of these events on, settles those that it finds, however
long ago they were published, and publishes the rest. If somebody removed an event from the stream, the
broker still takes it for a duplicate within the duplicate window: wait until that has passed, or use
--new-ids.`,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := r.parse(args); err != nil {
				return wrongCommand(cmd, err)
			}
			if limit < 0 {
				return wrongCommand(cmd, fmt.Errorf("--limit is %d, want 0 for all, or more", limit))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.open(); err != nil {
				return err
			}
			switch {
			case dryRun && asJSON:
				return r.listForPrograms(cmd.Context(), limit)
			case dryRun:
				return r.list(cmd.Context(), limit)
			default:
				return r.run(cmd.Context(), asJSON)
			}
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&r.all, "all", false, "take all, or all that the other flags select")
	flags.StringVar(&r.since, "since", "", "only those published at this `time` or later")
	flags.StringVar(&r.until, "until", "", "only those published before this `time`")
	flags.StringVar(&r.filter.Topic, "topic", "", "only those of this `topic`")
	flags.StringVar(&r.filter.AggregateType, "aggregate-type", "", "only those of this aggregate `type`")
	flags.StringVar(&r.filter.AggregateID, "aggregate-id", "", "only those of this aggregate `id`")
	flags.BoolVar(&r.newIDs, "new-ids", false, "make new events of them, so that consumers receive them again")
	flags.BoolVar(&dryRun, "dry-run", false, "only say what would be put back")
	flags.IntVar(&limit, "limit", 1000, "of a dry run, list at most `N`; 0 for all")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// replay is what a replay command works with.
type replay struct {
	p            *process
	all          bool
	since, until string
	newIDs       bool
	filter       store.ReplayFilter

	outbox *store.Outbox
	retain time.Duration
}

// parse reads the selection, and refuses one that is empty or contradicts itself.
func (r *replay) parse(args []string) error {
	flags := r.since != "" || r.until != "" || r.filter.Topic != "" || r.filter.AggregateType != "" || r.filter.AggregateID != ""
	switch {
	case len(args) > 0 && (r.all || flags):
		return errors.New("IDs exclude --all and the flags that select")
	case len(args) == 0 && !r.all && !flags:
		return errors.New("want IDs, or flags that select events, or --all")
	}
	for _, arg := range args {
		id, err := parseID(arg)
		if err != nil {
			return fmt.Errorf("ID %q is not an event id (a UUID)", arg)
		}
		r.filter.IDs = append(r.filter.IDs, id)
	}
	var err error
	if r.filter.Since, err = parseMoment("--since", r.since); err != nil {
		return err
	}
	r.filter.Until, err = parseMoment("--until", r.until)
	return err
}

// parseMoment reads a TIME. The database works out how long ago something was, by the clock that stamped the events.
func parseMoment(flag, text string) (store.Moment, error) {
	if text == "" {
		return store.Moment{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return store.Moment{Time: at}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago > 0 {
		return store.Moment{Ago: ago}, nil
	}
	return store.Moment{}, fmt.Errorf("%s is %q, want a time such as 2026-01-02T15:04:05Z, or how long ago, such as 10m", flag, text)
}

func (r *replay) open() error {
	c, err := r.p.config(config.NeedDatabase)
	if err != nil {
		return err
	}
	r.retain = c.Relay.Retain
	r.outbox, err = openOutbox(c)
	return err
}

func (r *replay) run(ctx context.Context, asJSON bool) error {
	replayed, err := r.outbox.Replay(ctx, r.filter, r.newIDs)
	switch {
	case err != nil:
		return err
	case asJSON:
		return writeJSON(r.p.stdout, struct {
			Replayed int `json:"replayed"`
			Left     int `json:"left,omitempty"` // Selected, and still in the archive.
		}{replayed.Back, replayed.Left})
	case replayed.Back == 0:
		return r.sayWhyNothing(ctx)
	}
	left := ""
	if replayed.Left > 0 {
		left = fmt.Sprintf("; %s the archive: the outbox already has them or another event with their seq, or they are dead letters; --new-ids publishes them nevertheless",
			stay(replayed.Left))
	}
	return printf(r.p.stdout, "put back %s%s\n", eventCount(replayed.Back), left)
}

func stay(events int) string {
	if events == 1 {
		return "1 event stays in"
	}
	return fmt.Sprintf("%d events stay in", events)
}

func (r *replay) list(ctx context.Context, limit int) error {
	events, total, err := r.outbox.Published(ctx, r.filter, limit)
	switch {
	case err != nil:
		return err
	case total == 0:
		return r.sayWhyNothing(ctx)
	}
	columns := tabwriter.NewWriter(r.p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "SEQ\tID\tTOPIC\tAGGREGATE TYPE\tAGGREGATE ID\tEVENT TYPE\tPUBLISHED AT\tSTREAM")
	for i := range events {
		e := &events[i]
		fmt.Fprintf(columns, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Seq, e.ID,
			brief(e.Topic), brief(e.AggregateType), brief(e.AggregateID), brief(e.EventType), e.PublishedAt.Format(time.RFC3339), brief(e.Stream))
	}
	if err := columns.Flush(); err != nil {
		return written(err)
	}
	if left := total - len(events); left > 0 {
		if err := printf(r.p.stdout, "… and %d more\n", left); err != nil {
			return err
		}
	}
	return printf(r.p.stdout, "would put back %s\n", eventCount(total))
}

// published is an archived event as replay --dry-run --json shows it. Programs read this: fields may be added, not
// changed.
type published struct {
	Seq           int64           `json:"seq"`
	ID            uuid.UUID       `json:"id"`
	Topic         string          `json:"topic"`
	AggregateType string          `json:"aggregate_type"`
	AggregateID   string          `json:"aggregate_id"`
	EventType     string          `json:"event_type"`
	Headers       json.RawMessage `json:"headers"`    // An object, or null.
	CreatedAt     store.Timestamp `json:"created_at"` // As in RFC 3339, except for what has no such form: "infinity", for example.
	PublishedAt   store.Timestamp `json:"published_at"`
	Stream        string          `json:"stream"`
	DataBytes     int64           `json:"data_bytes"`
	Cut           []string        `json:"cut,omitempty"` // Fields that were cut; headers are null instead.
}

func (r *replay) listForPrograms(ctx context.Context, limit int) error {
	events, total, err := r.outbox.Published(ctx, r.filter, limit)
	if err != nil {
		return err
	}
	list := make([]published, len(events))
	for i := range events {
		e := &events[i]
		list[i] = published{e.Seq, e.ID, e.Topic, e.AggregateType, e.AggregateID, e.EventType, e.Headers, e.CreatedAt, e.PublishedAt, e.Stream, e.DataSize, e.Cut}
	}
	return writeJSON(r.p.stdout, struct {
		Would  int         `json:"would_replay"`
		Events []published `json:"events"`
	}{total, list})
}

// sayWhyNothing says why there is nothing to put back.
func (r *replay) sayWhyNothing(ctx context.Context) error {
	_, selected, err := r.outbox.Published(ctx, r.filter, 1)
	if err != nil {
		return err
	}
	_, total, err := r.outbox.Published(ctx, store.ReplayFilter{}, 1)
	if err != nil {
		return err
	}
	why := fmt.Sprintf("the archive has %s, none of which is selected", eventCount(total))
	switch {
	case total == 0 && r.retain == 0:
		why = "the archive is empty, since relay.retain (OUTBOX_RETAIN) is 0: the relay keeps nothing of what it has published"
	case total == 0:
		why = fmt.Sprintf("the archive is empty: nothing was published within relay.retain (%v), or it has been put back already", r.retain)
	case selected > 0:
		why = fmt.Sprintf("%s selected, but already in the outbox or among the dead letters, or another event has the seq", eventCount(selected))
	}
	return printf(r.p.stdout, "nothing to put back: %s\n", why)
}
