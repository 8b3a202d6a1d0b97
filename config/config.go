package config

import (
	"log/slog"
	"strings"
	"time"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
)

// Config has all settings of a relay. The zero value is not usable: start from
// [Default] or [Load].
type Config struct {
	// DatabaseDSN says how to reach Postgres, as a URL or in keyword form. It
	// has no default. [Load] fills it from DatabaseDSNFile, if that is given
	// instead.
	DatabaseDSN Secret

	// DatabaseDSNFile is a file with the DSN, which is read again at each
	// connection. Default none.
	DatabaseDSNFile string

	// DatabasePasswordFile is a file with the password, which is read again at
	// each connection and goes before what the DSN says. Default none.
	DatabasePasswordFile string

	// AdvisoryLock is the number that relays of one outbox compete for. Two outbox
	// tables in one database may share it. Default 42.
	AdvisoryLock int64

	// Table is the outbox table. Default outbox, in the schema public.
	Table store.Table

	// Migrate lets the relay create or upgrade its tables when it starts.
	// Default true.
	Migrate bool

	// Strict makes the relay refuse to start, rather than warn, where a
	// condition of exactly-once delivery does not hold. Default false.
	Strict bool

	// HTTPAddr is where metrics and health are served, or
	// [HTTPOff]. Default 127.0.0.1:8080.
	HTTPAddr string

	// HTTPAddrSet is true if the user set HTTPAddr: then a port that is taken is an error. A relay
	// does without the default address if that is taken.
	HTTPAddrSet bool

	// Logging says what is logged, and how.
	Logging Logging

	// NATS says how to reach the broker.
	NATS NATS

	// Stream says where events go, and how that stream is created if the relay
	// creates it.
	Stream Stream

	// Relay tunes the publishing loop.
	Relay Relay

	// Election is how relays agree on the one that publishes.
	Election Election
}

// HTTPOff is the HTTPAddr of a relay that serves no HTTP.
const HTTPOff = "off"

// Logging is the logging part of a [Config].
type Logging struct {
	// Level is the least severe level that is logged. Default info.
	Level slog.Level

	// Format is how a record is written. Default [FormatText].
	Format Format
}

// NATS is the broker part of a [Config].
type NATS struct {
	// URL is a comma separated list of servers, or [NATSEmbedded]. Default
	// nats://localhost:4222. [Load] fills it from URLFile, if that is given
	// instead.
	URL Secret

	// URLFile is a file with the URL, which is read again at each connection.
	// Default none.
	URLFile string

	// Creds is a credentials file (JWT and seed). Default none.
	Creds string

	// NKey is a file with an NKey seed. Default none.
	NKey string

	// TLSCA is a file with the authorities to trust. Default the system's.
	TLSCA string

	// TLSCert is the client certificate's file; it needs TLSKey. Default none.
	TLSCert string

	// TLSKey is the file of TLSCert's key. Default none.
	TLSKey string

	// TLSFirst does the TLS handshake before the server says anything, for
	// servers that want it so. Default false.
	TLSFirst bool

	// Domain is the JetStream domain that the stream is in. Default that of the
	// servers in URL.
	Domain string

	// InboxPrefix is what the subjects of answers begin with. Default _INBOX.
	InboxPrefix string

	// Listen is where the embedded server listens. Default 127.0.0.1:4222.
	Listen string

	// StoreDir is where the embedded server keeps its streams. Default
	// data/nats.
	StoreDir string
}

// NATSEmbedded is the URL of a relay that runs its own NATS server.
const NATSEmbedded = "embedded"

// Embedded reports whether the relay is to run its own NATS server.
func (n NATS) Embedded() bool { return n.URL == NATSEmbedded }

// Stream is the JetStream part of a [Config].
type Stream struct {
	// Name is the stream's name. Default OUTBOX.
	Name string

	// Adopt lets a relay take an outbox to this stream that went to another
	// one. Default false: such a relay is refused.
	Adopt bool

	// Subject is the template of an event's subject. Default
	// outbox.{topic}.{aggregate_type}.{aggregate_id}.
	Subject string

	// DuplicateWindow is how long a stream the relay creates remembers message
	// ids. Default 10m.
	DuplicateWindow time.Duration

	// Create lets the relay create a stream that does not exist. Default true.
	Create bool

	// Replicas of a stream the relay creates and, with [relay.ElectionJetStream], of the bucket. Default 1.
	Replicas int

	// MaxAge is how long a stream the relay creates keeps a message, 0 for
	// ever. Default 0.
	MaxAge time.Duration

	// Storage of a stream the relay creates. Default [StorageFile].
	Storage Storage

	// MaxBytes is how much a stream the relay creates keeps, 0 for no limit. Of
	// more, the oldest messages are removed. Default 0.
	MaxBytes int64

	// Compression of a stream the relay creates. Default [CompressionNone].
	Compression Compression

	// PlacementTags, separated by commas, are the tags that servers must have to
	// keep a stream that the relay creates. Default none.
	PlacementTags string

	// CloudEventsSource is the source attribute of the CloudEvents headers.
	// Default empty: no such headers are sent.
	CloudEventsSource string
}

// Relay is the publishing loop's part of a [Config].
type Relay struct {
	// PollInterval is the longest a sleeping relay waits before it looks at
	// the table; a committed event normally wakes it at once. Default 1s.
	PollInterval time.Duration

	// BatchSize is how many rows one fetch reads. Default 1000.
	BatchSize int

	// BatchBytes is how many bytes of all columns one fetch reads. Default 2 MiB.
	BatchBytes int

	// MaxAttempts is how often the broker may refuse an event before the event
	// becomes a dead letter. An outage costs no attempts. Default 3.
	MaxAttempts int

	// OnDead is what happens to the later events of an aggregate after one was
	// given up. Default [OnDeadSkip].
	OnDead OnDead

	// RetryBackoff is how long a refused event waits for its second attempt. The
	// wait doubles with every further one. Default 1s.
	RetryBackoff time.Duration

	// RetryBackoffMax is where the doubling ends. Default 1m.
	RetryBackoffMax time.Duration

	// Retain is how long, at least, published events stay in the archive. If the
	// broker loses events that it had acknowledged, the relay publishes them again
	// from there. 0 keeps no archive. Default 5m.
	Retain time.Duration

	// DeadRetain is how long dead letters are kept: the leader removes older ones.
	// Not with OnDeadHold. Default 0: until a person decides.
	DeadRetain time.Duration

	// AuditInterval is how often the leader compares the archive with the stream:
	// see package relay/audit. 0 never does.
	AuditInterval time.Duration

	// AckTimeout is how long the broker may take to acknowledge. Default 5s.
	AckTimeout time.Duration

	// ShutdownTimeout is how long a relay that was asked to stop may take to finish
	// what is in flight. Default 10s.
	ShutdownTimeout time.Duration
}

// Format is how log records are written.
type Format string

// The log formats.
const (
	// FormatText is for people.
	FormatText Format = "text"

	// FormatJSON is for machines, one object a line.
	FormatJSON Format = "json"
)

// Storage is what a stream is stored on.
type Storage string

// The kinds of storage.
const (
	// StorageFile survives a restart of the broker.
	StorageFile Storage = "file"

	// StorageMemory does not.
	StorageMemory Storage = "memory"
)

// Compression is how a stream is compressed.
type Compression string

// The kinds of compression.
const (
	// CompressionNone stores messages as they are.
	CompressionNone Compression = "none"

	// CompressionS2 takes processor time and saves disk.
	CompressionS2 Compression = "s2"
)

// Tags returns PlacementTags one by one.
func (s Stream) Tags() []string {
	if s.PlacementTags == "" {
		return nil
	}
	tags := strings.Split(s.PlacementTags, ",")
	for i, tag := range tags {
		tags[i] = strings.TrimSpace(tag)
	}
	return tags
}

// OnDead is what follows an event that was given up.
type OnDead string

// What may follow an event that was given up.
const (
	// OnDeadSkip lets the aggregate's later events go on.
	OnDeadSkip OnDead = "skip"

	// OnDeadHold keeps them until a person decides.
	OnDeadHold OnDead = "hold"
)

// Election is the election's part of a [Config].
type Election struct {
	// Kind is how relays agree on the one that publishes. Default
	// [relay.ElectionPostgres].
	Kind relay.ElectionKind

	// Key is the entry that relays compete for with [relay.ElectionJetStream]. Default one
	// made of the stream, the database's name and the table.
	Key string
}

// Default returns the defaults. DatabaseDSN has none.
func Default() Config {
	return Config{
		AdvisoryLock: 42,
		Table:        store.Table{Schema: store.DefaultSchema, Name: store.DefaultName},
		Migrate:      true,
		HTTPAddr:     "127.0.0.1:8080",
		Logging: Logging{
			Level:  slog.LevelInfo,
			Format: FormatText,
		},
		NATS: NATS{
			URL:      "nats://localhost:4222",
			Listen:   "127.0.0.1:4222",
			StoreDir: "data/nats",
		},
		Stream: Stream{
			Name:            "OUTBOX",
			Subject:         "outbox.{topic}.{aggregate_type}.{aggregate_id}",
			DuplicateWindow: 10 * time.Minute,
			Create:          true,
			Replicas:        1,
			Storage:         StorageFile,
			Compression:     CompressionNone,
		},
		Relay: Relay{
			PollInterval:    time.Second,
			BatchSize:       1000,
			BatchBytes:      2 << 20,
			MaxAttempts:     3,
			OnDead:          OnDeadSkip,
			RetryBackoff:    time.Second,
			RetryBackoffMax: time.Minute,
			Retain:          5 * time.Minute,
			AckTimeout:      5 * time.Second,
			ShutdownTimeout: 10 * time.Second,
		},
		Election: Election{Kind: relay.ElectionPostgres},
	}
}

// LogValue lists every setting by its file key, without passwords.
func (c Config) LogValue() slog.Value {
	fields := Fields()
	attrs := make([]slog.Attr, len(fields))
	for i, f := range fields {
		attrs[i] = slog.String(f.Key, f.Value(c))
	}
	return slog.GroupValue(attrs...)
}
