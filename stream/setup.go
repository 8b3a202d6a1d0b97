package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Defaults of a Setup.
const (
	// DefaultStream is the name of the stream.
	DefaultStream = "OUTBOX"

	// DefaultDuplicateWindow is the duplicate window of a stream that the relay
	// creates. An ID costs the server 130 to 195 bytes while it is in the
	// window.
	DefaultDuplicateWindow = 10 * time.Minute
)

// Setup is the stream as the relay wants it. The zero value works, for a
// stream that exists.
type Setup struct {
	// Stream is its name. Default DefaultStream.
	Stream string

	// Template makes the subjects that the stream must take. The default, for
	// the zero Template, is that of DefaultTemplate.
	Template Template

	// Create allows Ensure to create the stream if it is absent. The fields
	// up to PlacementTags say how. They have no effect on a stream that exists: it is
	// never altered.
	Create bool

	// DuplicateWindow is how long the stream recognises an ID. Default
	// DefaultDuplicateWindow; MinWindow if that is longer, but MaxAge at most.
	DuplicateWindow time.Duration

	// MaxAge is how long the stream keeps a message. Default: for ever.
	MaxAge time.Duration

	// Replicas is the number of servers that keep the stream, 1 to 5.
	// Default 1.
	Replicas int

	// Memory keeps the stream in memory rather than in files. A restart of
	// its servers then loses it.
	Memory bool

	// MaxBytes is how much the stream keeps: beyond it, the oldest messages are
	// removed. Default: no limit.
	MaxBytes int64

	// Compress stores messages compressed (S2), which takes processor time and
	// saves disk.
	Compress bool

	// PlacementTags are tags that a cluster's servers must have to keep the stream.
	// Default: any servers.
	PlacementTags []string

	// MinWindow is the least duplicate window with which the caller's promise
	// of exactly once holds; 0 makes no demand.
	MinWindow time.Duration

	// Strict turns the warnings of a Report into an error, ErrRefused.
	Strict bool
}

// ErrRefused is in the error of Ensure if the stream is usable and only Strict
// refuses it, because of a warning. Waiting does not help.
var ErrRefused = errors.New("refused, since strict is set")

// A Report is what Ensure found.
type Report struct {
	// Info is the stream's state and, as the server has it, configuration.
	Info *jetstream.StreamInfo

	// Created says that the stream was absent before.
	Created bool

	// Warnings each name a condition of the promise that the stream does not meet,
	// and what may happen therefore.
	Warnings []Warning
}

// OrDefault fills in the defaults of Stream and Template.
func (s Setup) OrDefault() Setup {
	if s.Stream == "" {
		s.Stream = DefaultStream
	}
	if s.Template.IsZero() {
		s.Template, _ = ParseTemplate(DefaultTemplate) // It is constant and valid.
	}
	return s
}

// Validate says what is wrong with the set-up's fields, all at once.
func (s Setup) Validate() error {
	var faults []error
	refuse := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if strings.ContainsAny(s.Stream, " .*>/\\") || strings.ContainsFunc(s.Stream, unprintable) {
		refuse(`Stream: %q has a character that NATS forbids: white space, control characters and . * > / \`, s.Stream)
	}
	if most := 255; len(s.Stream) > most {
		refuse("Stream: the name has %d bytes, and NATS takes at most %d", len(s.Stream), most)
	}
	// Shorter windows are refused by the server.
	if least := 100 * time.Millisecond; s.DuplicateWindow != 0 && s.DuplicateWindow < least {
		refuse("DuplicateWindow: %v is less than %v", s.DuplicateWindow, least)
	}
	if s.MaxAge < 0 {
		refuse("MaxAge: %v is negative", s.MaxAge)
	}
	if s.MaxAge > 0 && s.DuplicateWindow > s.MaxAge {
		refuse("DuplicateWindow: %v exceeds MaxAge, %v: what is gone is not recognised", s.DuplicateWindow, s.MaxAge)
	}
	if s.Replicas < 0 || s.Replicas > 5 {
		refuse("Replicas: %d is not from 1 to 5", s.Replicas)
	}
	if s.MaxBytes < 0 {
		refuse("MaxBytes: %d is negative", s.MaxBytes)
	}
	for _, tag := range s.PlacementTags {
		if strings.TrimSpace(tag) == "" || strings.Contains(tag, ",") || strings.ContainsFunc(tag, unprintable) {
			refuse("PlacementTags: %q is no tag", tag)
		}
	}
	if s.MinWindow < 0 {
		refuse("MinWindow: %v is negative", s.MinWindow)
	}
	return errors.Join(faults...)
}

// Ensure looks the stream up, creates it if it is absent and may be created,
// and checks it. It never alters a stream that exists. Several relays may call
// it at once.
//
// Its error is an *Error: FaultSetup names everything that is wrong, and what to do;
// FaultWeather means that JetStream does not answer.
func (s Setup) Ensure(ctx context.Context, js jetstream.JetStream) (Report, error) {
	if err := s.Validate(); err != nil {
		return Report{}, setupFault(fmt.Errorf("stream set-up: %w", err))
	}
	s = s.OrDefault()
	str, err := js.Stream(ctx, s.Stream)
	created := false
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !s.Create {
			return Report{}, s.refusal("does not exist: create it, for example with"+
				" `nats stream add %s --subjects '%s' --dupe-window %v --defaults`, or let the relay do so;"+
				" if it is in another JetStream domain, set nats_domain (ConnectOptions.Domain)",
				s.Stream, s.Template.StreamSubject(), s.duplicateWindow())
		}
		if found := s.warnings(s.config()); s.Strict && len(found) > 0 {
			return Report{}, s.refusal("is not created as configured: %s: %w", strings.Join(found.texts(), "; "), ErrRefused)
		}
		str, created, err = s.create(ctx, js)
	}
	if err != nil {
		return Report{}, s.explain(ctx, js, err)
	}

	report := Report{Info: str.CachedInfo(), Created: created}
	found := s.warnings(report.Info.Config)
	report.Warnings = found
	err = s.Check(report.Info.Config)
	switch {
	case err != nil:
		return report, err
	case s.Strict && len(found) > 0:
		return report, s.refusal("%s: %w", strings.Join(found.texts(), "; "), ErrRefused)
	}
	return report, nil
}

// An UnfitError says why a stream cannot be used as it is configured: it would not store events, not acknowledge them, or
// the relay would not find them again.
type UnfitError struct {
	// Reason says what is in the way, and what to do.
	Reason string
}

// Error returns the reason.
func (e *UnfitError) Error() string { return e.Reason }

// Check returns nil if a stream with this configuration can be used. Otherwise the error is an *Error with FaultSetup and has
// an *UnfitError in its chain.
func (s Setup) Check(config jetstream.StreamConfig) error {
	s = s.OrDefault()
	if obstacles := s.obstacles(config); len(obstacles) > 0 {
		return s.refusal("%w", &UnfitError{strings.Join(obstacles, "; ")})
	}
	return nil
}

// create creates the stream, or finds out that another relay has just done so.
func (s Setup) create(ctx context.Context, js jetstream.JetStream) (str jetstream.Stream, created bool, err error) {
	config := s.config()
	str, err = js.CreateStream(ctx, config)
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == codeUnknownField {
		// The server is older than ordered batches, and refuses unknown fields.
		// Other such servers ignore the field.
		config.AllowBatchPublish = false
		str, err = js.CreateStream(ctx, config)
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		// Somebody else has just created it, with another configuration.
		str, err = js.Stream(ctx, s.Stream)
		return str, false, err
	}
	return str, err == nil, err
}

// config is the stream that create makes.
func (s Setup) config() jetstream.StreamConfig {
	storage := jetstream.FileStorage
	if s.Memory {
		storage = jetstream.MemoryStorage
	}
	config := jetstream.StreamConfig{
		Name:        s.Stream,
		Description: "Events of a transactional outbox, by github.com/go-outbox/go-outbox",
		Subjects:    s.subjects(),
		// A message stays until a limit removes it, so that the relay can
		// find what it published.
		Retention:  jetstream.LimitsPolicy,
		Storage:    storage,
		Replicas:   max(s.Replicas, 1),
		MaxAge:     s.MaxAge,
		MaxBytes:   -1,
		Duplicates: s.duplicateWindow(),
		// If the stream takes no further consumer, it is read back by direct
		// gets.
		AllowDirect: true,
		// Ordered batches, from nats-server 2.14.
		AllowBatchPublish: true,
		Metadata:          map[string]string{"created_by": "github.com/go-outbox/go-outbox"},
	}
	if s.MaxBytes > 0 {
		config.MaxBytes = s.MaxBytes
	}
	if s.Compress {
		config.Compression = jetstream.S2Compression
	}
	if len(s.PlacementTags) > 0 {
		config.Placement = &jetstream.Placement{Tags: s.PlacementTags}
	}
	return config
}

// subjects returns the subjects of the stream that create makes.
func (s Setup) subjects() []string {
	events, control := s.Template.StreamSubject(), controlSubject(s.Stream, "*")
	if covers(events, control) {
		return []string{events}
	}
	return []string{events, control}
}

// ControlSubject returns the subject of the messages that a relay writes for itself,
// one for each outbox. If the stream listens there, it is apart from the events, so
// that a consumer of all events gets nothing else. Otherwise it is among them.
func (s Setup) ControlSubject(outbox string, config jetstream.StreamConfig) string {
	apart := controlSubject(s.Stream, outbox)
	for _, subject := range config.Subjects {
		if covers(subject, apart) {
			return apart
		}
	}
	return s.Template.ControlSubject(outbox)
}

// controlPrefix is the first token of control subjects. No template may have it:
// an event there would take the place of a fence.
const controlPrefix = "_outbox"

func controlSubject(stream, outbox string) string { return controlPrefix + "." + stream + "." + outbox }

func (s Setup) duplicateWindow() time.Duration {
	switch {
	case s.DuplicateWindow > 0:
		return s.DuplicateWindow
	case s.MaxAge > 0:
		return min(s.MaxAge, max(s.MinWindow, DefaultDuplicateWindow))
	}
	return max(s.MinWindow, DefaultDuplicateWindow)
}

// obstacles returns the reasons why events would not be stored, acknowledged, or
// found again.
func (s Setup) obstacles(config jetstream.StreamConfig) []string {
	var obstacles []string
	add := func(format string, args ...any) { obstacles = append(obstacles, fmt.Sprintf(format, args...)) }
	filter := s.Template.Filter()

	if config.Mirror != nil {
		// A mirror has no subjects: nothing else about it matters.
		add("is a mirror of %q and takes no messages: name that stream, or another", config.Mirror.Name)
		return obstacles
	}
	if config.Sealed {
		add("is sealed and takes no messages, for good: name another stream")
	}
	if config.NoAck {
		add("does not acknowledge (no_ack): run `nats stream edit %s --ack`", s.Stream)
	}
	if most := int64(config.MaxMsgSize); most > 0 && most <= SmallestHeader {
		add("takes messages of at most %d bytes (max_msg_size), and the headers of the smallest event have %d: run `nats stream edit %s --max-msg-size=-1`", most, SmallestHeader, s.Stream)
	}
	if config.AllowMsgCounter {
		add("is a counter (allow_msg_counter) and takes nothing but increments: name another stream")
	}
	covered := false
	for _, subject := range config.Subjects {
		covered = covered || covers(subject, filter)
	}
	if !covered {
		// The list replaces the old one, so it must name all.
		keep := make([]string, 0, len(config.Subjects)+1)
		for _, subject := range config.Subjects {
			if !covers(s.Template.StreamSubject(), subject) {
				keep = append(keep, subject)
			}
		}
		keep = append(keep, s.Template.StreamSubject())
		add("listens on %q, which does not cover %q: run `nats stream edit %s --subjects '%s'`, or change the subject template",
			config.Subjects, filter, s.Stream, strings.Join(keep, ","))
	}
	if t := config.SubjectTransform; t != nil {
		source := t.Source
		if source == "" {
			source = ">"
		}
		if overlaps(source, filter) {
			add("stores messages to %q under other subjects, %q (subject_transform), where the relay would not find them: remove the transform, or change the subject template",
				source, t.Destination)
		}
	}
	return obstacles
}

// warnings returns the conditions of the promise that the stream does not meet.
func (s Setup) warnings(config jetstream.StreamConfig) (found warnings) {
	if config.Duplicates < s.MinWindow {
		found.add(CheckDuplicateWindow, "duplicate window of %v is less than %v: an event may be stored twice when a frozen leader wakes up: run `nats stream edit %s --dupe-window %v`",
			config.Duplicates, s.MinWindow, s.Stream, s.MinWindow)
	}
	if config.Retention != jetstream.LimitsPolicy {
		found.add(CheckRetention, "%s retention removes messages that were consumed: an event whose acknowledgement was lost may be stored twice once the duplicate window has passed: limits retention avoids it, in a new stream",
			strings.ToLower(config.Retention.String()))
	}
	if config.Storage == jetstream.MemoryStorage {
		found.add(CheckStorage, "memory storage: acknowledged events are lost when the stream's servers restart: file storage avoids it, in a new stream")
	}
	if config.PersistMode == jetstream.AsyncPersistMode {
		found.add(CheckPersistence, "asynchronous persistence (persist_mode): acknowledged events are lost when the server crashes: default persistence avoids it, in a new stream")
	}
	switch {
	case config.MaxMsgsPerSubject <= 0:
	case config.Discard == jetstream.DiscardNew && config.DiscardNewPerSubject:
		found.add(CheckLimits, "at most %d messages a subject, new ones refused (discard_new_per_subject): an event of a full subject becomes a dead letter: run `nats stream edit %s --no-discard-per-subject`",
			config.MaxMsgsPerSubject, s.Stream)
	case config.Discard == jetstream.DiscardOld:
		found.add(CheckLimits, "at most %d messages a subject: older events of an aggregate are removed, and may be stored again if their acknowledgement was lost: run `nats stream edit %s --max-msgs-per-subject=-1`",
			config.MaxMsgsPerSubject, s.Stream)
	}
	smallLimits(&config, &found)
	return found
}

// refusal makes an error that names the stream.
func (s Setup) refusal(format string, args ...any) *Error {
	return &Error{Fault: FaultSetup, Err: fmt.Errorf("stream %q: "+format, append([]any{s.Stream}, args...)...), Refused: true}
}

// explain says what a failed request means for the stream.
func (s Setup) explain(ctx context.Context, js jetstream.JetStream, err error) *Error {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == codeOffline {
		return s.offline(js, api)
	}
	e := Classify(err)
	quota := ""
	if e.OfAccount() {
		quota = AccountUse(ctx, js)
	}
	limit := s.hint(e)
	if limit == "" {
		limit, _ = explanationOf(e, &jetstream.StreamConfig{Name: s.Stream}, quota)
	} else if quota != "" {
		limit += " (" + quota + ")"
	}
	switch {
	case is[*jetstream.APIError](err) && limit != "":
		e.Fault, e.told = FaultSetup, true
		e.Err = fmt.Errorf("stream %q: %s: %w", s.Stream, limit, err)
	case errors.Is(err, nats.ErrNoResponders):
		e.Err = fmt.Errorf("stream %q: JetStream does not answer: it is just starting, or not enabled on the server or for this account, or the stream is in another JetStream domain: then set nats_domain (ConnectOptions.Domain): %w", s.Stream, err)
	case e.Code == int(jetstream.JSErrCodeJetStreamNotEnabled), e.Code == int(jetstream.JSErrCodeJetStreamNotEnabledForAccount):
		e.Err = fmt.Errorf("stream %q: JetStream is not enabled on the server or for this account: %w", s.Stream, err)
	case inboxRefused(js.Conn()):
		e = Classify(fmt.Errorf("stream %q: %w", s.Stream, noInbox(js.Conn(), err)))
	case e.Code == 10065:
		owner := "another stream"
		if name, lookupErr := js.StreamNameBySubject(ctx, s.Template.StreamSubject()); lookupErr == nil {
			owner = fmt.Sprintf("stream %q", name)
		}
		e.Err = fmt.Errorf("stream %q: cannot be created for %q, since %s listens on overlapping subjects: name that stream, or give the subject template (%s) another first token: %w",
			s.Stream, s.Template.StreamSubject(), owner, s.Template, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		e.Err = fmt.Errorf("stream %q: JetStream did not answer in time: %w", s.Stream, err)
	default:
		e.Err = fmt.Errorf("stream %q: %w", s.Stream, err)
	}
	return e
}

// covers says whether every subject that filter matches is matched by pattern.
// Both may have wildcards.
func covers(pattern, filter string) bool {
	p, f := strings.Split(pattern, "."), strings.Split(filter, ".")
	for i, token := range p {
		switch {
		case i >= len(f):
			return false
		case token == ">":
			return true
		case token == "*" && f[i] != ">":
		case token != f[i]:
			return false
		}
	}
	return len(p) == len(f)
}

// overlaps says whether some subject is matched by both.
func overlaps(a, b string) bool {
	ta, tb := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(ta) && i < len(tb); i++ {
		switch {
		case ta[i] == ">" || tb[i] == ">":
			return true
		case ta[i] == "*" || tb[i] == "*":
		case ta[i] != tb[i]:
			return false
		}
	}
	return len(ta) == len(tb)
}
