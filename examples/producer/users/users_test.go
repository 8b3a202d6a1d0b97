package users_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/go-outbox/go-outbox/examples/producer/users"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// newService returns a service on a database of its own, with its tables.
func newService(t *testing.T) (*users.Service, *pgxpool.Pool) {
	t.Helper()
	dsn := storetest.NewDatabase(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { _ = db.Close() })
	outbox, err := store.Open(dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	service := users.New(pool, db, outbox.Table(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err := errors.Join(outbox.Migrate(t.Context()), service.CreateTable(t.Context())); err != nil {
		t.Fatal(err)
	}
	return service, pool
}

// query returns the only column of the rows that a query yields.
func query(t *testing.T, pool *pgxpool.Pool, sql string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return values
}

const (
	allUsers  = `select format('%s %s <%s> %s', id, name, email, verified) from users order by id`
	allEvents = `select format('%s %s/%s %s %s', topic, aggregate_type, aggregate_id, event_type, convert_from(data, 'UTF8')) from outbox order by seq`
)

func TestRequests(t *testing.T) {
	service, pool := newService(t)
	for _, request := range []struct {
		method, path, body string
		status             int
		answer             string
	}{
		{"POST", "/users", `{ "name":"john.doe", "email": "sample-user@gmail.de" }`, 201, `{"id":1}`},
		{"PATCH", "/users/1/verify", "", 200, `{"status":"verified"}`},
		{"PATCH", "/users/1/verify", "", 409, `{"error":"verify user 1: user is verified already"}`},
		{"PATCH", "/users/2/verify", "", 404, `{"error":"verify user 2: no such user"}`},
		{"PATCH", "/users/0/verify", "", 400, `{"error":"user id \"0\": want a positive number"}`},
		{"PATCH", "/users/john/verify", "", 400, `{"error":"user id \"john\": want a positive number"}`},
		{"PATCH", "/users/9223372036854775808/verify", "", 400, `{"error":"user id \"9223372036854775808\": want a positive number"}`},
		{"POST", "/users", `{"name":"jane`, 400, `{"error":"body: unexpected end of JSON input"}`},
		{"POST", "/users", `{"name":"jane","email":"e"} {}`, 400, `{"error":"body: invalid character '{' after top-level value"}`},
		{"POST", "/users", `{"email":"jane@example.com"}`, 400, `{"error":"name: is empty"}`},
		{"POST", "/users", `{"name":"jane","email":" "}`, 400, `{"error":"email: is empty"}`},
		{"POST", "/users", `{"name":"\u0000","email":"e"}`, 400, `{"error":"name: holds a zero byte"}`},
		{"POST", "/users", strings.Repeat(" ", 65537), 400, `{"error":"body: http: request body too large"}`},
		{"POST", "/users", `{"name":"Jöhn \"J\"","email":"<j@example.com>"}`, 201, `{"id":2}`},
	} {
		response := httptest.NewRecorder()
		service.Handler().ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), request.method, request.path, strings.NewReader(request.body)))
		answer := strings.TrimSpace(response.Body.String())
		if response.Code != request.status || answer != request.answer {
			t.Errorf("%s %s %.80s\n got %d %s\nwant %d %s", request.method, request.path, request.body, response.Code, answer, request.status, request.answer)
		}
	}

	wantUsers := []string{`1 john.doe <sample-user@gmail.de> t`, `2 Jöhn "J" <<j@example.com>> f`}
	if got := query(t, pool, allUsers); !slices.Equal(got, wantUsers) {
		t.Errorf("users:\n got %q\nwant %q", got, wantUsers)
	}
	wantEvents := []string{
		`users User/1 UserCreated {"id":1,"name":"john.doe","email":"sample-user@gmail.de"}`,
		`users User/1 UserVerified {"id":1,"verified":true}`,
		`users User/2 UserCreated {"id":2,"name":"Jöhn \"J\"","email":"\u003cj@example.com\u003e"}`,
	}
	if got := query(t, pool, allEvents); !slices.Equal(got, wantEvents) {
		t.Errorf("events:\n got %q\nwant %q", got, wantEvents)
	}
}

func TestNoChangeWithoutItsEvent(t *testing.T) {
	service, pool := newService(t)
	id, err := service.Create(t.Context(), "john.doe", "john@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `drop table outbox`); err != nil {
		t.Fatal(err)
	}
	if _, err := service.Create(t.Context(), "jane.doe", "jane@example.com"); !errors.Is(err, store.ErrNoTable) {
		t.Errorf("Create without an outbox: %v, want %v", err, store.ErrNoTable)
	}
	if err := service.Verify(t.Context(), id); !errors.Is(err, store.ErrNoTable) {
		t.Errorf("Verify without an outbox: %v, want %v", err, store.ErrNoTable)
	}
	want := []string{`1 john.doe <john@example.com> f`}
	if got := query(t, pool, allUsers); !slices.Equal(got, want) {
		t.Errorf("users = %q, want %q", got, want)
	}

	response := httptest.NewRecorder()
	service.Handler().ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), "PATCH", "/users/1/verify", nil))
	if got, want := response.Body.String(), `{"error":"internal error"}`+"\n"; response.Code != 500 || got != want {
		t.Errorf("PATCH without an outbox: %d %s, want 500 %s", response.Code, got, want)
	}
}

func TestVerifiedOnceByMany(t *testing.T) {
	service, pool := newService(t)
	id, err := service.Create(t.Context(), "john.doe", "john@example.com")
	if err != nil {
		t.Fatal(err)
	}
	const many = 8
	outcomes := atOnce(many, func() error { return service.Verify(t.Context(), id) })
	refused := 0
	for _, err := range outcomes {
		switch {
		case errors.Is(err, users.ErrVerified):
			refused++
		case err != nil:
			t.Errorf("Verify: %v", err)
		}
	}
	if refused != many-1 {
		t.Errorf("%d of %d were refused, want all but one", refused, many)
	}
	if got := query(t, pool, allEvents); len(got) != 2 {
		t.Errorf("events = %q, want UserCreated and one UserVerified", got)
	}
}

func TestCreateTableByMany(t *testing.T) {
	service, pool := newService(t)
	if _, err := pool.Exec(t.Context(), `drop table users`); err != nil {
		t.Fatal(err)
	}
	for _, err := range atOnce(20, func() error { return service.CreateTable(context.WithoutCancel(t.Context())) }) {
		if err != nil {
			t.Errorf("CreateTable: %v", err)
		}
	}
}

// atOnce returns the outcomes of n concurrent calls.
func atOnce(n int, call func() error) []error {
	outcomes := make([]error, n)
	var calls sync.WaitGroup
	start := make(chan struct{})
	for i := range outcomes {
		calls.Go(func() {
			<-start
			outcomes[i] = call()
		})
	}
	close(start)
	calls.Wait()
	return outcomes
}
