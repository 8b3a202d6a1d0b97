package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/go-outbox/go-outbox/store"
)

const (
	writers  = 6  // Workers that write to accounts.
	visitors = 2  // Workers that use the HTTP service.
	accounts = 40 // So that the writers meet now and then.

	// pace is how often each worker begins a transaction.
	pace = 30 * time.Millisecond
)

// writer changes accounts. Each change takes the account's next version, under the lock of its row, and inserts the event in
// the same transaction. Every tenth transaction or so is rolled back.
type writer struct {
	pool    *pgxpool.Pool
	journal *journal
	number  int
	writes  int
}

func createAccounts(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.Exec(ctx, `create table accounts (id integer primary key, version integer not null)`)
	if err == nil {
		_, err = pool.Exec(ctx, `insert into accounts select id, 0 from generate_series(1, $1) as id`, accounts)
	}
	if err != nil {
		return fmt.Errorf("create accounts: %w", err)
	}
	return nil
}

func (w *writer) write(ctx context.Context) error {
	if err := w.change(ctx, 1+rand.IntN(accounts), rand.IntN(10) == 0); err != nil {
		return fmt.Errorf("writer %d: %w", w.number, err)
	}
	return nil
}

func (w *writer) change(ctx context.Context, account int, undo bool) error {
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // After a commit it does nothing.

	var version int
	update := `update accounts set version = version + 1 where id = $1 returning version`
	if err := tx.QueryRow(ctx, update, account).Scan(&version); err != nil {
		return err
	}
	w.writes++
	payload := fmt.Sprintf(`{"account":%d,"version":%d,"writer":%d,"write":%d}`, account, version, w.number, w.writes)
	err = store.Insert(ctx, tx, store.Event{
		Topic:         "accounts",
		AggregateType: "Account",
		AggregateID:   strconv.Itoa(account),
		EventType:     "AccountChanged",
		Data:          []byte(payload),
	})
	if err != nil {
		return err
	}
	if undo {
		w.journal.rollBack()
		return tx.Rollback(ctx)
	}
	sent := time.Now()
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	w.journal.commit(payload, note{fmt.Sprintf("outbox.accounts.Account.%d", account), version, sent})
	return nil
}

// visitor uses the HTTP service.
type visitor struct {
	url     string
	journal *journal
}

// reply is what the service answered.
type reply struct {
	status int
	body   string
}

func (r reply) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }

// visit creates a user and verifies it.
func (v *visitor) visit(ctx context.Context) error {
	id, _, err := v.create(ctx, "jane.doe", "jane@example.com")
	if err != nil {
		return err
	}
	_, err = v.verify(ctx, id)
	return err
}

func (v *visitor) create(ctx context.Context, name, email string) (id int64, r reply, err error) {
	body := fmt.Sprintf(`{"name":%q,"email":%q}`, name, email)
	r, err = v.request(ctx, http.MethodPost, "/users", body, http.StatusCreated)
	if err != nil {
		return 0, r, err
	}
	var user struct{ ID int64 }
	if err := json.Unmarshal([]byte(r.body), &user); err != nil {
		return 0, r, fmt.Errorf("POST /users answered %s: %w", r, err)
	}
	payload := fmt.Sprintf(`{"id":%d,"name":%q,"email":%q}`, user.ID, name, email)
	v.journal.commit(payload, note{subject: fmt.Sprintf("outbox.users.User.%d", user.ID), version: 1})
	return user.ID, r, nil
}

func (v *visitor) verify(ctx context.Context, id int64) (r reply, err error) {
	r, err = v.request(ctx, http.MethodPatch, fmt.Sprintf("/users/%d/verify", id), "", http.StatusOK)
	if err != nil {
		return r, err
	}
	v.journal.commit(fmt.Sprintf(`{"id":%d,"verified":true}`, id), note{subject: fmt.Sprintf("outbox.users.User.%d", id), version: 2})
	return r, nil
}

func (v *visitor) request(ctx context.Context, method, path, body string, want int) (reply, error) {
	request, err := http.NewRequestWithContext(ctx, method, v.url+path, bytes.NewBufferString(body))
	if err != nil {
		return reply{}, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return reply{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	r := reply{response.StatusCode, string(bytes.TrimSpace(answer))}
	if r.status != want {
		return r, fmt.Errorf("%s %s answered %s, want %d", method, path, r, want)
	}
	return r, nil
}
