package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Rehearsal is what stands in the way of a stream that is still to be created, as
// far as that shows without creating it. Not to be seen are how much room the servers
// have, and how many of them have the stream's placement tags.
type Rehearsal struct {
	// Obstacles are the limits of the server and of the account because of which the
	// stream would be refused, each with its figures and with what to set.
	Obstacles []string

	// Doubts are likely obstacles.
	Doubts []string
}

// noSubject makes any set-up invalid: a subject has no empty token.
const noSubject = "not..a.subject"

// Rehearse finds out whether the stream could be created, without creating it: it asks
// for one that the server refuses after it has compared the settings with its limits,
// and compares what the account says of itself. Its error means that JetStream did not
// answer the request to create a stream, as where that is not permitted.
func (s Setup) Rehearse(ctx context.Context, js jetstream.JetStream) (Rehearsal, error) {
	s = s.OrDefault()
	var r Rehearsal
	if most := js.Conn().MaxPayload(); most > 0 && most <= SmallestHeader {
		r.Obstacles = append(r.Obstacles, fmt.Sprintf("the server takes messages of at most %d bytes (max_payload), and the headers of the smallest event have %d: raise max_payload", most, SmallestHeader))
		return r, nil // The server would not take the request either.
	}
	refusal := s.tryCreating(ctx, js)
	if refusal != nil && !is[*jetstream.APIError](refusal) {
		return r, refusal
	}
	info, err := js.AccountInfo(ctx)
	if err != nil { // The relay does not need to ask that, so it may not be permitted.
		info = &jetstream.AccountInfo{Tier: unlimited}
	}
	beyond := s.beyondAccount(info)
	if refusal != nil {
		e := Classify(refusal)
		text := refusal.Error()
		if hint := s.hint(e); hint != "" {
			text = hint + ": " + text
		}
		if ofAccount := e.OfAccount() || e.Code == codeMaxBytesNeeded; !ofAccount || len(beyond) == 0 { // Otherwise the figures say it better.
			r.Obstacles = append(r.Obstacles, text)
		}
	}
	r.Obstacles = append(r.Obstacles, beyond...)
	if err == nil && s.Replicas > 1 && info.Domain == "" && js.Conn().ConnectedClusterName() == "" {
		r.Doubts = append(r.Doubts, s.hint(&Error{Code: codeNoCluster, Err: nats.ErrNoResponders}))
	}
	return r, nil
}

// Planned returns the configuration of the stream that Ensure creates if there is none.
func (s Setup) Planned() jetstream.StreamConfig { return s.OrDefault().config() }

// tryCreating asks for the stream with a subject that cannot be. The server looks at
// the subjects after its own limits, and at once after them. It returns nil if nothing
// but the subjects is wrong.
func (s Setup) tryCreating(ctx context.Context, js jetstream.JetStream) error {
	config := s.config()
	config.Subjects = append(config.Subjects, config.Subjects[0], noSubject) // Wrong in two ways, so that no release takes it.
	_, err := js.CreateStream(ctx, config)
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == codeUnknownField {
		config.AllowBatchPublish = false // As create does.
		_, err = js.CreateStream(ctx, config)
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && strings.Contains(strings.ToLower(api.Description), "subject") {
		return nil
	}
	return err
}

// beyondAccount compares the set-up with the limits of the account.
func (s Setup) beyondAccount(info *jetstream.AccountInfo) (obstacles []string) {
	add := func(format string, args ...any) { obstacles = append(obstacles, fmt.Sprintf(format, args...)) }
	replicas := max(s.Replicas, 1)
	tier, counted := info.Tier, int64(replicas) // An account without tiers counts each replica.
	if len(info.Tiers) > 0 {
		found, ok := info.Tiers[fmt.Sprintf("R%d", replicas)]
		if !ok {
			return nil // The server has said so.
		}
		tier, counted = found, 1
	}
	limits := tier.Limits
	most, reserved, ofOne := limits.MaxStore, int64(tier.ReservedStore), limits.StoreMaxStreamBytes
	what, name, other := "in files", limitStorage, "memory"
	if s.Memory {
		most, reserved, ofOne = limits.MaxMemory, int64(tier.ReservedMemory), limits.MemoryMaxStreamBytes
		what, name, other = "in memory", limitMemory, "file"
	}
	refused := func(code int) { // As the server would.
		e := &Error{Code: code, Err: errNotAsked}
		text := s.hint(e)
		if text == "" {
			text, _ = explanationOf(e, &jetstream.StreamConfig{Name: s.Stream}, quotaText(info))
		}
		add("%s", text)
	}
	if limits.MaxStreams > 0 && tier.Streams >= limits.MaxStreams {
		refused(codeStreamsMost)
	}
	if limits.MaxBytesRequired && s.MaxBytes <= 0 {
		refused(codeMaxBytesNeeded)
	}
	if ofOne > 0 && s.MaxBytes > ofOne {
		add("stream_max_bytes (Setup.MaxBytes) is %d, and the NATS account allows one stream %d bytes: set it to at most %d", s.MaxBytes, ofOne, ofOne)
	}
	switch needed := max(s.MaxBytes, 1) * counted; {
	case most < 0: // No limit.
	case most == 0:
		add("the NATS account may keep nothing %s (%s): set stream_storage (Setup.Memory) to %s, or raise the limit", what, name, other)
	case needed > most-reserved && s.MaxBytes > 0:
		add("stream_max_bytes (Setup.MaxBytes) is %d, for each of %d replicas, and of the NATS account's %d bytes (%s) %d are reserved by other streams: set at most %d, or raise the limit",
			s.MaxBytes, replicas, most, name, reserved, max(most-reserved, 0)/counted)
	case needed > most-reserved:
		add("all of the NATS account's %d bytes (%s) are reserved by other streams: raise the limit, or lower their max_bytes (`nats stream report`)", most, name)
	}
	return obstacles
}

// unlimited is an account of which nothing is known.
var unlimited = jetstream.Tier{Limits: jetstream.AccountLimits{MaxMemory: -1, MaxStore: -1}} //nolint:gochecknoglobals // Immutable.

// errNotAsked stands for the server's own words where it was not asked.
var errNotAsked = errors.New("the server was not asked")
