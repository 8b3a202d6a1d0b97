// Package users is a service with an outbox: it keeps users in a table, and tells others of every change by an event. It
// inserts the event in the transaction of the change, so either both are there or neither is.
//
// [Service.Create] does so with pgx and [Service.Verify] with database/sql, to show both; a service of your own has one.
package users

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/go-outbox/go-outbox/store"
)

// Why a change was refused.
var (
	ErrNotFound = errors.New("no such user")
	ErrVerified = errors.New("user is verified already")
)

// Service creates and verifies users.
type Service struct {
	pool   *pgxpool.Pool
	db     *sql.DB
	outbox store.Table
	log    *slog.Logger
}

// New returns the service of the database that both pool and db lead to. Its events go to outbox.
func New(pool *pgxpool.Pool, db *sql.DB, outbox store.Table, log *slog.Logger) *Service {
	return &Service{pool: pool, db: db, outbox: outbox, log: log}
}

// CreateTable creates the table of users if it is not there. Many may call it at once.
func (s *Service) CreateTable(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// With IF NOT EXISTS, two concurrent calls could still fail, so they take turns.
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtext('create table users'))`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
create table if not exists users (
    id       bigint  generated always as identity primary key,
    name     text    not null,
    email    text    not null,
    verified boolean not null default false
)`)
		return err
	})
	if err != nil {
		return fmt.Errorf("create table users: %w", err)
	}
	return nil
}

// Create adds a user and returns its id.
func (s *Service) Create(ctx context.Context, name, email string) (id int64, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		insert := `insert into users (name, email) values ($1, $2) returning id`
		if err := tx.QueryRow(ctx, insert, name, email).Scan(&id); err != nil {
			return err
		}
		event, err := newEvent(id, "UserCreated", created{ID: id, Name: name, Email: email})
		if err != nil {
			return err
		}
		return s.outbox.Insert(ctx, tx, event)
	})
	if err != nil {
		return 0, fmt.Errorf("create user: %w", err)
	}
	s.log.InfoContext(ctx, "user created", slog.Int64("id", id))
	return id, nil
}

// Verify marks a user as verified. It returns ErrNotFound if there is none, and ErrVerified if that was done before.
func (s *Service) Verify(ctx context.Context, id int64) error {
	if err := s.verify(ctx, id); err != nil {
		return fmt.Errorf("verify user %d: %w", id, err)
	}
	s.log.InfoContext(ctx, "user verified", slog.Int64("id", id))
	return nil
}

func (s *Service) verify(ctx context.Context, id int64) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // After a commit it does nothing, and otherwise the first error counts.

	// The row is locked before the event is inserted: so the events of a user have the order of its transactions.
	var verified bool
	err = tx.QueryRowContext(ctx, `select verified from users where id = $1 for update`, id).Scan(&verified)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return ErrNotFound
	case err != nil:
		return err
	case verified:
		return ErrVerified
	}
	if _, err := tx.ExecContext(ctx, `update users set verified = true where id = $1`, id); err != nil {
		return err
	}
	event, err := newEvent(id, "UserVerified", nowVerified{ID: id, Verified: true})
	if err != nil {
		return err
	}
	if err := s.outbox.InsertSQL(ctx, tx, event); err != nil {
		return err
	}
	return tx.Commit()
}

// The payloads of the events.
type (
	created struct {
		ID    int64  `json:"id"`
		Name  string `json:"name"`
		Email string `json:"email"`
	}
	nowVerified struct {
		ID       int64 `json:"id"`
		Verified bool  `json:"verified"`
	}
)

func newEvent(id int64, eventType string, payload any) (store.Event, error) {
	data, err := json.Marshal(payload)
	if err != nil {
		return store.Event{}, fmt.Errorf("event %s: %w", eventType, err)
	}
	return store.Event{
		Topic:         "users",
		AggregateType: "User",
		AggregateID:   strconv.FormatInt(id, 10),
		EventType:     eventType,
		Data:          data,
	}, nil
}
