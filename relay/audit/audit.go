package audit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream/history"
)

// Archive is what an audit asks of the outbox. *store.Outbox implements it.
type Archive interface {
	AuditScope(ctx context.Context, stream string, since store.Moment) (store.AuditScope, error)
	Audit(ctx context.Context, s store.AuditScope, share, shares int, visit func(store.AuditedEvent)) error
	AuditMoved(ctx context.Context, s store.AuditScope, events []store.AuditedEvent) (map[uuid.UUID]struct{}, error)
	AuditCopies(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]struct{}, error)
	Published(ctx context.Context, filter store.ReplayFilter, limit int) ([]store.PublishedEvent, int, error)
}

// Stream is what an audit asks of the stream. *history.Reader implements it.
type Stream interface {
	Extent(ctx context.Context) (history.Extent, error)
	Follow(ctx context.Context, s history.Stretch, visit func(*history.Message) error) error
	Find(ctx context.Context, sequence uint64) (history.Found, error)
}

// Defaults of Options.
const (
	DefaultPatience = 10 * time.Second
	DefaultLimit    = 10_000
)

// shareSize is how many events are compared at once.
const shareSize = 2_000_000

// recheck is how long to wait before missing events are looked for again.
const recheck = time.Second

// Options say what to audit. Only Stream is needed.
type Options struct {
	// Stream is the stream's name.
	Stream string
	// Since selects the events that were recorded as published from then on. The zero value selects the whole archive.
	Since store.Moment
	// Patience is for how long missing events are looked for before they are named. The relay notices within seconds that the
	// broker has lost events, and puts them back. Default: DefaultPatience.
	Patience time.Duration
	// Limit is how many violations are named; the others are counted. Default: DefaultLimit.
	Limit int

	shareSize int // Default: shareSize.
}

// Kind is what is wrong with an event.
type Kind string

// The kinds of violations.
const (
	// Missing: the stream does not have the event.
	Missing Kind = "missing"
	// Twice: the stream has the event more than once.
	Twice Kind = "twice"
	// Order: the event is stored after an event of its aggregate that has a higher seq.
	Order Kind = "order"
)

// Kinds returns all kinds.
func Kinds() []Kind { return []Kind{Missing, Twice, Order} }

// Violation is an event that breaks the claim.
type Violation struct {
	store.Ref

	Kind Kind
	// Topic and the next three are the event's, as [store.Outbox.Published] cuts them. They are empty if the archive was
	// emptied meanwhile.
	Topic, AggregateType, AggregateID, EventType string
	// PublishedAt is when it was recorded that the event is published.
	PublishedAt time.Time
	// Stored are the sequences at which the stream has the event.
	Stored []uint64
	// After is the event with a higher seq that is stored before it, at AfterStored, if Kind is Order.
	After       store.Ref
	AfterStored uint64
}

// String says what is wrong, in one line, without the producer's names.
func (v *Violation) String() string {
	switch v.Kind {
	case Missing:
		return "missing: the archive has it, and the stream does not"
	case Twice:
		return fmt.Sprintf("twice: stored at the stream's sequences %s", join(v.Stored))
	case Order:
		return fmt.Sprintf("out of order: stored at the stream's sequence %s, after seq %d, which is at %d", join(v.Stored), v.After.Seq, v.AfterStored)
	}
	return string(v.Kind)
}

func join(sequences []uint64) string {
	text := fmt.Sprint(sequences)
	return text[1 : len(text)-1]
}

// Report is what an audit has found.
type Report struct {
	Scope store.AuditScope
	// Events is how many archived events were compared with the stream, and Messages how many messages of the stream were
	// read.
	Events, Messages int
	// Unchecked is how many of the events the stream need not have any more, and has not.
	Unchecked int
	// Late is how many events were stored after events of their aggregate with a higher seq, and settled after these: dead
	// letters that were requeued, and events that were replayed.
	Late int
	// Count is how many violations there are of each kind, and Violations names them, in seq order: Options.Limit at most.
	Count      map[Kind]int
	Violations []Violation
	// Took is how long it took.
	Took time.Duration
}

// Total returns how many violations there are.
func (r *Report) Total() int { return r.Count[Missing] + r.Count[Twice] + r.Count[Order] }

var (
	// ErrConsumed says that the stream removes what was consumed, so there is nothing to compare.
	ErrConsumed = errors.New("the stream removes messages that were consumed (work-queue or interest retention): it has no history to audit")
	// ErrReplaced says that the stream was replaced, or went back, during the audit.
	ErrReplaced = errors.New("the stream was replaced, or has lost messages, during the audit; the relay mends that if it can: run the audit again")
)

// Run compares the archive with the stream. It changes nothing. An error says that it could not be done.
func Run(ctx context.Context, archive Archive, stream Stream, o Options) (Report, error) {
	begun := time.Now()
	o.Patience, o.Limit, o.shareSize = cmp.Or(o.Patience, DefaultPatience), cmp.Or(o.Limit, DefaultLimit), cmp.Or(o.shareSize, shareSize)
	r := Report{Count: make(map[Kind]int)}
	extent, err := stream.Extent(ctx)
	switch {
	case err != nil:
		return r, err
	case extent.Consumed:
		return r, ErrConsumed
	}
	if r.Scope, err = archive.AuditScope(ctx, o.Stream, o.Since); err != nil {
		return r, err
	}
	shares := int(r.Scope.Events)/o.shareSize + 1
	for share := range shares {
		c := comparison{archive: archive, stream: stream, options: o, report: &r, again: make(map[store.Ref][]uint64)}
		if err := c.load(ctx, share, shares); err != nil {
			return r, err
		}
		if err := c.compare(ctx); err != nil {
			return r, err
		}
	}
	slices.SortFunc(r.Violations, func(a, b Violation) int { return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Kind, b.Kind)) })
	r.Took = time.Since(begun)
	return r, nil
}

// entry is an archived event, and where the stream has it.
type entry struct {
	store.AuditedEvent

	stored uint64 // The first place; 0 for none.
}

// comparison compares one share of the archive.
type comparison struct {
	archive Archive
	stream  Stream
	options Options
	report  *Report

	entries []entry // Ordered by id and seq.
	again   map[store.Ref][]uint64
	created time.Time // When the stream was created.
	read    uint64    // Up to where the stream was read.
	asked   int       // How many single messages were asked for.
}

// load reads the share from the archive.
func (c *comparison) load(ctx context.Context, share, shares int) error {
	c.entries = make([]entry, 0, int(c.report.Scope.Events)/shares*21/20+1)
	err := c.archive.Audit(ctx, c.report.Scope, share, shares, func(e store.AuditedEvent) {
		c.entries = append(c.entries, entry{AuditedEvent: e})
	})
	if err != nil {
		return err
	}
	slices.SortFunc(c.entries, func(a, b entry) int { return compareRefs(a.Ref, b.Ref) })
	// An event that was put back may have several copies: the latest tells when it was settled.
	kept := 0
	for i := range c.entries {
		e := &c.entries[i]
		if kept > 0 && c.entries[kept-1].Ref == e.Ref {
			last := &c.entries[kept-1]
			last.After, last.PublishedAt = min(last.After, e.After), max(last.PublishedAt, e.PublishedAt)
			continue
		}
		c.entries[kept] = *e
		kept++
	}
	c.entries = c.entries[:kept]
	c.report.Events += kept
	return nil
}

func compareRefs(a, b store.Ref) int {
	return cmp.Or(bytes.Compare(a.ID[:], b.ID[:]), cmp.Compare(a.Seq, b.Seq))
}

// compare reads the stream and judges.
func (c *comparison) compare(ctx context.Context) error {
	if len(c.entries) == 0 {
		return nil
	}
	extent, err := c.stream.Extent(ctx)
	if err != nil {
		return err
	}
	c.created = extent.Created
	if scope := &c.report.Scope; !scope.StreamCreated.Equal(extent.Created.Truncate(time.Microsecond)) {
		for i := range c.entries {
			c.entries[i].After = 0 // They are another stream's sequences.
		}
	}
	c.read = extent.Last // If the broker has lost what is in the archive, there may be nothing after their After.
	for i := range c.entries {
		c.read = min(c.read, c.entries[i].After)
	}
	if err := c.readUntil(ctx, extent.Last); err != nil {
		return err
	}
	missing, err := c.missing(ctx)
	if err != nil {
		return err
	}
	var violations []Violation
	for _, e := range missing {
		violations = append(violations, Violation{Ref: e.Ref, Kind: Missing, PublishedAt: time.UnixMicro(e.PublishedAt)})
	}
	twice, err := c.twice(ctx)
	if err != nil {
		return err
	}
	order, err := c.order(ctx)
	if err != nil {
		return err
	}
	return c.name(ctx, append(append(violations, twice...), order...))
}

// readUntil reads the stream on up to a sequence.
func (c *comparison) readUntil(ctx context.Context, until uint64) error {
	switch {
	case until < c.read:
		return ErrReplaced
	case until == c.read: // Also 0: an empty stream, which Follow would read for ever.
		return nil
	}
	err := c.stream.Follow(ctx, history.Stretch{Above: c.read, Until: until}, func(m *history.Message) error {
		c.report.Messages++
		if !m.Event {
			return nil
		}
		ref := store.Ref{Seq: m.Seq, ID: m.ID}
		i, known := slices.BinarySearchFunc(c.entries, ref, func(e entry, ref store.Ref) int { return compareRefs(e.Ref, ref) })
		switch {
		case !known:
		case c.entries[i].stored == 0:
			c.entries[i].stored = m.Stored
		default:
			c.again[ref] = append(c.again[ref], m.Stored)
		}
		return nil
	})
	c.read = until
	return err
}

// missing returns the events that the stream has not, although it should, and still has not after some time.
func (c *comparison) missing(ctx context.Context) ([]store.AuditedEvent, error) {
	deadline := time.Now().Add(c.options.Patience)
	for {
		extent, err := c.extent(ctx)
		if err != nil {
			return nil, err
		}
		var missing []store.AuditedEvent
		unchecked := 0
		for i := range c.entries {
			switch e := &c.entries[i]; {
			case e.stored > 0:
			case extent.Gaps || e.After+1 < extent.First:
				unchecked++
			default:
				missing = append(missing, e.AuditedEvent)
			}
		}
		if len(missing) > 0 {
			moved, err := c.archive.AuditMoved(ctx, c.report.Scope, missing)
			if err != nil {
				return nil, err
			}
			missing = slices.DeleteFunc(missing, func(e store.AuditedEvent) bool {
				_, ok := moved[e.ID]
				return ok
			})
		}
		if len(missing) == 0 || !time.Now().Before(deadline) {
			c.report.Unchecked += unchecked
			return missing, nil
		}
		wait := time.NewTimer(min(recheck, time.Until(deadline)))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil, context.Cause(ctx)
		}
		// What was put back may be stored by now.
		if extent, err = c.extent(ctx); err != nil {
			return nil, err
		}
		if err := c.readUntil(ctx, extent.Last); err != nil {
			return nil, err
		}
	}
}

// extent asks for the stream's extent, and whether it still is the stream that was read.
func (c *comparison) extent(ctx context.Context) (history.Extent, error) {
	extent, err := c.stream.Extent(ctx)
	if err == nil && (!extent.Created.Equal(c.created) || extent.Last < c.read) {
		err = ErrReplaced
	}
	return extent, err
}

// twice returns the events that the stream has more than once.
func (c *comparison) twice(ctx context.Context) ([]Violation, error) {
	var violations []Violation
	for ref, again := range c.again {
		i, _ := slices.BinarySearchFunc(c.entries, ref, func(e entry, ref store.Ref) int { return compareRefs(e.Ref, ref) })
		v := Violation{Ref: ref, Kind: Twice, PublishedAt: time.UnixMicro(c.entries[i].PublishedAt), Stored: append([]uint64{c.entries[i].stored}, again...)}
		// If the broker lost messages while they were read, the relay has published them again.
		there := 0
		for _, sequence := range v.Stored {
			ok, err := c.has(ctx, sequence, ref)
			if err != nil {
				return nil, err
			}
			if ok {
				there++
			}
		}
		if there > 1 {
			violations = append(violations, v)
		}
	}
	return violations, nil
}

// has reports whether the stream still has an event at a sequence where it was read. It does not ask about more events than
// are going to be named.
func (c *comparison) has(ctx context.Context, sequence uint64, ref store.Ref) (bool, error) {
	if c.asked++; c.asked > 2*c.options.Limit {
		return true, nil
	}
	found, err := c.stream.Find(ctx, sequence)
	return found.Event && found.ID == ref.ID && found.Seq == ref.Seq, err
}

// order returns the events that are stored after events of their aggregate with a higher seq. It reorders the entries.
func (c *comparison) order(ctx context.Context) ([]Violation, error) {
	slices.SortFunc(c.entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Aggregate, b.Aggregate), cmp.Compare(a.stored, b.stored))
	})
	var (
		violations      []Violation
		together        []uuid.UUID // Of those that were settled with what is stored before them.
		highest, former *entry      // Of the same aggregate, stored before.
	)
	for i := range c.entries {
		e := &c.entries[i]
		if e.stored == 0 {
			continue
		}
		if highest == nil || highest.Aggregate != e.Aggregate {
			highest, former = e, e
			continue
		}
		var before *entry
		for _, f := range []*entry{former, highest} {
			if f.Seq > e.Seq && f.PublishedAt >= e.PublishedAt && (before == nil || f.PublishedAt > before.PublishedAt) {
				before = f
			}
		}
		switch {
		case before != nil:
			violations = append(violations, Violation{
				Ref: e.Ref, Kind: Order, PublishedAt: time.UnixMicro(e.PublishedAt), Stored: []uint64{e.stored}, After: before.Ref, AfterStored: before.stored,
			})
			if before.PublishedAt == e.PublishedAt {
				together = append(together, e.ID)
			}
		case highest.Seq > e.Seq:
			c.report.Late++
		}
		if former = e; e.Seq > highest.Seq {
			highest = e
		}
	}
	return c.confirmOrder(ctx, violations, together)
}

// confirmOrder leaves out events that were replayed with new ids, and those that the stream has not where it was read. A replay
// draws seqs, and does not lock the aggregates: a producer may commit higher ones first, and the relay settle both in one round trip.
func (c *comparison) confirmOrder(ctx context.Context, violations []Violation, together []uuid.UUID) ([]Violation, error) {
	var copies map[uuid.UUID]struct{}
	if len(together) > 0 {
		var err error
		if copies, err = c.archive.AuditCopies(ctx, together); err != nil {
			return nil, err
		}
	}
	confirmed := violations[:0]
	for _, v := range violations {
		if _, ok := copies[v.ID]; ok {
			c.report.Late++
			continue
		}
		there, err := c.has(ctx, v.Stored[0], v.Ref)
		if err == nil && there {
			there, err = c.has(ctx, v.AfterStored, v.After)
		}
		if err != nil {
			return nil, err
		}
		if there {
			confirmed = append(confirmed, v)
		}
	}
	return confirmed, nil
}

// name counts violations, and adds those that there is room for to the report, with the producer's names.
func (c *comparison) name(ctx context.Context, violations []Violation) error {
	for i := range violations {
		c.report.Count[violations[i].Kind]++
	}
	slices.SortFunc(violations, func(a, b Violation) int { return cmp.Compare(a.Seq, b.Seq) })
	violations = violations[:min(len(violations), max(c.options.Limit-len(c.report.Violations), 0))]
	if len(violations) == 0 {
		return nil
	}
	var filter store.ReplayFilter
	for i := range violations {
		filter.IDs = append(filter.IDs, violations[i].ID)
	}
	published, _, err := c.archive.Published(ctx, filter, 0)
	if err != nil {
		return err
	}
	names := make(map[store.Ref]*store.PublishedEvent, len(published))
	for i := range published {
		names[published[i].Ref] = &published[i]
	}
	for _, v := range violations {
		if e, ok := names[v.Ref]; ok {
			v.Topic, v.AggregateType, v.AggregateID, v.EventType = e.Topic, e.AggregateType, e.AggregateID, e.EventType
		}
		c.report.Violations = append(c.report.Violations, v)
	}
	return nil
}
