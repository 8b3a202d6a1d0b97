package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options of an [Outbox]. The zero value is the default outbox, public.outbox.
type Options struct {
	// Table names the outbox. The default is public.outbox.
	Table Table
	// HoldDead keeps back the later events of an aggregate that has a dead letter, until it is requeued or
	// discarded. The default, false, lets them go on.
	HoldDead bool
	// Retain is how long at least published events stay in the archive. If the broker loses events that it has acknowledged,
	// the relay puts them back from there. While a relay leads, events are gone after one and a half times Retain. 0 turns the
	// archive off, and empties it.
	Retain time.Duration
	// DeadRetain is how long dead letters are kept: a leader removes older ones. The default, 0, keeps them until a person
	// decides. It cannot be set with HoldDead.
	DeadRetain time.Duration
	// AdoptStream lets Begin and Stand go on with another stream than the one that the outbox has been relayed to. The
	// default, false, refuses that with ErrOtherStream: pending events would go to one stream, and those published before are
	// in another.
	AdoptStream bool
	// DSNFile names a file with the DSN; Open is then called without one. PasswordFile names a file with the password, which
	// takes precedence over the DSN's. Both files have one line. They are read at each connection, as is a passfile, so a
	// rotated secret needs no restart. Another server or database in DSNFile does.
	DSNFile, PasswordFile string
	// BeforeConnect may change how the next connection is made, above all the password, such as a token that is made for each
	// connection: Host, Port and User say for which. It is called before each attempt, within the attempt's time. The settings
	// that the outbox relies on are applied after it.
	BeforeConnect func(ctx context.Context, config *pgx.ConnConfig) error
	// Logger receives what happens on connections in the background, and that Migrate has changed something. The default
	// discards it.
	Logger *slog.Logger
}

// Outbox is the relay's and the operator's side of the outbox tables; producers need only [Insert]. It is
// safe for concurrent use, but one process has one leader's session: see [Outbox.Session].
type Outbox struct {
	table              Table
	retain, deadRetain time.Duration
	adopt              bool
	holdDead           bool
	log                *slog.Logger

	connector *connector
	session   *Session

	back      back                  // Where rows may have appeared below the floor.
	held      atomic.Pointer[names] // Aggregates held back by a dead letter (Options.HoldDead); nil for none.
	paused    atomic.Pointer[Pause] // As it was last found; nil for none.
	pauseTold atomic.Bool           // The pause has changed.
	// listening tells that notifications are heard.
	listening atomic.Bool
	// sound tells that the tables were as they have to be, once.
	sound atomic.Bool

	// Only to be used with the session, inside Do or DoPatiently.
	term       *Term      // The latest that Begin was called for; nil before.
	led        led        // What the latest term is recorded as.
	checked    uint64     // The session's generation when the tables were found ready by Stand; 0 before.
	said       saidReason // What Stand has recorded.
	pauseAsked time.Time  // When it was last asked whether the outbox is paused.
}

// Open prepares access to the outbox behind dsn, a Postgres URL or keyword string. It makes no connection
// yet, so it fails only if dsn or options are wrong, and its error quotes nothing of dsn. A DSN that leads through a pooler is
// refused at the first use.
//
// If dsn names several servers, or a server has several addresses, the first that takes writes is used, unless
// target_session_attrs says otherwise. Each has three seconds, or the DSN's connect_timeout.
func Open(dsn string, options Options) (*Outbox, error) {
	connector, err := newConnector(dsn, &options)
	if err != nil {
		return nil, err
	}
	if err := options.Table.validate(); err != nil {
		return nil, err
	}
	if options.Retain < 0 {
		return nil, fmt.Errorf("option Retain: %v is negative", options.Retain)
	}
	if options.DeadRetain < 0 {
		return nil, fmt.Errorf("option DeadRetain: %v is negative", options.DeadRetain)
	}
	if options.DeadRetain > 0 && options.HoldDead {
		return nil, errHoldsDead
	}
	log := options.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	table := options.Table.orDefault()
	return &Outbox{
		table:      table,
		retain:     options.Retain,
		adopt:      options.AdoptStream,
		log:        log,
		holdDead:   options.HoldDead,
		deadRetain: options.DeadRetain,
		connector:  connector,
		session:    newSession(connector),
	}, nil
}

// Table returns the outbox's name, which also inserts into it.
func (o *Outbox) Table() Table { return o.table }

// Retains reports whether published events are kept in the archive: see Options.Retain.
func (o *Outbox) Retains() bool { return o.retain > 0 }

// Database returns the name of the database that the outbox is in.
func (o *Outbox) Database() string { return o.connector.database }

// Session returns the connection that the relay works on. An elector takes its lock on the same one.
func (o *Outbox) Session() *Session { return o.session }

// Close ends the session, if one is open.
func (o *Outbox) Close(ctx context.Context) error { return o.session.Close(ctx) }

// Migrate creates the outbox's tables or brings them to this version. It is safe to call at every start and
// from many processes at once. A table of that name that is not ours is refused with [ErrForeignTable]
// and never altered.
func (o *Outbox) Migrate(ctx context.Context) error {
	err := o.with(ctx, func(conn *pgx.Conn) error { return o.table.migrate(ctx, conn, o.log) })
	return o.judged(err)
}

// judged notes what a look at the tables has found. If they were all right before, a table of another shape is not one that
// only happens to have the outbox's name.
func (o *Outbox) judged(err error) error {
	switch {
	case err == nil:
		o.sound.Store(true)
	case o.sound.Load() && errors.Is(err, ErrForeignTable):
		return fmt.Errorf("%w: waiting until it is as it was: %w", ErrTableChanged, err)
	}
	return err
}

// Check verifies that the schema has the right version and shape and that the role may do what the relay
// needs. The error says what to do.
func (o *Outbox) Check(ctx context.Context) error {
	return o.judged(o.with(ctx, func(conn *pgx.Conn) error { return o.table.check(ctx, conn) }))
}

// with runs one task on a connection of its own.
func (o *Outbox) with(ctx context.Context, task func(conn *pgx.Conn) error) error {
	conn, err := o.connector.connect(ctx, forAdmin())
	if err != nil {
		return err
	}
	err = task(conn)
	if closeErr := conn.Close(context.WithoutCancel(ctx)); err == nil && closeErr != nil {
		return fmt.Errorf("close connection: %w", closeErr)
	}
	return err
}

// explain is Table.explainTo for errors on the outbox's own connections.
func (o *Outbox) explain(operation string, err error) error {
	return o.table.explainTo(o.connector.user, operation, err)
}
