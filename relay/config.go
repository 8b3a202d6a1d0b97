package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// Defaults of [Config], beside those of [Options] and of package stream. They are those of the command outbox-relay, so that
// relays in a container and in a program work for one outbox.
const (
	DefaultNATS         = "nats://localhost:4222"
	DefaultClientName   = "outbox-relay"
	DefaultAdvisoryLock = 42
	DefaultRetain       = 5 * time.Minute
)

// NoArchive is the Config.Retain of a relay without an archive.
const NoArchive time.Duration = -1

// Config is all that a relay can be told. Only Postgres is needed, and NATS unless that is at [DefaultNATS]: fields that are
// zero have the defaults of the command outbox-relay. Package config fills a Config from a file and the environment. A Config
// has passwords in plain text: nothing here prints them.
type Config struct {
	// Postgres says how to reach Postgres itself, not a pooler: a URL or a keyword string, as store.Open takes it.
	Postgres string
	// PostgresFile names a file that has that instead, PasswordFile one that has the password. Both are read again at each
	// connection: see store.Options.
	PostgresFile, PasswordFile string
	// BeforeConnect may change how the next connection to Postgres is made, above all its password, for example if each
	// connection needs a token of its own: see store.Options.BeforeConnect.
	BeforeConnect func(ctx context.Context, config *pgx.ConnConfig) error
	// Table names the outbox. The default is public.outbox.
	Table store.Table
	// NoMigrate leaves the tables to others: the relay waits until they are ready. The default, false, creates or upgrades
	// them.
	NoMigrate bool

	// NATS is the URL of a NATS server or, separated by commas, of several. The default is Connect.URL or what is in
	// Connect.URLFile, then DefaultNATS.
	NATS string
	// Connect has credentials, certificates and what else a connection to NATS may need. Its Name defaults to
	// DefaultClientName. Credentials and certificates are read again at each connection.
	Connect stream.ConnectOptions
	// Stream says where events go, and how the stream is created if the relay creates it.
	Stream Stream

	// Election says how relays agree on the one that publishes.
	Election Election
	// Name says in logs and in the database who leads. The default is the host's name and the process ID.
	Name string
	// Strict makes Run return an error, rather than warn, where a condition of exactly-once delivery does not hold.
	Strict bool

	// Retain is for how long, at least, settled events stay in the archive. From there the relay publishes again the events
	// that the broker acknowledged and lost. The default is DefaultRetain; NoArchive keeps none.
	Retain time.Duration
	// HoldDead keeps back the later events of an aggregate after one of its events was given up, until a person decides. The
	// default, false, lets them go on.
	HoldDead bool
	// DeadRetain is how long dead letters are kept: a leader removes older ones. The default, 0, keeps them until a person
	// decides. It cannot be set with HoldDead.
	DeadRetain time.Duration
	// AckTimeout is how long the broker may take to acknowledge. The default is publisher.DefaultAckTimeout.
	AckTimeout time.Duration

	// The following are those of Options.
	BatchSize, BatchBytes         int
	PollInterval                  time.Duration
	MaxAttempts                   int
	RetryBackoff, RetryBackoffMax time.Duration
	ShutdownTimeout               time.Duration

	// Logger receives what an operator wants to know, never payloads. The default discards it.
	Logger *slog.Logger
	// Hooks are told what the relay does, for metrics: see package metrics.
	Hooks Hooks
}

// Stream is the part of a [Config] that says where events go. All but the first three fields matter only for a stream that
// the relay creates: it never alters one that exists.
type Stream struct {
	// Name is the stream's name. The default is stream.DefaultStream.
	Name string
	// Subject is the template of an event's subject. The default is stream.DefaultTemplate.
	Subject string
	// Adopt lets the relay take an outbox to this stream that went to another one. The default, false, refuses that.
	Adopt bool
	// CloudEventsSource is the source attribute of the CloudEvents headers. The default, empty, sends no such headers.
	CloudEventsSource string

	// NoCreate leaves the stream to others: the relay waits until it is there. The default, false, creates it.
	NoCreate bool
	// DuplicateWindow is how long the stream remembers message ids. The default is stream.DefaultDuplicateWindow, or
	// MinDuplicateWindow if that is longer.
	DuplicateWindow time.Duration
	// MaxAge is how long the stream keeps a message, and MaxBytes how much it keeps. The default, 0, is no limit.
	MaxAge   time.Duration
	MaxBytes int64
	// Replicas is the number of servers that keep the stream and, with ElectionJetStream, the election's bucket. The default
	// is 1.
	Replicas int
	// Memory keeps the stream in memory rather than in files, and Compress compresses it.
	Memory, Compress bool
	// PlacementTags are the tags that the servers with the stream must have. The default is any servers.
	PlacementTags []string
}

// Election is the part of a [Config] that says how relays agree on the one that publishes.
type Election struct {
	// Kind is the means by which they agree. The default is ElectionPostgres.
	Kind ElectionKind
	// Lock is the number they compete for with ElectionPostgres, together with the table's name. The default, nil, is
	// DefaultAdvisoryLock.
	Lock *int64
	// Key is what they compete for with ElectionJetStream. The default is made of the stream, the database's name and the
	// table.
	Key string
}

// ElectionKind is the means by which relays agree on the one that publishes.
type ElectionKind string

// The kinds of election.
const (
	// ElectionPostgres elects by an advisory lock in Postgres.
	ElectionPostgres ElectionKind = "postgres"
	// ElectionJetStream elects by an entry of a JetStream key-value bucket.
	ElectionJetStream ElectionKind = "jetstream"
	// ElectionNone elects nobody: whoever starts the relay promises that it is the only one.
	ElectionNone ElectionKind = "none"
)

// ConfigError says what is wrong with a [Config], all of it, by the part that found it. Each field is nil for nothing; the
// faults of one are joined.
type ConfigError struct{ Config, Store, Publisher, Elector, Options error }

// Error lists the faults, one a line.
func (e *ConfigError) Error() string {
	return "the configuration has faults:\n  " + strings.ReplaceAll(errors.Join(e.Unwrap()...).Error(), "\n", "\n  ")
}

// Unwrap returns the faults.
func (e *ConfigError) Unwrap() []error {
	var faults []error
	for _, err := range []error{e.Config, e.Store, e.Publisher, e.Elector, e.Options} {
		if err != nil {
			faults = append(faults, err)
		}
	}
	return faults
}

// New returns a relay that does nothing until [Relay.Run] is called. It connects to nothing, so it fails for what is wrong
// with the configuration only: its error is a [ConfigError].
func New(c Config) (*Relay, error) {
	// Each goes on without what the ones before could not make, so that all faults are found.
	p, planErr := planOf(c)
	outbox, outboxErr := store.Open(p.dsn, p.store)
	if c.Postgres == "" && c.PostgresFile == "" {
		outboxErr = errNoPostgres
	}
	broker, publisherErr := publisher.New(p.publisher)
	elector, electorErr := p.elector(outbox)
	if electorErr != nil {
		elector = election.Always{}
	}
	_, optionsErr := p.relay.validated()
	if faults := (&ConfigError{planErr, outboxErr, publisherErr, electorErr, optionsErr}); len(faults.Unwrap()) > 0 {
		return nil, faults
	}
	r, err := Assemble(Parts{Store: StoreOf(outbox), Publisher: PublisherOf(broker), Elector: elector}, p.relay)
	if err != nil {
		return nil, err
	}
	r.outbox = outbox
	return r, nil
}

// Outbox opens the outbox of a relay of this configuration, for programs that look at it without relaying. It connects to
// nothing. Its error has what is wrong with the part of the configuration that is about Postgres.
func (c Config) Outbox() (*store.Outbox, error) {
	p, _ := planOf(c)
	if c.Postgres == "" && c.PostgresFile == "" {
		return nil, &ConfigError{Store: errNoPostgres}
	}
	outbox, err := store.Open(p.dsn, p.store)
	if err != nil {
		return nil, &ConfigError{Store: err}
	}
	return outbox, nil
}

// errNoPostgres stands instead of what libpq's variables say, which might be another's.
var errNoPostgres = errors.New("database DSN: it is empty")

// Target returns how a relay of this configuration connects to NATS, and the stream as it wants it, for programs that
// look at both without relaying. Its error has what is wrong with the configuration; what it returns beside is what could
// have been meant.
func (c Config) Target() (stream.ConnectOptions, stream.Setup, error) {
	p, err := planOf(c)
	if err != nil {
		err = &ConfigError{Config: err}
	}
	return p.publisher.Connect, p.publisher.Setup, err
}

// plan is a configuration in the words of the packages that a relay is made of.
type plan struct {
	dsn       string
	store     store.Options
	publisher publisher.Options
	lock      *election.AdvisoryLockOptions // Nil for another election, or none.
	keyValue  *election.KeyValueOptions     // Likewise; its key is empty if the database's name is to be part of it.
	relay     Options
}

// embeddedNATS is what outbox-relay's nats_url may be, and a URL is not.
const embeddedNATS = "embedded"

// errEmbedded is a fault only in a program that has no embedded server.
var errEmbedded = errors.New(`NATS: got "embedded", but this program runs no NATS server of its own: set OUTBOX_NATS_URL to that of one`)

// planOf translates a configuration. Its error has the faults that the plan no longer shows: in their place the plan has
// what could have been meant, so that the other faults are found too.
func planOf(c Config) (plan, error) {
	var faults []error
	template, err := stream.ParseTemplate(cmp.Or(c.Stream.Subject, stream.DefaultTemplate))
	if err != nil {
		faults = append(faults, fmt.Errorf("Stream.Subject: %w", err))
	}
	connect := c.Connect
	if connect.URL = cmp.Or(c.NATS, connect.URL); connect.URL == "" && connect.URLFile == "" {
		connect.URL = DefaultNATS
	}
	connect.Name = cmp.Or(connect.Name, DefaultClientName)
	if connect.URL == embeddedNATS {
		faults = append(faults, errEmbedded)
		connect.URL = DefaultNATS
	}
	retain := cmp.Or(c.Retain, DefaultRetain)
	if retain == NoArchive {
		retain = 0
	}
	if c.Strict && retain == 0 {
		faults = append(faults, fmt.Errorf("option Retain: got \"0s\", with strict = true: %s", noArchive))
	}
	p := plan{
		dsn: c.Postgres,
		store: store.Options{
			Table:      c.Table,
			HoldDead:   c.HoldDead,
			Retain:     retain,
			DeadRetain: c.DeadRetain,
			Logger:     c.Logger,

			AdoptStream: c.Stream.Adopt,

			DSNFile:       c.PostgresFile,
			PasswordFile:  c.PasswordFile,
			BeforeConnect: c.BeforeConnect,
		},
		publisher: publisher.Options{
			Connect: connect,
			Setup: stream.Setup{
				Stream:          cmp.Or(c.Stream.Name, stream.DefaultStream),
				Template:        template,
				Create:          !c.Stream.NoCreate,
				DuplicateWindow: c.Stream.DuplicateWindow,
				MaxAge:          c.Stream.MaxAge,
				Replicas:        c.Stream.Replicas,
				Memory:          c.Stream.Memory,
				MaxBytes:        c.Stream.MaxBytes,
				Compress:        c.Stream.Compress,
				PlacementTags:   c.Stream.PlacementTags,
				Strict:          c.Strict,
				MinWindow:       MinDuplicateWindow(c.AckTimeout),
			},
			Encoder:    stream.Encoder{CloudEventsSource: c.Stream.CloudEventsSource},
			AckTimeout: c.AckTimeout,
		},
		relay: Options{
			NoMigrate:       c.NoMigrate,
			BatchSize:       c.BatchSize,
			BatchBytes:      c.BatchBytes,
			PollInterval:    c.PollInterval,
			MaxAttempts:     c.MaxAttempts,
			RetryBackoff:    c.RetryBackoff,
			RetryBackoffMax: c.RetryBackoffMax,
			ShutdownTimeout: c.ShutdownTimeout,
			Name:            c.Name,
			Logger:          c.Logger,
			Hooks:           c.Hooks,
		},
	}
	switch c.Election.Kind {
	case ElectionPostgres, "":
		lock := int64(DefaultAdvisoryLock)
		if c.Election.Lock != nil {
			lock = *c.Election.Lock
		}
		options := lockOptions(c.Table, lock, c.Logger)
		p.lock = &options
	case ElectionJetStream:
		p.keyValue = &election.KeyValueOptions{
			Key:      c.Election.Key,
			Name:     c.Name,
			Replicas: c.Stream.Replicas,
			Domain:   c.Connect.Domain,
			Logger:   c.Logger,
		}
	case ElectionNone:
	default:
		faults = append(faults, fmt.Errorf("Election.Kind: got %q, want %q, %q or %q", c.Election.Kind, ElectionPostgres, ElectionJetStream, ElectionNone))
	}
	return p, errors.Join(faults...)
}

// elector makes the elector by which the relays of outbox agree.
func (p plan) elector(outbox *store.Outbox) (Elector, error) {
	switch {
	case outbox == nil: // Nobody will campaign.
	case p.lock != nil:
		return election.NewAdvisoryLock(outbox.Session(), *p.lock), nil
	case p.keyValue != nil:
		options := *p.keyValue
		if options.Key == "" {
			// Not the host: each relay may know it by another name.
			options.Key = election.KeyOf(p.publisher.Setup.Stream, outbox.Database(), outbox.Table().Schema, outbox.Table().Name)
		}
		connect := p.publisher.Connect
		// The publisher drops its connection with the leadership; this one is the elector's own.
		elector, err := election.NewKeyValue(func(ctx context.Context) (*nats.Conn, error) { return stream.Connect(ctx, connect) }, options)
		if err != nil {
			return nil, fmt.Errorf("election: %w", err)
		}
		return elector, nil
	}
	return election.Always{}, nil
}
