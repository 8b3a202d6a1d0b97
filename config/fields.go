package config

import (
	"log/slog"
	"math"
	"time"
)

// Field describes one setting.
type Field struct {
	// Key is its name in the file, "key" or "table.key".
	Key string

	// Env is its environment variable.
	Env string

	// Type is "string", "integer", "boolean" or "duration".
	Type Type

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

	form form
}

// Value returns the setting's value in c in the notation of the file, without
// quotes and without passwords.
func (f Field) Value(c Config) string { return f.form.show(&c) }

// got writes a value that was given to the field for an error.
func (f Field) got(value any) string {
	text, ok := value.(string)
	if !ok {
		return "got " + describe(value)
	}
	if f.form.secret {
		text = Redact(text)
	}
	return "got " + quote(text)
}

// The two ways to say how to reach Postgres, and the two for NATS.
const (
	dsnKey     = "database_dsn"
	dsnFileKey = "database_dsn_file"

	natsURLKey     = "nats_url"
	natsURLFileKey = "nats_url_file"
)

// Fields returns every setting, in the order of the sample file.
func Fields() []Field {
	const day = 24 * time.Hour
	fields := []Field{
		{
			Key: dsnKey, Env: "OUTBOX_DATABASE_DSN", Required: true,
			Doc:  "How to reach Postgres itself, not a pooler. Of several hosts the one that takes writes is used. Either this or database_dsn_file.",
			form: dsn(func(c *Config) *Secret { return &c.DatabaseDSN }),
		},
		{
			Key: dsnFileKey, Env: "OUTBOX_DATABASE_DSN_FILE", file: true,
			Doc:  "File with the DSN, in one line. It is read again at each connection, so that a password that was replaced needs no restart.",
			form: filePath(func(c *Config) *string { return &c.DatabaseDSNFile }),
		},
		{
			Key: "database_password_file", Env: "OUTBOX_DATABASE_PASSWORD_FILE", file: true,
			Doc:  "File with the password, in one line. It is read again at each connection and goes before what the DSN says.",
			form: filePath(func(c *Config) *string { return &c.DatabasePasswordFile }),
		},
		{
			Key: natsURLKey, Env: "OUTBOX_NATS_URL",
			Doc:  "NATS servers, or \"embedded\" to run one inside the relay. Either this or nats_url_file.",
			form: natsURL(func(c *Config) *Secret { return &c.NATS.URL }),
		},
		{
			Key: natsURLFileKey, Env: "OUTBOX_NATS_URL_FILE", file: true,
			Doc:  "File with what nats_url takes, in one line, user and password or token included. They are read again at each connection, so that a password that was replaced needs no restart.",
			form: filePath(func(c *Config) *string { return &c.NATS.URLFile }),
		},
		{
			Key: "advisory_lock", Env: "OUTBOX_ADVISORY_LOCK",
			Doc:  "Number the relays of one outbox compete for. It is combined with the table's name, so outboxes may share it.",
			form: integer(func(c *Config) *int64 { return &c.AdvisoryLock }, math.MinInt64, math.MaxInt64),
		},
		{
			Key: "table", Env: "OUTBOX_TABLE",
			Doc:  "The outbox table; case counts.",
			form: tableName(func(c *Config) *Table { return &c.Table }),
		},
		{
			Key: "migrate", Env: "OUTBOX_MIGRATE",
			Doc:  "Create or upgrade the tables at start.",
			form: boolean(func(c *Config) *bool { return &c.Migrate }),
		},
		{
			Key: "strict", Env: "OUTBOX_STRICT",
			Doc:  "Refuse to start, instead of warning, where a condition of exactly-once delivery does not hold.",
			form: boolean(func(c *Config) *bool { return &c.Strict }),
		},
		{
			Key: "http_addr", Env: "OUTBOX_HTTP_ADDR",
			Doc:  "Where metrics and health are served, or \"off\". If it is set and the port is taken, the relay does not start; the default it can do without.",
			form: httpAddr(),
		},
		{
			Key: "logging_level", Env: "OUTBOX_LOGGING_LEVEL", alias: "relay.logging_level",
			Doc:  "Least severe level that is logged.",
			form: logLevel(func(c *Config) *slog.Level { return &c.Logging.Level }),
		},
		{
			Key: "logging_format", Env: "OUTBOX_LOGGING_FORMAT", alias: "relay.logging_format",
			Doc:  "How log records are written: for people, or one JSON object a line.",
			form: choice(func(c *Config) *Format { return &c.Logging.Format }, FormatText, FormatJSON),
		},
		{
			Key: "nats_creds", Env: "OUTBOX_NATS_CREDS", file: true,
			Doc:  "Credentials file (JWT and seed) to log in to NATS with. Excludes nats_nkey.",
			form: filePath(func(c *Config) *string { return &c.NATS.Creds }),
		},
		{
			Key: "nats_nkey", Env: "OUTBOX_NATS_NKEY", file: true,
			Doc:  "File with the NKey seed to log in to NATS with. Excludes nats_creds.",
			form: filePath(func(c *Config) *string { return &c.NATS.NKey }),
		},
		{
			Key: "nats_tls_ca", Env: "OUTBOX_NATS_TLS_CA", file: true,
			Doc:  "File with the certificate authorities to trust, instead of the system's.",
			form: filePath(func(c *Config) *string { return &c.NATS.TLSCA }),
		},
		{
			Key: "nats_tls_cert", Env: "OUTBOX_NATS_TLS_CERT", file: true,
			Doc:  "File with the client certificate. Needs nats_tls_key.",
			form: filePath(func(c *Config) *string { return &c.NATS.TLSCert }),
		},
		{
			Key: "nats_tls_key", Env: "OUTBOX_NATS_TLS_KEY", file: true,
			Doc:  "File with the client certificate's key. Needs nats_tls_cert.",
			form: filePath(func(c *Config) *string { return &c.NATS.TLSKey }),
		},
		{
			Key: "nats_tls_first", Env: "OUTBOX_NATS_TLS_FIRST",
			Doc:  "Begin with TLS, for servers that want it so (handshake_first). Not with ws and wss.",
			form: boolean(func(c *Config) *bool { return &c.NATS.TLSFirst }),
		},
		{
			Key: "nats_domain", Env: "OUTBOX_NATS_DOMAIN",
			Doc:  "JetStream domain the stream is in, if not that of the servers in nats_url, say, of the hub of a leaf node.",
			form: domainName(func(c *Config) *string { return &c.NATS.Domain }),
		},
		{
			Key: "nats_inbox_prefix", Env: "OUTBOX_NATS_INBOX_PREFIX",
			Doc:  "What the subjects of answers begin with instead of _INBOX, for a user who may subscribe to others only.",
			form: inboxPrefix(func(c *Config) *string { return &c.NATS.InboxPrefix }),
		},
		{
			Key: "nats_listen", Env: "OUTBOX_NATS_LISTEN",
			Doc:  "Where the embedded server listens.",
			form: listenAddr(func(c *Config) *string { return &c.NATS.Listen }),
		},
		{
			Key: "nats_store_dir", Env: "OUTBOX_NATS_STORE_DIR",
			Doc:  "Where the embedded server keeps its streams.",
			form: directory(func(c *Config) *string { return &c.NATS.StoreDir }),
		},
		{
			Key: "stream", Env: "OUTBOX_STREAM",
			Doc:  "The JetStream stream events are stored in.",
			form: streamName(func(c *Config) *string { return &c.Stream.Name }),
		},
		{
			Key: "adopt_stream", Env: "OUTBOX_ADOPT_STREAM",
			Doc:  "Take the outbox to this stream although it went to another one. Otherwise a relay that names another stream is refused.",
			form: boolean(func(c *Config) *bool { return &c.Stream.Adopt }),
		},
		{
			Key: "subject", Env: "OUTBOX_SUBJECT",
			Doc:  "Subject of an event; {topic}, {aggregate_type}, {aggregate_id} and {event_type} stand for its own.",
			form: subjectTemplate(func(c *Config) *string { return &c.Stream.Subject }),
		},
		{
			Key: "duplicate_window", Env: "OUTBOX_DUPLICATE_WINDOW",
			Doc:  "How long a stream the relay creates remembers message ids.",
			form: duration(func(c *Config) *time.Duration { return &c.Stream.DuplicateWindow }, 100*time.Millisecond, 3650*day),
		},
		{
			Key: "stream_create", Env: "OUTBOX_STREAM_CREATE",
			Doc:  "Create the stream if it does not exist.",
			form: boolean(func(c *Config) *bool { return &c.Stream.Create }),
		},
		{
			Key: "stream_replicas", Env: "OUTBOX_STREAM_REPLICAS",
			Doc:  `Replicas of a stream the relay creates and, with election.kind = "jetstream", of the bucket.`,
			form: integer(func(c *Config) *int { return &c.Stream.Replicas }, 1, 5),
		},
		{
			Key: "stream_max_age", Env: "OUTBOX_STREAM_MAX_AGE",
			Doc:  "How long a stream the relay creates keeps a message: \"0s\" for ever, otherwise at least duplicate_window.",
			form: duration(func(c *Config) *time.Duration { return &c.Stream.MaxAge }, 0, 36500*day),
		},
		{
			Key: "stream_storage", Env: "OUTBOX_STREAM_STORAGE",
			Doc:  "What a stream the relay creates is stored on.",
			form: choice(func(c *Config) *Storage { return &c.Stream.Storage }, StorageFile, StorageMemory),
		},
		{
			Key: "stream_max_bytes", Env: "OUTBOX_STREAM_MAX_BYTES",
			Doc:  "Bytes a stream the relay creates keeps: of more, the oldest messages are removed. 0 is no limit; some accounts demand one.",
			form: integer(func(c *Config) *int64 { return &c.Stream.MaxBytes }, 0, 1<<50),
		},
		{
			Key: "stream_compression", Env: "OUTBOX_STREAM_COMPRESSION",
			Doc:  "How a stream the relay creates is compressed.",
			form: choice(func(c *Config) *Compression { return &c.Stream.Compression }, CompressionNone, CompressionS2),
		},
		{
			Key: "stream_placement_tags", Env: "OUTBOX_STREAM_PLACEMENT_TAGS",
			Doc:  "Tags that the servers must have which keep a stream the relay creates; empty for any servers.",
			form: tags(func(c *Config) *string { return &c.Stream.PlacementTags }),
		},
		{
			Key: "cloudevents_source", Env: "OUTBOX_CLOUDEVENTS_SOURCE",
			Doc:  "Source attribute of the CloudEvents headers; empty sends no such headers.",
			form: uriReference(func(c *Config) *string { return &c.Stream.CloudEventsSource }),
		},
		{
			Key: "relay.poll_interval", Env: "OUTBOX_POLL_INTERVAL",
			Doc:  "Longest a sleeping relay waits before it looks at the table; a commit normally wakes it at once.",
			form: duration(func(c *Config) *time.Duration { return &c.Relay.PollInterval }, 10*time.Millisecond, time.Hour),
		},
		{
			Key: "relay.batch_size", Env: "OUTBOX_BATCH_SIZE",
			Doc:  "Rows one fetch reads.",
			form: integer(func(c *Config) *int { return &c.Relay.BatchSize }, 1, 100_000),
		},
		{
			Key: "relay.batch_bytes", Env: "OUTBOX_BATCH_BYTES",
			Doc:  "Bytes one fetch reads, of all columns.",
			form: integer(func(c *Config) *int { return &c.Relay.BatchBytes }, 64<<10, 1<<30),
		},
		{
			Key: "relay.max_attempts", Env: "OUTBOX_MAX_ATTEMPTS",
			Doc:  "How often an event is tried that the broker refuses for a reason of the event's own, such as its size. An outage costs no attempts.",
			form: integer(func(c *Config) *int { return &c.Relay.MaxAttempts }, 1, 1000),
		},
		{
			Key: "relay.on_dead", Env: "OUTBOX_ON_DEAD",
			Doc:  "What follows a row that was given up: its aggregate goes on, or is held until a person decides.",
			form: choice(func(c *Config) *OnDead { return &c.Relay.OnDead }, OnDeadSkip, OnDeadHold),
		},
		{
			Key: "relay.retry_backoff", Env: "OUTBOX_RETRY_BACKOFF",
			Doc:  "First wait of a row that was refused; it doubles with every attempt.",
			form: duration(func(c *Config) *time.Duration { return &c.Relay.RetryBackoff }, time.Millisecond, time.Hour),
		},
		{
			Key: "relay.retry_backoff_max", Env: "OUTBOX_RETRY_BACKOFF_MAX",
			Doc:  "Where the doubling ends; at least retry_backoff.",
			form: duration(func(c *Config) *time.Duration { return &c.Relay.RetryBackoffMax }, time.Millisecond, day),
		},
		{
			Key: "relay.retain", Env: "OUTBOX_RETAIN",
			Doc:  "How long, at least, published events stay in an archive, from which what the broker loses after it acknowledged it is published again. \"0s\" keeps none, which is faster, and what the broker so loses is lost.",
			form: duration(func(c *Config) *time.Duration { return &c.Relay.Retain }, 0, 365*day),
		},
		{
			Key: "relay.ack_timeout", Env: "OUTBOX_ACK_TIMEOUT",
			Doc:  "How long the broker may take to acknowledge.",
			form: duration(func(c *Config) *time.Duration { return &c.Relay.AckTimeout }, 100*time.Millisecond, time.Minute),
		},
		{
			Key: "relay.shutdown_timeout", Env: "OUTBOX_SHUTDOWN_TIMEOUT",
			Doc:  "How long a relay that was asked to stop finishes what it has begun.",
			form: duration(func(c *Config) *time.Duration { return &c.Relay.ShutdownTimeout }, 100*time.Millisecond, 10*time.Minute),
		},
		{
			Key: "election.kind", Env: "OUTBOX_ELECTION",
			Doc:  "How relays agree on the one that publishes: by an advisory lock in Postgres, by a key-value bucket of JetStream, or not at all, which is a promise to run only one.",
			form: choice(func(c *Config) *ElectionKind { return &c.Election.Kind }, ElectionPostgres, ElectionJetStream, ElectionNone),
		},
		{
			Key: "election.key", Env: "OUTBOX_ELECTION_KEY",
			Doc:  "What relays compete for with kind = \"jetstream\", in the bucket OUTBOX_election; empty makes it of the stream, the database's name and the table. Outboxes of one NATS account need different ones.",
			form: electionKey(func(c *Config) *string { return &c.Election.Key }),
		},
	}

	defaults := Default()
	for i := range fields {
		f := &fields[i]
		f.Type = f.form.typ
		f.Want = f.form.want
		f.Default = f.Value(defaults)
	}
	return fields
}
