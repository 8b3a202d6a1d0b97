package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/store"
)

func newDeadCommand(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "List, show, requeue and discard events that were given up",
		Long: `List, show, requeue and discard the dead letters: events that the broker refused as often as
max_attempts allows or, where trying again cannot help, once. An outage makes no dead letters.

A KEY is a dead letter's seq, its event id (a UUID) or, as two dead letters may have the same seq or id,
its own number: letter:7. Dead list shows all three. A dead letter that could not be moved out of the
outbox has no number; it is listed as "in outbox", and its seq names it or, if that is not enough,
outbox:7.`,
		Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return wrongCommand(cmd, errors.New("dead: want one of list, show, requeue and discard"))
		},
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(newDeadListCommand(p), newDeadShowCommand(p), newDeadRequeueCommand(p), newDeadDiscardCommand(p))
	return cmd
}

func newDeadListCommand(p *process) *cobra.Command {
	var filter store.DeadFilter
	var after int64
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters in the order of their seq",
		Args:  usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if filter.Limit < 0 {
				return wrongCommand(cmd, fmt.Errorf("--limit is %d, want 0 for all, or more", filter.Limit))
			}
			outbox, err := p.outbox()
			if err != nil {
				return err
			}
			var out listing = newTable(p.stdout)
			if asJSON {
				out = newArray(p.stdout)
			}
			if cmd.Flags().Changed("after") {
				filter.After = &store.DeadPlace{Seq: after, Letter: math.MaxInt64}
			}
			if err := eachPage(cmd.Context(), outbox, filter, out.add); err != nil {
				return err
			}
			return out.end()
		},
	}
	filterFlags(cmd, &filter)
	cmd.Flags().IntVar(&filter.Limit, "limit", 0, "list at most `N`; 0 for all")
	cmd.Flags().Int64Var(&after, "after", 0, "list those with a higher `seq`; for the next page, the last seq of this one")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func newDeadShowCommand(p *process) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show KEY",
		Short: "Show a dead letter with its payload",
		Long: `Show a dead letter with its payload. A payload is shown up to 16 MiB (up to 64 KiB without --json), any
other value up to 1 MiB; what is cut is marked.`,
		Args: usage(oneArg),
		RunE: func(cmd *cobra.Command, args []string) error {
			outbox, keys, err := p.letters(cmd, args)
			if err != nil {
				return err
			}
			letter, err := outbox.DeadLetter(cmd.Context(), keys[0])
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(p.stdout, detailOf(&letter))
			}
			return show(p.stdout, &letter)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// letters returns the configured outbox, and the keys that the arguments are.
func (p *process) letters(cmd *cobra.Command, args []string) (*store.Outbox, []store.DeadKey, error) {
	keys, err := parseKeys(cmd, args)
	if err != nil {
		return nil, nil, err
	}
	outbox, err := p.outbox()
	return outbox, keys, err
}

func newDeadRequeueCommand(p *process) *cobra.Command {
	var options store.RequeueOptions
	cmd, selected := newTakeCommand(p, "requeued", func(o *store.Outbox) taker {
		return func(ctx context.Context, keys ...store.DeadKey) (int, error) {
			return o.RequeueWith(ctx, options, keys...)
		}
	})
	cmd.Use = "requeue KEY... | --all"
	cmd.Short = "Put dead letters back into the outbox"
	cmd.Long = `Put dead letters back into the outbox, with their seq and no attempts, so that they are published before
the later events of their aggregate. If another event has the seq by now, the dead letter gets a new one.
The relay notices at once.

An event that is larger than the broker takes would only be given up again. Such a KEY is refused, and
--all leaves the event where it is, unless --force is given. The size is the one that the broker took
when a relay last asked.

With --set-header each event gets that header, in place of one of the same name.

Either all KEYs are requeued or, if one of them is not there, none. What was done, and by whom, is logged.`
	cmd.DisableFlagsInUseLine = true
	selected.bind(cmd)
	cmd.Flags().StringToStringVar(&options.SetHeaders, "set-header", nil, "set a header of each event: `NAME=VALUE`")
	cmd.Flags().BoolVar(&options.AnySize, "force", false, "requeue events that are larger than the broker takes, too")
	return cmd
}

func newDeadDiscardCommand(p *process) *cobra.Command {
	cmd, selected := newTakeCommand(p, "discarded", func(o *store.Outbox) taker { return o.Discard })
	cmd.Use = "discard KEY... | --all --yes"
	cmd.Short = "Remove dead letters for good"
	cmd.DisableFlagsInUseLine = true
	cmd.Long = `Remove dead letters for good. With on_dead = "hold", the later events of their aggregates then go on.

Either all KEYs are discarded or, if one of them is not there, none. What was done, and by whom, is logged.`
	selected.bind(cmd)
	cmd.Flags().BoolVar(&selected.yes, "yes", false, "confirm --all")
	selected.confirm = true
	return cmd
}

// selection is which dead letters a command takes.
type selection struct {
	all     bool
	filter  store.DeadFilter // Narrows all.
	yes     bool
	confirm bool // All needs yes.
}

func (s *selection) bind(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.all, "all", false, "take all, or all that the other flags select")
	filterFlags(cmd, &s.filter)
	cmd.Flags().IntVar(&s.filter.Limit, "limit", 0, "take at most `N`, the first by their seq; 0 for all")
}

// check finds what does not go together.
func (s *selection) check(cmd *cobra.Command, args []string) error {
	var err error
	switch {
	case s.all && len(args) > 0:
		err = errors.New("KEYs and --all exclude each other")
	case s.all && s.confirm && !s.yes:
		err = errors.New("--all removes every dead letter that is selected, for good: add --yes")
	case s.filter.Limit < 0:
		err = fmt.Errorf("--limit is %d, want 0 for all, or more", s.filter.Limit)
	case s.all:
	case s.filter != store.DeadFilter{}:
		err = errors.New("--topic, --error, --limit and so on narrow --all, which is not there")
	case len(args) == 0:
		err = errors.New("want KEYs, or --all")
	}
	if err != nil {
		return wrongCommand(cmd, err)
	}
	return nil
}

// taker takes dead letters away: all of keys, or none with an error.
type taker func(ctx context.Context, keys ...store.DeadKey) (int, error)

// newTakeCommand returns a command that takes dead letters away, one way or the other.
func newTakeCommand(p *process, done string, of func(*store.Outbox) taker) (*cobra.Command, *selection) {
	var s selection
	var asJSON bool
	cmd := &cobra.Command{
		Args: s.check,
		RunE: func(cmd *cobra.Command, args []string) error {
			outbox, keys, err := p.letters(cmd, args)
			if err != nil {
				return err
			}
			take := p.audited(done, of(outbox))
			taken := 0
			if s.all {
				taken, err = takeAll(cmd.Context(), outbox, s.filter, take)
			} else {
				taken, err = take(cmd.Context(), keys...)
			}
			switch {
			case err != nil && taken > 0:
				return fmt.Errorf("%s %s, then failed: %w", done, count(taken), err)
			case err != nil:
				return err
			}
			if asJSON {
				return writeJSON(p.stdout, map[string]int{done: taken})
			}
			return printf(p.stdout, "%s %s\n", done, count(taken))
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd, &s
}

// audited logs what was taken, and by whom: at each page, so that the log is right even if the command is killed.
func (p *process) audited(done string, take taker) taker {
	log := p.logger(config.FormatText, slog.LevelInfo)
	if c, err := p.config(config.NeedDatabase); err == nil {
		log = p.logger(c.Logging.Format, slog.LevelInfo)
	}
	return func(ctx context.Context, keys ...store.DeadKey) (int, error) {
		n, err := take(ctx, keys...)
		if n > 0 {
			names := make([]string, 0, len(keys))
			for _, key := range keys {
				names = append(names, key.String())
			}
			log.LogAttrs(ctx, slog.LevelInfo, "dead letters taken away", slog.String("how", done), slog.Int("letters", n), slog.String("by", operator()), slog.Any("keys", names))
		}
		return n, err
	}
}

// takeAll takes a page at a time, each in a transaction of its own. It goes by ascending seq, so it ends even if a
// relay keeps giving up what it puts back. What is too large to be put back is left, and the error at the end.
func takeAll(ctx context.Context, outbox *store.Outbox, filter store.DeadFilter, take taker) (taken int, err error) {
	var left *store.TooLargeError
	err = eachPage(ctx, outbox, filter, func(letters []store.DeadLetter) error {
		keys := make([]store.DeadKey, len(letters))
		for i := range letters {
			keys[i] = letters[i].Key()
		}
		n, err := take(ctx, keys...)
		if tooLarge, ok := errors.AsType[*store.TooLargeError](err); ok {
			keys = slices.DeleteFunc(keys, func(key store.DeadKey) bool { return slices.Contains(tooLarge.Keys, key) })
			if left == nil {
				left = tooLarge
			} else {
				left.Keys = append(left.Keys, tooLarge.Keys...)
			}
			n, err = take(ctx, keys...)
		}
		taken += n
		return err
	})
	if err == nil && left != nil {
		err = left
	}
	return taken, err
}

// pageSize bounds what of a long list is in memory.
const pageSize = 250

// eachPage calls use with the dead letters that filter selects, without payloads, page by page.
func eachPage(ctx context.Context, outbox *store.Outbox, filter store.DeadFilter, use func([]store.DeadLetter) error) error {
	left := filter.Limit
	if left == 0 {
		left = math.MaxInt
	}
	for {
		filter.Limit = min(left, pageSize)
		letters, err := outbox.DeadLetters(ctx, filter, false)
		if err != nil {
			return err
		}
		if len(letters) > 0 {
			if err := use(letters); err != nil {
				return err
			}
			last := &letters[len(letters)-1]
			filter.After = &store.DeadPlace{Seq: last.Seq, Letter: last.Letter}
		}
		left -= len(letters)
		if left == 0 || len(letters) < filter.Limit {
			return nil
		}
	}
}

// parseKeys reads KEYs. One that is given twice counts once.
func parseKeys(cmd *cobra.Command, args []string) ([]store.DeadKey, error) {
	var keys []store.DeadKey
	for _, arg := range args {
		key, ok := parseKey(arg)
		if !ok {
			return nil, wrongCommand(cmd, fmt.Errorf("KEY %q is neither a seq (a number) nor an event id (a UUID) nor a letter's number (letter:7)", arg))
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// parseKey reads a KEY: a number is a seq, a UUID an event id. A seq that is negative, as a foreign row's may be, would be
// taken for a flag, and is written as seq:-7.
func parseKey(arg string) (store.DeadKey, bool) {
	if text, ok := strings.CutPrefix(arg, "outbox:"); ok {
		seq, err := strconv.ParseInt(text, 10, 64)
		return store.DeadKey{Seq: seq, Kept: true}, err == nil
	}
	if text, ok := strings.CutPrefix(arg, "letter:"); ok {
		letter, err := strconv.ParseInt(text, 10, 64)
		return store.DeadKey{Letter: letter}, err == nil && letter > 0
	}
	if seq, err := strconv.ParseInt(strings.TrimPrefix(arg, "seq:"), 10, 64); err == nil {
		return store.DeadKey{Seq: seq}, true
	}
	id, err := parseID(arg)
	return store.DeadKey{ID: id}, err == nil && id != uuid.Nil
}

// parseID reads a UUID in its usual form.
func parseID(arg string) (uuid.UUID, error) {
	const canonical = len("00000000-0000-0000-0000-000000000000")
	if len(arg) != canonical {
		return uuid.Nil, fmt.Errorf("%q has %d characters, want %d", arg, len(arg), canonical)
	}
	return uuid.Parse(arg)
}

func filterFlags(cmd *cobra.Command, filter *store.DeadFilter) {
	cmd.Flags().StringVar(&filter.Topic, "topic", "", "only those of this `topic`")
	cmd.Flags().StringVar(&filter.AggregateType, "aggregate-type", "", "only those of this aggregate `type`")
	cmd.Flags().StringVar(&filter.AggregateID, "aggregate-id", "", "only those of this aggregate `id`")
	cmd.Flags().StringVar(&filter.EventType, "event-type", "", "only those of this event `type`")
	cmd.Flags().StringVar(&filter.Error, "error", "", "only those whose last error has this `text` in it, in any case")
	cmd.Flags().DurationVar(&filter.OlderThan, "older-than", 0, "only those that were given up longer ago than that `time`, such as 24h")
}

func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "write JSON")
}

func count(letters int) string {
	if letters == 1 {
		return "1 dead letter"
	}
	return fmt.Sprintf("%d dead letters", letters)
}
