package stream

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A stream, an account and a server have limits. A refusal at a limit has a code or a
// text, and no figures. The code below adds the figures, and what to do. A full stream
// heals by itself if something makes room: consumers that acknowledge, or age.
// Otherwise all events wait for a person, and that is the set-up's fault.

// A Limit is a limit of a stream or of an account, and how much of it is used.
type Limit struct {
	// Name is its name in the configuration, such as "max_msgs".
	Name string

	// Used and Most count messages, bytes, consumers or streams.
	Used, Most int64

	// Discards says that the stream makes room by removing its oldest messages;
	// otherwise it refuses what exceeds the limit.
	Discards bool
}

// String tells the figures.
func (l Limit) String() string {
	return fmt.Sprintf("%d of %d %s (%s)", l.Used, l.Most, l.unit(), l.Name)
}

// Full says that nothing more goes in.
func (l Limit) Full() bool { return l.Used >= l.Most }

// Streams says that it is a limit on an account's streams.
func (l Limit) Streams() bool { return l.unit() == "streams" }

// Consumers says that it is a limit on consumers, not on messages.
func (l Limit) Consumers() bool { return l.Name == limitConsumers }

// Nearly says that more than 90 % are used.
func (l Limit) Nearly() bool { return l.Used > l.Most/10*9 }

// The names of limits.
const (
	limitMessages  = "max_msgs"
	limitBytes     = "max_bytes"
	limitConsumers = "max_consumers"

	limitStorage = "max_file"
	limitMemory  = "max_mem"
	limitStreams = "max_streams"
)

func (l Limit) unit() string {
	name, _, _ := strings.Cut(l.Name, " ")
	switch name {
	case limitBytes, limitStorage, limitMemory:
		return "bytes"
	case limitConsumers:
		return "consumers"
	case limitStreams:
		return "streams"
	}
	return "messages"
}

// Limits returns the limits that a stream has.
func Limits(info *jetstream.StreamInfo) []Limit {
	config, state := &info.Config, &info.State
	discards := config.Discard == jetstream.DiscardOld
	var limits []Limit
	if config.MaxMsgs > 0 {
		limits = append(limits, Limit{Name: limitMessages, Used: int64(state.Msgs), Most: config.MaxMsgs, Discards: discards})
	}
	if config.MaxBytes > 0 {
		limits = append(limits, Limit{Name: limitBytes, Used: int64(state.Bytes), Most: config.MaxBytes, Discards: discards})
	}
	if config.MaxConsumers > 0 {
		limits = append(limits, Limit{Name: limitConsumers, Used: int64(state.Consumers), Most: int64(config.MaxConsumers)})
	}
	return limits
}

// If a stream has smaller limits and discards old messages, it loses within seconds
// messages that nobody has read, and those that the relay has yet to read back.
const (
	fewMessages = 10_000
	fewBytes    = 16 << 20
)

// smallLimits warns of limits at which a stream removes messages early.
func smallLimits(config *jetstream.StreamConfig, found *warnings) {
	if config.Discard != jetstream.DiscardOld {
		return
	}
	small := func(l Limit) {
		found.add(CheckLimits, "keeps at most %d %s (%s): older messages are discarded, whether or not anybody has read them, and may be stored again if their acknowledgement was lost: %s",
			l.Most, l.unit(), l.Name, l.Remedy(config))
	}
	if config.MaxMsgs > 0 && config.MaxMsgs < fewMessages {
		small(Limit{Name: limitMessages, Most: config.MaxMsgs, Discards: true})
	}
	if config.MaxBytes > 0 && config.MaxBytes < fewBytes {
		small(Limit{Name: limitBytes, Most: config.MaxBytes, Discards: true})
	}
}

// Remedy says what to do at a stream's limit, and whether the stream makes room by
// itself.
func (l Limit) Remedy(config *jetstream.StreamConfig) string {
	if l.Name == limitConsumers {
		return fmt.Sprintf("remove those that nobody uses, `nats consumer ls %s`, or have the stream made anew with more", config.Name)
	}
	edit := fmt.Sprintf("run `nats stream edit %s --max-msgs=%d`", config.Name, 2*l.Most)
	if l.Name == limitBytes {
		edit = fmt.Sprintf("run `nats stream edit %s --max-bytes=%d`", config.Name, 2*l.Most)
	}
	if l.Discards {
		return edit
	}
	return fmt.Sprintf("%s; %s, or remove old messages with `nats stream purge %s --keep=%d`", healing(config), edit, config.Name, keep(config))
}

// keep is half of what fits, in messages, as a suggestion.
func keep(config *jetstream.StreamConfig) int64 {
	if config.MaxMsgs > 0 {
		return max(config.MaxMsgs/2, 1)
	}
	return 1000
}

// healing says what makes room in a stream that refuses new messages, if
// something does.
func healing(config *jetstream.StreamConfig) string {
	switch {
	case config.Retention != jetstream.LimitsPolicy:
		return "consumers make room by acknowledging"
	case config.MaxAge > 0:
		return fmt.Sprintf("room comes when messages become older than %v (max_age)", config.MaxAge)
	}
	return "it makes no room by itself, also not by consuming"
}

// heals says whether something makes room in a full stream.
func heals(config *jetstream.StreamConfig) bool {
	return config.Retention != jetstream.LimitsPolicy || config.MaxAge > 0
}

// Further codes of refusals at a limit; see hint for the others.
const (
	codeAccountExceeded = 10002 // The account's quota is used up.
	codeStreamsMost     = 10027
)

// The texts of code 10077: only they tell its reasons apart.
const (
	textTooLarge   = "message too large"
	textMessages   = "maximum messages exceeded"
	textBytes      = "maximum bytes exceeded"
	textPerSubject = "maximum messages per subject exceeded"
	textNoSpace    = "no space left on device"
)

// A Capacity is what is known of the limits of a stream and of its account, so that a
// refusal at one of them can be explained. The zero value knows nothing but still tells
// what kind of limit it is.
type Capacity struct {
	// Config is the stream's configuration, of which only Name must be set, and State its
	// state at some moment.
	Config jetstream.StreamConfig
	State  jetstream.StreamState

	// Account tells what the account uses of its limits, see AccountUse; empty if that
	// is not known.
	Account string
}

// Explain adds to a refusal at a limit the figures, and what to do. If only a person can
// make room, the fault becomes FaultSetup. Any other fault, nil too, is returned as it is.
func (c *Capacity) Explain(fault *Error) *Error {
	if fault == nil || fault.told {
		return fault
	}
	text, setup := c.explanation(fault)
	if text == "" {
		return fault
	}
	again := *fault
	again.Err, again.told = fmt.Errorf("%s: %w", text, fault.Err), true
	if setup {
		again.Fault = FaultSetup
	}
	return &again
}

// explanation returns what a refusal at a limit means, and whether a person must do
// something.
func (c *Capacity) explanation(fault *Error) (text string, setup bool) {
	config := &c.Config
	if fault.Code != codeStoreFailed {
		return explanationOf(fault, config, c.Account)
	}
	reason := fault.Err.Error()
	full := func(name string, most int64, held uint64) (string, bool) {
		if most <= 0 { // There was no limit when the stream was opened: the next opening tells it.
			return fmt.Sprintf("stream %q is full: it has got a limit (%s), and refuses new messages (discard new)", config.Name, name), !heals(config)
		}
		l := Limit{Name: name, Used: max(most, int64(held)), Most: most}
		return fmt.Sprintf("stream %q is full: it has %v and refuses new messages (discard new): %s", config.Name, l, l.Remedy(config)), !heals(config)
	}
	switch {
	case strings.Contains(reason, textPerSubject):
		return fmt.Sprintf("stream %q holds %d messages of the event's subject (max_msgs_per_subject), and refuses new ones (discard_new_per_subject): run `nats stream edit %s --max-msgs-per-subject=%d`, or --no-discard-per-subject",
			config.Name, config.MaxMsgsPerSubject, config.Name, 2*max(config.MaxMsgsPerSubject, 1)), false
	case strings.Contains(reason, textMessages):
		return full(limitMessages, config.MaxMsgs, c.State.Msgs)
	case strings.Contains(reason, textBytes):
		return full(limitBytes, config.MaxBytes, c.State.Bytes)
	case strings.Contains(reason, textNoSpace):
		return fmt.Sprintf("the disk of stream %q is full: make room on it, then restart the NATS server, which does not write to the stream before", config.Name), true
	}
	return "", false
}

// explanationOf is explanation for the limits of accounts and servers.
// Quota tells what the account uses; empty if that is not known.
func explanationOf(fault *Error, config *jetstream.StreamConfig, quota string) (text string, setup bool) {
	if quota != "" {
		quota = " (" + quota + ")"
	}
	switch fault.Code {
	case codeNoDisk:
		if quota == "" {
			return "the NATS server, or its account, has no room on disk for the stream: raise max_file_store (max_file), remove streams (`nats stream report`) or, on a server that keeps streams in memory only, set stream_storage to memory (Setup.Memory)", !heals(config)
		}
		fallthrough
	case codeAccountExceeded, codeNoMemory:
		return fmt.Sprintf("the JetStream limits of the NATS account are used up%s: it makes no room by itself, unless its streams have a max_age, or consumers whose acknowledgements make room: raise the account's limits, or remove messages or streams of it (`nats account info`, `nats stream report`)", quota), !heals(config)
	case codeNoResources:
		return "the NATS server has used up its memory or disk for JetStream: raise max_file_store or max_memory_store, make room on its disk, or remove streams (`nats server report jetstream`)", !heals(config)
	case codeStreamsMost:
		return fmt.Sprintf("the NATS account has as many streams as it may%s: raise its limit, or remove streams (`nats stream ls`)", quota), true
	}
	return "", false
}

// quotaPatience is how long to wait for the account's figures.
const quotaPatience = 500 * time.Millisecond

// OfAccount reports whether the figures of AccountUse explain the failure: it was a
// refusal at a limit of the account.
func (e *Error) OfAccount() bool {
	switch e.Code {
	case codeAccountExceeded, codeNoMemory, codeNoDisk, codeStreamsMost, codeMaxBytesTooMany:
		return true
	}
	return false
}

// AccountUse tells what the account uses of its limits; empty if it has none, or if it
// did not answer within 500 ms.
func AccountUse(ctx context.Context, js jetstream.JetStream) string {
	ctx, cancel := context.WithTimeout(ctx, quotaPatience)
	defer cancel()
	info, err := js.AccountInfo(ctx)
	if err != nil {
		return ""
	}
	return quotaText(info)
}

// quotaText tells what an account uses of its limits; empty if it has none.
func quotaText(info *jetstream.AccountInfo) string {
	var parts []string
	for _, l := range AccountLimits(info) {
		parts = append(parts, l.String())
	}
	return strings.Join(parts, ", ")
}

// AccountLimits returns the limits that an account has.
func AccountLimits(info *jetstream.AccountInfo) []Limit {
	tiers := map[string]jetstream.Tier{"": info.Tier}
	if len(info.Tiers) > 0 {
		tiers = info.Tiers
	}
	var limits []Limit
	for _, name := range slices.Sorted(maps.Keys(tiers)) {
		tier := tiers[name]
		add := func(used, most int64, limit string) {
			if name != "" {
				limit += " of tier " + name
			}
			if most > 0 {
				limits = append(limits, Limit{Name: limit, Used: used, Most: most})
			}
		}
		add(int64(max(tier.Store, tier.ReservedStore)), tier.Limits.MaxStore, limitStorage)
		add(int64(max(tier.Memory, tier.ReservedMemory)), tier.Limits.MaxMemory, limitMemory)
		add(int64(tier.Streams), int64(tier.Limits.MaxStreams), limitStreams)
	}
	return limits
}
