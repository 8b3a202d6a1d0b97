package config

import (
	"errors"
	"log/slog"
	"math"
	"regexp"
	"time"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
)

// Field describes one setting.
type Field struct {
	// Key is its name in the file, "key" or "table.key".
	Key string

	// Env is its environment variable.
	Env string

	// Default is the default in the notation of the file, without quotes. It
	// is empty if there is none.
	Default string

	// Want is what is accepted, in words that follow "want".
	Want string

	// Doc is what it means, in a sentence or two.
	Doc string

	// Required says that there is no default to fall back to.
	Required bool

	// alias is a second key that is read as this one.
	alias string

	// file says that a value names a file, which must be readable.
	file bool

	kind kind
}

// Value returns the setting's value in c in the notation of the file, without
// quotes and without passwords.
func (f Field) Value(c Config) string { return f.kind.show(&c) }

// fault is what err, an error of the field's kind, says in an Error without a place.
func (f Field) fault(err error, problem string) *Error {
	switch {
	case errors.Is(err, errRefused):
		return &Error{Problem: problem, Want: f.Want}
	case f.kind.explains:
		return &Error{Problem: withoutName(err)}
	default:
		return &Error{Problem: problem, Want: f.Want, Hint: err.Error()}
	}
}

// fieldName is what an error of the library begins with that names a field of its Go types.
var fieldName = regexp.MustCompile(`^[A-Z][A-Za-z]*: `)

// withoutName is an error's text without the name of the Go field: the fault names the setting.
func withoutName(err error) string { return fieldName.ReplaceAllString(err.Error(), "") }

// The two ways to say how to reach Postgres, and the two for NATS.
const (
	dsnKey     = "database_dsn"
	dsnFileKey = "database_dsn_file"

	natsURLKey     = "nats_url"
	natsURLFileKey = "nats_url_file"
)

const subjectKey = "subject"

// Fields returns every setting, in the order of the sample file.
func Fields() []Field {
	const day = 24 * time.Hour
	fields := []Field{
		{
			Key: dsnKey, Env: "OUTBOX_DATABASE_DSN", Required: true,
			Doc:  "How to reach Postgres itself, not a pooler. Of several hosts the relay uses the one that takes writes. Either this or database_dsn_file.",
			kind: dsn(func(c *Config) *Secret { return &c.DatabaseDSN }),
		},
		{
			Key: dsnFileKey, Env: "OUTBOX_DATABASE_DSN_FILE", file: true,
			Doc:  "File with the DSN, in one line. It is read again at each connection, so a new password needs no restart.",
			kind: filePath(func(c *Config) *string { return &c.DatabaseDSNFile }),
		},
		{
			Key: "database_password_file", Env: "OUTBOX_DATABASE_PASSWORD_FILE", file: true,
			Doc:  "File with the password, in one line. It is read again at each connection, and wins over a password in the DSN.",
			kind: filePath(func(c *Config) *string { return &c.DatabasePasswordFile }),
		},
		{
			Key: natsURLKey, Env: "OUTBOX_NATS_URL",
			Doc:  "NATS servers, or \"embedded\" to run one inside the relay. Either this or nats_url_file.",
			kind: natsURL(func(c *Config) *Secret { return &c.NATS.URL }),
		},
		{
			Key: natsURLFileKey, Env: "OUTBOX_NATS_URL_FILE", file: true,
			Doc:  "File with what nats_url takes, in one line, with user and password or token. They are read again at each connection, so a new password needs no restart.",
			kind: filePath(func(c *Config) *string { return &c.NATS.URLFile }),
		},
		{
			Key: "advisory_lock", Env: "OUTBOX_ADVISORY_LOCK",
			Doc:  "Number that the relays of one outbox compete for. It is combined with the table's name, so outboxes may share it.",
			kind: integer(func(c *Config) *int64 { return &c.AdvisoryLock }, math.MinInt64, math.MaxInt64),
		},
		{
			Key: "table", Env: "OUTBOX_TABLE",
			Doc:  "The outbox table; case counts.",
			kind: tableName(func(c *Config) *store.Table { return &c.Table }),
		},
		{
			Key: "migrate", Env: "OUTBOX_MIGRATE",
			Doc:  "Create or upgrade the tables at start.",
			kind: boolean(func(c *Config) *bool { return &c.Migrate }),
		},
		{
			Key: "strict", Env: "OUTBOX_STRICT",
			Doc:  "Refuse to start, instead of warning, where a condition of exactly-once delivery does not hold.",
			kind: boolean(func(c *Config) *bool { return &c.Strict }),
		},
		{
			Key: "http_addr", Env: "OUTBOX_HTTP_ADDR",
			Doc:  "Where metrics and health are served, or \"off\". If you set it and the port is taken, the relay does not start. It does without the default address if that is taken.",
			kind: httpAddr(),
		},
		{
			Key: "logging_level", Env: "OUTBOX_LOGGING_LEVEL", alias: "relay.logging_level",
			Doc:  "Least severe level that is logged.",
			kind: logLevel(func(c *Config) *slog.Level { return &c.Logging.Level }),
		},
		{
			Key: "logging_format", Env: "OUTBOX_LOGGING_FORMAT", alias: "relay.logging_format",
			Doc:  "How log records are written: for people, or one JSON object a line.",
			kind: choice(func(c *Config) *Format { return &c.Logging.Format }, FormatText, FormatJSON),
		},
		{
			Key: "nats_creds", Env: "OUTBOX_NATS_CREDS", file: true,
			Doc:  "Credentials file (JWT and seed) to log in to NATS with. Excludes nats_nkey.",
			kind: filePath(func(c *Config) *string { return &c.NATS.Creds }),
		},
		{
			Key: "nats_nkey", Env: "OUTBOX_NATS_NKEY", file: true,
			Doc:  "File with the NKey seed to log in to NATS with. Excludes nats_creds.",
			kind: filePath(func(c *Config) *string { return &c.NATS.NKey }),
		},
		{
			Key: "nats_tls_ca", Env: "OUTBOX_NATS_TLS_CA", file: true,
			Doc:  "File with the certificate authorities to trust, instead of the system's.",
			kind: filePath(func(c *Config) *string { return &c.NATS.TLSCA }),
		},
		{
			Key: "nats_tls_cert", Env: "OUTBOX_NATS_TLS_CERT", file: true,
			Doc:  "File with the client certificate. Needs nats_tls_key.",
			kind: filePath(func(c *Config) *string { return &c.NATS.TLSCert }),
		},
		{
			Key: "nats_tls_key", Env: "OUTBOX_NATS_TLS_KEY", file: true,
			Doc:  "File with the client certificate's key. Needs nats_tls_cert.",
			kind: filePath(func(c *Config) *string { return &c.NATS.TLSKey }),
		},
		{
			Key: "nats_tls_first", Env: "OUTBOX_NATS_TLS_FIRST",
			Doc:  "Begin with TLS, for servers with handshake_first. Not with ws and wss.",
			kind: boolean(func(c *Config) *bool { return &c.NATS.TLSFirst }),
		},
		{
			Key: "nats_domain", Env: "OUTBOX_NATS_DOMAIN",
			Doc:  "JetStream domain of the stream, if the servers in nats_url have another: that of the hub if they are leaf nodes, for example.",
			kind: domainName(func(c *Config) *string { return &c.NATS.Domain }),
		},
		{
			Key: "nats_inbox_prefix", Env: "OUTBOX_NATS_INBOX_PREFIX",
			Doc:  "What the subjects of answers begin with, instead of _INBOX, for a NATS user who may not subscribe there.",
			kind: inboxPrefix(func(c *Config) *string { return &c.NATS.InboxPrefix }),
		},
		{
			Key: "nats_listen", Env: "OUTBOX_NATS_LISTEN",
			Doc:  "Where the embedded server listens.",
			kind: listenAddr(func(c *Config) *string { return &c.NATS.Listen }),
		},
		{
			Key: "nats_store_dir", Env: "OUTBOX_NATS_STORE_DIR",
			Doc:  "Where the embedded server keeps its streams.",
			kind: directory(func(c *Config) *string { return &c.NATS.StoreDir }),
		},
		{
			Key: "stream", Env: "OUTBOX_STREAM",
			Doc:  "The JetStream stream that events are stored in.",
			kind: streamName(func(c *Config) *string { return &c.Stream.Name }),
		},
		{
			Key: "adopt_stream", Env: "OUTBOX_ADOPT_STREAM",
			Doc:  "Take the outbox to this stream although it went to another one. Otherwise a relay that names another stream is refused.",
			kind: boolean(func(c *Config) *bool { return &c.Stream.Adopt }),
		},
		{
			Key: subjectKey, Env: "OUTBOX_SUBJECT",
			Doc:  "Subject of an event; {topic}, {aggregate_type}, {aggregate_id} and {event_type} stand for its own.",
			kind: subjectTemplate(func(c *Config) *string { return &c.Stream.Subject }),
		},
		{
			Key: "duplicate_window", Env: "OUTBOX_DUPLICATE_WINDOW",
			Doc:  "How long a stream that the relay creates remembers message ids.",
			kind: duration(func(c *Config) *time.Duration { return &c.Stream.DuplicateWindow }, 100*time.Millisecond, 3650*day),
		},
		{
			Key: "stream_create", Env: "OUTBOX_STREAM_CREATE",
			Doc:  "Create the stream if it does not exist.",
			kind: boolean(func(c *Config) *bool { return &c.Stream.Create }),
		},
		{
			Key: "stream_replicas", Env: "OUTBOX_STREAM_REPLICAS",
			Doc:  `Replicas of a stream that the relay creates and, with election.kind = "jetstream", of the bucket.`,
			kind: integer(func(c *Config) *int { return &c.Stream.Replicas }, 1, 5),
		},
		{
			Key: "stream_max_age", Env: "OUTBOX_STREAM_MAX_AGE",
			Doc:  "How long a stream that the relay creates keeps a message: \"0s\" for ever, otherwise at least duplicate_window.",
			kind: duration(func(c *Config) *time.Duration { return &c.Stream.MaxAge }, 0, 36500*day),
		},
		{
			Key: "stream_storage", Env: "OUTBOX_STREAM_STORAGE",
			Doc:  "What a stream that the relay creates is stored on.",
			kind: choice(func(c *Config) *Storage { return &c.Stream.Storage }, StorageFile, StorageMemory),
		},
		{
			Key: "stream_max_bytes", Env: "OUTBOX_STREAM_MAX_BYTES",
			Doc:  "How many bytes a stream that the relay creates keeps; beyond that it removes the oldest messages. 0 is no limit; some accounts demand one.",
			kind: integer(func(c *Config) *int64 { return &c.Stream.MaxBytes }, 0, 1<<50),
		},
		{
			Key: "stream_compression", Env: "OUTBOX_STREAM_COMPRESSION",
			Doc:  "How a stream that the relay creates is compressed.",
			kind: choice(func(c *Config) *Compression { return &c.Stream.Compression }, CompressionNone, CompressionS2),
		},
		{
			Key: "stream_placement_tags", Env: "OUTBOX_STREAM_PLACEMENT_TAGS",
			Doc:  "Tags that servers must have to keep a stream that the relay creates; empty for any servers.",
			kind: tags(func(c *Config) *string { return &c.Stream.PlacementTags }),
		},
		{
			Key: "cloudevents_source", Env: "OUTBOX_CLOUDEVENTS_SOURCE",
			Doc:  "Source attribute of the CloudEvents headers; empty sends no such headers.",
			kind: uriReference(func(c *Config) *string { return &c.Stream.CloudEventsSource }),
		},
		{
			Key: "relay.poll_interval", Env: "OUTBOX_POLL_INTERVAL",
			Doc:  "The longest that a sleeping relay waits before it looks at the table; a commit normally wakes it at once.",
			kind: duration(func(c *Config) *time.Duration { return &c.Relay.PollInterval }, 10*time.Millisecond, time.Hour),
		},
		{
			Key: "relay.batch_size", Env: "OUTBOX_BATCH_SIZE",
			Doc:  "How many rows one fetch reads, at most.",
			kind: integer(func(c *Config) *int { return &c.Relay.BatchSize }, 1, 100_000),
		},
		{
			Key: "relay.batch_bytes", Env: "OUTBOX_BATCH_BYTES",
			Doc:  "How many bytes one fetch reads, at most, of all columns.",
			kind: integer(func(c *Config) *int { return &c.Relay.BatchBytes }, 64<<10, 1<<30),
		},
		{
			Key: "relay.max_attempts", Env: "OUTBOX_MAX_ATTEMPTS",
			Doc:  "How often the broker may refuse an event before the event becomes a dead letter. An outage costs no attempts.",
			kind: integer(func(c *Config) *int { return &c.Relay.MaxAttempts }, 1, 1000),
		},
		{
			Key: "relay.on_dead", Env: "OUTBOX_ON_DEAD",
			Doc:  "What follows a dead letter: its aggregate's later events go on, or are held until a person decides.",
			kind: choice(func(c *Config) *OnDead { return &c.Relay.OnDead }, OnDeadSkip, OnDeadHold),
		},
		{
			Key: "relay.retry_backoff", Env: "OUTBOX_RETRY_BACKOFF",
			Doc:  "How long a refused event waits for its second attempt; the wait doubles with every further one.",
			kind: duration(func(c *Config) *time.Duration { return &c.Relay.RetryBackoff }, time.Millisecond, time.Hour),
		},
		{
			Key: "relay.retry_backoff_max", Env: "OUTBOX_RETRY_BACKOFF_MAX",
			Doc:  "Where the doubling ends; at least retry_backoff.",
			kind: duration(func(c *Config) *time.Duration { return &c.Relay.RetryBackoffMax }, time.Millisecond, day),
		},
		{
			Key: "relay.retain", Env: "OUTBOX_RETAIN",
			Doc:  "How long, at least, published events stay in the archive. If the broker loses events that it had acknowledged, the relay publishes them again from there. \"0s\" keeps no archive: that is faster, and such events are lost.",
			kind: duration(func(c *Config) *time.Duration { return &c.Relay.Retain }, 0, 365*day),
		},
		{
			Key: "relay.dead_retain", Env: "OUTBOX_DEAD_RETAIN",
			Doc:  "How long dead letters are kept: the leader removes older ones. \"0s\" keeps them until a person decides. Not with on_dead = \"hold\".",
			kind: duration(func(c *Config) *time.Duration { return &c.Relay.DeadRetain }, 0, 10*365*day),
		},
		{
			Key: "relay.audit_interval", Env: "OUTBOX_AUDIT_INTERVAL",
			Doc:  "How often the leader compares the archive with the stream, as outbox-relay audit does, for log and metrics. \"0s\" never does.",
			kind: duration(func(c *Config) *time.Duration { return &c.Relay.AuditInterval }, 0, 30*day),
		},
		{
			Key: "relay.ack_timeout", Env: "OUTBOX_ACK_TIMEOUT",
			Doc:  "How long the broker may take to acknowledge.",
			kind: duration(func(c *Config) *time.Duration { return &c.Relay.AckTimeout }, 100*time.Millisecond, time.Minute),
		},
		{
			Key: "relay.shutdown_timeout", Env: "OUTBOX_SHUTDOWN_TIMEOUT",
			Doc:  "How long a relay that was asked to stop may take to finish what is in flight.",
			kind: duration(func(c *Config) *time.Duration { return &c.Relay.ShutdownTimeout }, 100*time.Millisecond, 10*time.Minute),
		},
		{
			Key: "election.kind", Env: "OUTBOX_ELECTION",
			Doc:  "How relays agree on the leader: by an advisory lock in Postgres, by a key-value bucket of JetStream, or not at all: then run only one relay.",
			kind: choice(func(c *Config) *relay.ElectionKind { return &c.Election.Kind }, relay.ElectionPostgres, relay.ElectionJetStream, relay.ElectionNone),
		},
		{
			Key: "election.key", Env: "OUTBOX_ELECTION_KEY",
			Doc:  "The entry that relays compete for with kind = \"jetstream\", in the bucket OUTBOX_election. Empty: a key made of the stream, the database's name and the table. Outboxes of one NATS account need different keys.",
			kind: electionKey(func(c *Config) *string { return &c.Election.Key }),
		},
	}

	defaults := Default()
	for i := range fields {
		f := &fields[i]
		f.Want = f.kind.want
		f.Default = f.Value(defaults)
	}
	return fields
}
