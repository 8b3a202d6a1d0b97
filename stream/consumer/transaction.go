package consumer

import (
	"context"
	"errors"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrNotYours is what a handler gets that ends the consumer's transaction itself.
var ErrNotYours = errors.New("the consumer commits or rolls back, after the handler has returned")

// transaction is the one that a handler gets. It is none of pgx's own, since it has begun together with the inbox's
// statements, in one round trip.
type transaction struct {
	conn       *pgx.Conn
	savepoints int
}

var _ pgx.Tx = (*transaction)(nil)

// Commit refuses: see [ErrNotYours].
func (*transaction) Commit(context.Context) error { return ErrNotYours }

// Rollback refuses: see [ErrNotYours].
func (*transaction) Rollback(context.Context) error { return ErrNotYours }

// Begin sets a savepoint, as in any transaction of pgx.
func (t *transaction) Begin(ctx context.Context) (pgx.Tx, error) {
	t.savepoints++
	name := "outbox_" + strconv.Itoa(t.savepoints)
	if _, err := t.conn.Exec(ctx, "savepoint "+name); err != nil {
		return nil, err
	}
	return &savepoint{transaction: t, name: name}, nil
}

// LargeObjects are those of a transaction of pgx on the same connection, whose beginning is a savepoint.
func (t *transaction) LargeObjects() pgx.LargeObjects {
	tx, err := t.conn.BeginTx(context.Background(), pgx.TxOptions{BeginQuery: "savepoint outbox_large_objects"})
	if err != nil {
		return pgx.LargeObjects{}
	}
	return tx.LargeObjects()
}

func (t *transaction) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	return t.conn.CopyFrom(ctx, table, columns, rows)
}

func (t *transaction) SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults {
	return t.conn.SendBatch(ctx, batch)
}

func (t *transaction) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	return t.conn.Prepare(ctx, name, sql)
}

func (t *transaction) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return t.conn.Exec(ctx, sql, args...)
}

func (t *transaction) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return t.conn.Query(ctx, sql, args...)
}

func (t *transaction) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return t.conn.QueryRow(ctx, sql, args...)
}

func (t *transaction) Conn() *pgx.Conn { return t.conn }

// savepoint is a transaction within the handler's.
type savepoint struct {
	*transaction

	name  string
	ended bool
}

// Commit releases the savepoint.
func (s *savepoint) Commit(ctx context.Context) error { return s.end(ctx, "release savepoint ") }

// Rollback undoes what was done since the savepoint.
func (s *savepoint) Rollback(ctx context.Context) error { return s.end(ctx, "rollback to savepoint ") }

func (s *savepoint) end(ctx context.Context, how string) error {
	if s.ended {
		return pgx.ErrTxClosed
	}
	s.ended = true
	_, err := s.conn.Exec(ctx, how+s.name)
	return err
}
