package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
)

// Defaults of a [Config].
const (
	DefaultLanes           = 32
	DefaultMaxPending      = 1000
	DefaultHandlerTimeout  = 30 * time.Second
	DefaultRetryBackoff    = 100 * time.Millisecond
	DefaultRetryBackoffMax = 10 * time.Second
	DefaultStopTimeout     = 5 * time.Second
)

// maxBatch is the most events in one transaction.
const maxBatch = 50

// Config describes a consumer. Name, Pool, JetStream and Handle are needed; other fields have defaults.
type Config struct {
	// Name names the consumer in the database. Processes with one name share the work of one consumer: one of them leads.
	// Consumers with different names each get every event.
	Name string
	// Pool leads to the database that the effects are in. The consumer keeps one connection for its lock, and uses one for
	// each lane that is at work: with fewer connections than lanes, lanes wait for each other. A pooler in transaction mode
	// must not be in between.
	Pool *pgxpool.Pool
	// JetStream is the connection to the broker: see stream.Connect.
	JetStream jetstream.JetStream
	// Stream is the name of the stream. The default is stream.DefaultStream.
	Stream string
	// Subjects are those wanted, with wildcards; all of the stream by default. Several need nats-server 2.10.
	Subjects []string
	// Handle applies an event's effect through tx, and only through it: the consumer commits or rolls back. It may be called
	// again for an event that failed. The context ends after HandlerTimeout.
	Handle func(ctx context.Context, tx pgx.Tx, event Event) error

	// Lanes is how many handlers may run at once, each for its own share of the aggregates. The default is DefaultLanes.
	Lanes int
	// Batch is how many waiting events a lane puts into one transaction, up to 50; 1 by default. If one of them fails, each
	// is handled in a transaction of its own. It pays where commits are what takes the time.
	Batch int
	// MaxPending bounds the events that are read and not yet committed. The default is DefaultMaxPending.
	MaxPending int
	// MaxAttempts is how often the handler is called for an event that fails before the event is parked; 0, the default,
	// tries for ever. A [Permanent] error parks the event at once, in either case.
	MaxAttempts int
	// HandlerTimeout bounds one call of the handler. Postgres ends a transaction that was idle for longer. The default is
	// DefaultHandlerTimeout.
	HandlerTimeout time.Duration
	// RetryBackoff is the pause before a second attempt; it doubles up to RetryBackoffMax. The defaults are
	// DefaultRetryBackoff and DefaultRetryBackoffMax.
	RetryBackoff, RetryBackoffMax time.Duration
	// StopTimeout is how long handlers may go on after Run's context has ended. The default is DefaultStopTimeout.
	StopTimeout time.Duration

	// Schema is where the consumer's tables are: outbox_inbox, outbox_inbox_position and outbox_parked. The default is
	// "public".
	Schema string
	// SkipMigration tells that somebody else makes the tables: see [Consumer.Migrate].
	SkipMigration bool
	// Logger receives what happens. The default discards it.
	Logger *slog.Logger
}

// validated returns the configuration with its defaults, or all that is wrong with it.
func (c Config) validated() (Config, error) {
	c.Stream = cmp.Or(c.Stream, stream.DefaultStream)
	c.Lanes = cmp.Or(c.Lanes, DefaultLanes)
	c.Batch = cmp.Or(c.Batch, 1)
	c.MaxPending = cmp.Or(c.MaxPending, DefaultMaxPending)
	c.HandlerTimeout = cmp.Or(c.HandlerTimeout, DefaultHandlerTimeout)
	c.RetryBackoff = cmp.Or(c.RetryBackoff, DefaultRetryBackoff)
	c.RetryBackoffMax = max(cmp.Or(c.RetryBackoffMax, DefaultRetryBackoffMax), c.RetryBackoff)
	c.StopTimeout = cmp.Or(c.StopTimeout, DefaultStopTimeout)
	c.Schema = cmp.Or(c.Schema, "public")
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var faults []error
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf("consumer: "+format, args...))
		}
	}
	fault(c.Name == "" || len(c.Name) > 100 || strings.ContainsRune(c.Name, 0), "Name %.100q: want 1 to 100 bytes", c.Name)
	fault(c.Pool == nil, "Pool is missing: it leads to the database that the effects are in")
	fault(c.Pool != nil && c.Pool.Config().MaxConns < 2, "Pool has one connection at most, and the consumer needs one for its lock and one for its work")
	fault(c.JetStream == nil, "JetStream is missing")
	fault(c.Handle == nil, "Handle is missing")
	fault(c.Lanes < 0, "Lanes %d: want at least 1", c.Lanes)
	fault(c.Batch < 0 || c.Batch > maxBatch, "Batch %d: want 1 to %d", c.Batch, maxBatch)
	fault(c.MaxPending < 0, "MaxPending %d: want at least 1", c.MaxPending)
	fault(c.MaxAttempts < 0, "MaxAttempts %d: want at least 1, or 0 for no bound", c.MaxAttempts)
	fault(min(c.HandlerTimeout, c.RetryBackoff, c.StopTimeout) < 0, "a duration is negative")
	return c, errors.Join(faults...)
}
