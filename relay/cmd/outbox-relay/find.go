package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/store"
)

// findMost is how many events are shown of an aggregate unless --limit says otherwise.
const findMost = 100

func newFindCommand(p *process) *cobra.Command {
	var (
		limit  int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "find ID | SEQ | TYPE/ID",
		Short: "Tell where an event is, or the events of an aggregate",
		Long: `Tell where an event is: pending, and how many are ahead of it; refused, and when it is tried again;
waiting for an earlier event of its aggregate; held by a dead letter; a dead letter; or published, to
which stream and when, as long as the archive has it.

It takes an event's id (a UUID), its seq (a number), or an aggregate's type and id: Order/17. It asks the
database only, so it works whether or not a relay runs.

The exit code is 1 if nothing is found. Such an event was never committed, was published so long ago
that the archive has let it go (retain), or was discarded.`,
		Args: usage(oneArg),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, ok := parseFindKey(args[0])
			if !ok {
				return wrongCommand(cmd, fmt.Errorf("%q is neither an event id (a UUID) nor a seq (a number) nor an aggregate (TYPE/ID)", args[0]))
			}
			if limit < 1 {
				return wrongCommand(cmd, fmt.Errorf("--limit is %d, want 1 or more", limit))
			}
			outbox, err := p.outbox()
			if err != nil {
				return err
			}
			found, err := outbox.Find(cmd.Context(), key, limit)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(p.stdout, foundEvents(found))
			} else {
				err = writeFound(p.stdout, found)
			}
			if err == nil && len(found) == 0 {
				err = errors.New("not in the outbox, not among the dead letters and not in the archive: it was never committed, was discarded, or was published longer ago than retain")
			}
			return err
		},
	}
	cmd.Flags().IntVar(&limit, "limit", findMost, "show at most `N` events")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// parseFindKey reads what to look for. An aggregate's type ends at the first slash.
func parseFindKey(arg string) (store.FindKey, bool) {
	if aggregateType, id, ok := strings.Cut(arg, "/"); ok {
		return store.FindKey{AggregateType: aggregateType, AggregateID: id}, aggregateType != "" && id != ""
	}
	if seq, err := strconv.ParseInt(strings.TrimPrefix(arg, "seq:"), 10, 64); err == nil {
		return store.FindKey{Seq: seq}, true
	}
	id, err := parseID(arg)
	return store.FindKey{ID: id}, err == nil && id != uuid.Nil
}

// foundEvent is what find --json shows. Programs read this: fields may be added, not changed.
type foundEvent struct {
	Seq           int64            `json:"seq"`
	ID            uuid.UUID        `json:"id"`
	Place         store.Place      `json:"place"`
	Topic         string           `json:"topic"`
	AggregateType string           `json:"aggregate_type"`
	AggregateID   string           `json:"aggregate_id"`
	EventType     string           `json:"event_type"`
	DataBytes     int64            `json:"data_bytes"`
	CreatedAt     store.Timestamp  `json:"created_at"`
	Attempts      int              `json:"attempts"`
	Reason        string           `json:"reason,omitempty"`
	Ahead         *countStatus     `json:"ahead,omitempty"` // Only of one in the outbox.
	Behind        *int64           `json:"waits_for_seq,omitempty"`
	RetryAt       *store.Timestamp `json:"retry_at,omitempty"`
	Letter        *int64           `json:"letter,omitempty"`
	DiedAt        *store.Timestamp `json:"died_at,omitempty"`
	Stream        string           `json:"stream,omitempty"`
	After         *uint64          `json:"after_stream_sequence,omitempty"`
	PublishedAt   *store.Timestamp `json:"published_at,omitempty"`
	Cut           []string         `json:"cut,omitempty"`
}

func foundEvents(found []store.FoundEvent) []foundEvent {
	events := make([]foundEvent, len(found))
	for i := range found {
		e := &found[i]
		events[i] = foundEvent{
			Seq: e.Seq, ID: e.ID, Place: e.Place, Topic: e.Topic, AggregateType: e.AggregateType, AggregateID: e.AggregateID, EventType: e.EventType,
			DataBytes: e.DataSize, CreatedAt: e.CreatedAt, Attempts: e.Attempts, Reason: e.Reason, Stream: e.Stream, Cut: e.Cut,
		}
		to := &events[i]
		switch e.Place {
		case store.PlacePending:
			to.Ahead = countOf(&e.Ahead)
		case store.PlaceRetrying:
			to.Ahead, to.RetryAt = countOf(&e.Ahead), &e.RetryAt
		case store.PlaceWaiting:
			to.Ahead, to.Behind, to.RetryAt = countOf(&e.Ahead), &e.Behind, &e.RetryAt
		case store.PlaceHeld:
			to.Ahead, to.Behind = countOf(&e.Ahead), &e.Behind
		case store.PlaceDead:
			to.Letter, to.DiedAt = &e.Letter, &e.DiedAt
		case store.PlacePublished:
			to.After, to.PublishedAt = &e.After, &e.PublishedAt
		}
	}
	return events
}

func writeFound(w io.Writer, found []store.FoundEvent) error {
	if len(found) == 0 {
		return nil
	}
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "SEQ\tID\tAGGREGATE\tEVENT TYPE\tWHERE")
	for i := range found {
		e := &found[i]
		fmt.Fprintf(columns, "%d\t%s\t%s/%s\t%s\t%s\n", e.Seq, e.ID, brief(e.AggregateType), brief(e.AggregateID), brief(e.EventType), visible(shorten(e.String(), 400)))
	}
	return written(columns.Flush())
}
