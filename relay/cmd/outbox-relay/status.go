package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
)

func newStatusCommand(p *process) *cobra.Command {
	var asJSON, watch bool
	every := 2 * time.Second
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who leads, what is pending and what was given up",
		Long: `Show what the tables say: the current leader, its term number and when the term began, its
checkpoint, why it cannot publish, or who has paused it; how many events are pending, were given up or
are in the archive; how many aggregates are held or retried; how fast events are published, when the
last one was, and how long what is pending takes at that rate, if nothing else is inserted; how many
relays stand by, which could not lead, and why; and what keeps a relay from working, such as a lock.
Status asks only the database, so it works from any host, whether or not a relay runs. Large tables are
estimated, not counted. Rate and last event are the archive's (retain).

With --watch it goes on until it is interrupted, with bars and the trend of what is pending; with --json,
too, it writes an object each time.

If something cannot be read, the rest is shown, and the exit code is 1.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := p.config(config.NeedDatabase)
			if err != nil {
				return err
			}
			outbox, err := openOutbox(c)
			if err != nil {
				return err
			}
			look := func(ctx context.Context) (*status, error) {
				found, err := outbox.Inspect(ctx)
				if err != nil && found.Locked == nil && !found.Standby {
					return nil, err // There is no rest.
				}
				s := statusOf(c, outbox.Table(), &found)
				return &s, err
			}
			if watch {
				if every < minWatch {
					return wrongCommand(cmd, fmt.Errorf("--every is %v, want %v or more", every, minWatch))
				}
				return p.watch(cmd.Context(), every, asJSON, look)
			}
			s, inspectErr := look(cmd.Context())
			switch {
			case s == nil:
			case asJSON:
				err = writeJSON(p.stdout, s)
			default:
				err = s.write(p.stdout)
			}
			return cmp.Or(inspectErr, err)
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again and again")
	cmd.Flags().DurationVar(&every, "every", every, "how often, with --watch: `TIME`")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// minWatch is how often status --watch asks the database at most.
const minWatch = 200 * time.Millisecond

// status is what status --json shows. A field is null if it could not be read, or if there is no such thing. Programs read
// this: fields may be added, not changed.
type status struct {
	Table   string       `json:"table"`
	Leading *bool        `json:"leading"` // Whether somebody leads now; null if relays are not elected through Postgres.
	Terms   []termStatus `json:"terms"`   // Of each stream that was ever published to, the latest first.

	Pending       *countStatus `json:"waiting"`
	OldestPending *float64     `json:"oldest_waiting_seconds"`
	DeadLetters   *countStatus `json:"dead_letters"`
	Archive       *countStatus `json:"archive"`
	ArchiveBytes  *int64       `json:"archive_bytes"`

	Standby   bool     `json:"standby"`   // The server is a standby, and does not know who leads.
	DeadRows  *int64   `json:"dead_rows"` // An estimate of the rows that vacuum still has to remove from the outbox.
	Obstacles []string `json:"obstacles"` // What keeps a relay from working just now, such as a lock, and what to do.

	Candidates []candidateStatus `json:"candidates"` // The relays that say that they could not lead.

	Pause *pauseStatus `json:"pause"` // That a person has ordered; null for none.

	Held     *int64   `json:"held_aggregates"`
	Retrying *int64   `json:"retrying_aggregates"`
	Standbys *int     `json:"standbys"`
	Rate     *float64 `json:"published_per_second"` // In the past ten seconds; null if the archive is empty, as for the next.
	LastAgo  *float64 `json:"last_published_seconds"`
	Left     *float64 `json:"seconds_left"` // Until nothing is pending, at that rate, if nothing else is inserted; null if the rate is 0.
}

// termStatus is the latest term of one stream.
type termStatus struct {
	Stream        string     `json:"stream"`
	Outbox        uuid.UUID  `json:"outbox"`
	Term          int64      `json:"term"`
	Leader        string     `json:"leader"`
	Since         time.Time  `json:"since"`
	SinceSeconds  float64    `json:"since_seconds"`
	StreamCreated *time.Time `json:"stream_created"` // Null before the first checkpoint.
	Checkpoint    uint64     `json:"checkpoint"`

	Trouble *troubleStatus `json:"trouble"` // Why the leader cannot publish; null if it can, or has not said yet.
}

// troubleStatus is why a leader cannot publish, since when, and how long ago it said so. A leader says it again every few
// seconds.
type troubleStatus struct {
	Reason       string  `json:"reason"`
	SinceSeconds float64 `json:"since_seconds"`
	AgeSeconds   float64 `json:"age_seconds"`
}

// String is for a person.
func (t *troubleStatus) String() string {
	return fmt.Sprintf("for %s, as its leader said %s ago: %s", age(t.SinceSeconds), age(t.AgeSeconds), visible(t.Reason))
}

// candidateStatus is a relay that does not lead and says why it could not.
type candidateStatus struct {
	Name    string         `json:"name"`
	Stream  string         `json:"stream"` // That it would publish to.
	Trouble *troubleStatus `json:"trouble"`
}

// countStatus is how many events there are: exactly so many, or about.
type countStatus struct {
	Events int64 `json:"events"`
	Exact  bool  `json:"exact"`
}

func statusOf(c config.Config, table store.Table, found *store.Inspection) status {
	s := status{
		Table:        table.String(),
		Leading:      leading(c, found),
		Pending:      countOf(found.Waiting),
		DeadLetters:  countOf(found.Dead),
		Archive:      countOf(found.Archived),
		ArchiveBytes: found.ArchivedBytes,
		Standby:      found.Standby,
		DeadRows:     found.DeadRows,
		Obstacles:    []string{},
		Candidates:   []candidateStatus{},
		Pause:        pauseOf(found.Pause),
	}
	for _, h := range found.Obstacles() {
		s.Obstacles = append(s.Obstacles, h.Check+": "+h.Text)
	}
	for _, u := range found.Unfit {
		s.Candidates = append(s.Candidates, candidateStatus{u.Name, u.Stream, &troubleStatus{u.Trouble.Text, u.Trouble.For.Seconds(), u.Trouble.Age.Seconds()}})
	}
	s.Held, s.Retrying = found.Held, found.Retrying
	if !found.Standby {
		n := found.Standbys()
		s.Standbys = &n
	}
	if f := found.Flow; f != nil {
		last := f.Last.Seconds()
		s.Rate, s.LastAgo = &f.Rate, &last
		if f.Rate > 0 && found.Waiting != nil {
			left := float64(found.Waiting.Rows) / f.Rate
			s.Left = &left
		}
	}
	if found.Oldest != nil {
		seconds := found.Oldest.Seconds()
		s.OldestPending = &seconds
	}
	if found.Terms != nil {
		s.Terms = []termStatus{}
	}
	for _, r := range found.Terms {
		term := termStatus{
			Stream: r.Stream, Outbox: r.Outbox, Term: r.Number, Leader: r.Leader, Since: r.Since.UTC(), SinceSeconds: r.For.Seconds(),
			Checkpoint: r.Checkpoint.Sequence,
		}
		if !r.Checkpoint.Created.IsZero() {
			created := r.Checkpoint.Created.UTC()
			term.StreamCreated = &created
		}
		if trouble := r.Trouble; trouble.Text != "" {
			term.Trouble = &troubleStatus{trouble.Text, trouble.For.Seconds(), trouble.Age.Seconds()}
		}
		s.Terms = append(s.Terms, term)
	}
	return s
}

// leading reports whether somebody leads, as far as the database knows.
func leading(c config.Config, found *store.Inspection) *bool {
	if c.Election.Kind != relay.ElectionPostgres {
		return nil
	}
	return found.Locked
}

func countOf(c *store.Count) *countStatus {
	if c == nil {
		return nil
	}
	return &countStatus{c.Rows, c.Exact}
}

// String is for a person.
func (c *countStatus) String() string {
	switch {
	case c == nil:
		return unknown
	case c.Exact:
		return fmt.Sprint(c.Events)
	}
	return fmt.Sprintf("about %d", c.Events)
}

// unknown stands for what could not be read.
const unknown = "unknown"

// write writes the status for a person.
func (s *status) write(w io.Writer) error {
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(columns, "table\t%s\n", visible(s.Table))
	if s.Standby {
		fmt.Fprintf(columns, "server\ta standby, which does not know who leads: point database_dsn at the primary\n")
	}
	switch {
	case s.Terms == nil:
		fmt.Fprintf(columns, "leader\t%s\n", unknown)
	case len(s.Terms) == 0:
		fmt.Fprintf(columns, "leader\tnone so far\n")
	}
	for i, t := range s.Terms {
		fmt.Fprintf(columns, "stream\t%s\n", visible(t.Stream))
		leader := visible(t.Leader)
		if i == 0 {
			leader = s.present(leader)
		} else {
			leader += ", formerly"
		}
		fmt.Fprintf(columns, "  leader\t%s\n", leader)
		fmt.Fprintf(columns, "  term\t%d, since %s (%s)\n", t.Term, t.Since.Format(time.RFC3339), age(t.SinceSeconds))
		checkpoint := "none yet"
		if t.StreamCreated != nil {
			checkpoint = fmt.Sprintf("sequence %d of the stream that was created at %s", t.Checkpoint, t.StreamCreated.Format(time.RFC3339))
		}
		fmt.Fprintf(columns, "  checkpoint\t%s\n", checkpoint)
		if t.Trouble != nil {
			fmt.Fprintf(columns, "  paused\t%s\n", t.Trouble)
		}
	}
	if s.Pause != nil {
		fmt.Fprintf(columns, "paused by hand\t%s\n", s.Pause)
	}
	fmt.Fprintf(columns, "pending\t%v\n", s.Pending)
	if s.OldestPending != nil {
		fmt.Fprintf(columns, "oldest pending\tfor %s\n", age(*s.OldestPending))
	}
	if s.Rate != nil {
		published := rate(*s.Rate) + " in the past 10s, the last " + age(*s.LastAgo) + " ago"
		if s.Left != nil && s.Pending.Events > 0 {
			published += "; at that rate nothing is pending in " + age(*s.Left)
		}
		fmt.Fprintf(columns, "published\t%s\n", published)
	}
	fmt.Fprintf(columns, "dead letters\t%v\n", s.DeadLetters)
	if s.Held != nil && *s.Held > 0 {
		fmt.Fprintf(columns, "held\t%d aggregates wait for a decision about a dead letter\n", *s.Held)
	}
	if s.Retrying != nil && *s.Retrying > 0 {
		fmt.Fprintf(columns, "retrying\t%d aggregates wait for another attempt\n", *s.Retrying)
	}
	archive := s.Archive.String()
	if s.ArchiveBytes != nil {
		archive += ", " + size(*s.ArchiveBytes)
	}
	fmt.Fprintf(columns, "archive\t%s\n", archive)
	if s.Standbys != nil {
		standbys := strconv.Itoa(*s.Standbys)
		if s.Leading == nil && *s.Standbys > 0 {
			standbys += ", the leader perhaps among them"
		}
		fmt.Fprintf(columns, "standbys\t%s\n", standbys)
	}
	for _, c := range s.Candidates {
		fmt.Fprintf(columns, "cannot lead\t%s, for %s, as it said %s ago: %s\n", visible(c.Name), age(c.Trouble.SinceSeconds), age(c.Trouble.AgeSeconds), visible(c.Trouble.Reason))
	}
	for _, obstacle := range s.Obstacles {
		fmt.Fprintf(columns, "obstacle\t%s\n", obstacle)
	}
	return written(columns.Flush())
}

// present says of the latest leader whether it still leads.
func (s *status) present(leader string) string {
	switch {
	case s.Leading == nil:
		return leader + ", as far as the database knows"
	case *s.Leading:
		return leader
	}
	return "none now; the latest was " + leader
}

// age is how long something lasts, as precise as a person cares for.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < time.Minute {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// size is a number of bytes for a person.
func size(bytes int64) string {
	const unit = 1024
	switch {
	case bytes < unit*unit:
		return fmt.Sprintf("%d KiB", bytes/unit)
	case bytes < unit*unit*unit:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/unit/unit)
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/unit/unit/unit)
}
