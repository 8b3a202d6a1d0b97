package store_test

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// fixture is an outbox in a database of its own.
type fixture struct {
	*store.Outbox

	dsn  string
	conn *pgx.Conn   // A producer's and an observer's connection.
	term *store.Term // The latest; nil for none.
}

func newFixture(tb testing.TB, options store.Options) *fixture {
	tb.Helper()
	return newFixtureAt(tb, storetest.NewDatabase(tb), options)
}

// newFixtureAt is an outbox in the database behind dsn.
func newFixtureAt(tb testing.TB, dsn string, options store.Options) *fixture {
	tb.Helper()
	outbox, err := store.Open(dsn, options)
	if err != nil {
		tb.Fatal(err)
	}
	if err := outbox.Migrate(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := outbox.Close(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	return &fixture{Outbox: outbox, dsn: dsn, conn: connect(tb, dsn)}
}

// begin begins a term.
func begin(tb testing.TB, outbox *store.Outbox, stream string) *store.Term {
	tb.Helper()
	term, err := outbox.Begin(tb.Context(), stream, "me", 0)
	if err != nil {
		tb.Fatal(err)
	}
	return term
}

// Begin is that of Outbox. The term is the fixture's from then on.
func (f *fixture) Begin(ctx context.Context, stream, leader string, atLeast int64) (*store.Term, error) {
	term, err := f.Outbox.Begin(ctx, stream, leader, atLeast)
	if err == nil {
		f.term = term
	}
	return term, err
}

// leader returns the fixture's term, which it begins if there is none.
func (f *fixture) leader(tb testing.TB) *store.Term {
	tb.Helper()
	if f.term == nil {
		f.begin(tb)
	}
	return f.term
}

// patience is how long a test waits for what takes milliseconds, on a machine that may be busy with others.
const patience = 20 * time.Second

// eventually waits until condition holds, and fails the test if that takes too long.
func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatalf("%v later it is still not so that %s", patience, what)
		}
	}
}

// await waits for a signal, and fails the test if that takes too long.
func await[T any](tb testing.TB, what string, signal <-chan T) T {
	tb.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	select {
	case v := <-signal:
		return v
	case <-deadline.C:
		tb.Fatalf("%v later: no %s", patience, what)
		panic("unreachable")
	}
}

func connect(tb testing.TB, dsn string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.WithoutCancel(tb.Context())) })
	return conn
}

func (f *fixture) exec(tb testing.TB, sql string) {
	tb.Helper()
	if _, err := f.conn.Exec(tb.Context(), sql); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

func (f *fixture) insert(tb testing.TB, events ...store.Event) {
	tb.Helper()
	err := pgx.BeginFunc(tb.Context(), f.conn, func(tx pgx.Tx) error {
		return f.Table().Insert(tb.Context(), tx, events...)
	})
	if err != nil {
		tb.Fatal(err)
	}
}

func (f *fixture) roundTrip(tb testing.TB, request store.Request) store.Response {
	tb.Helper()
	for _, failures := range [][]store.Failure{request.Failed, request.Dead} {
		for i := range failures {
			failures[i].ID = f.id(tb, failures[i].Seq)
		}
	}
	response, err := f.leader(tb).RoundTrip(tb.Context(), request)
	if err != nil {
		tb.Fatal(err)
	}
	return response
}

// id returns the id of the row with this seq; the nil UUID if there is none.
func (f *fixture) id(tb testing.TB, seq int64) uuid.UUID {
	tb.Helper()
	return query[uuid.UUID](tb, f, `select coalesce((select id from only outbox where seq = $1), '00000000-0000-0000-0000-000000000000')`, seq)
}

// fetch returns everything that is there.
func (f *fixture) fetch(tb testing.TB) (rows []store.Row) {
	tb.Helper()
	for highest := int64(0); ; highest = rows[len(rows)-1].Seq {
		response := f.roundTrip(tb, store.Request{Fetch: &store.Fetch{Rows: 1000, Bytes: 1 << 30, Held: seqs(rows), Highest: highest}})
		rows = append(rows, response.Rows...)
		if !response.Full {
			return rows
		}
	}
}

func query[T any](tb testing.TB, f *fixture, sql string, args ...any) T {
	tb.Helper()
	var value T
	if err := f.conn.QueryRow(tb.Context(), sql, args...).Scan(&value); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return value
}

// inserted returns the seqs of all rows in the outbox, visible to the observer.
func (f *fixture) inserted(tb testing.TB) []int64 {
	tb.Helper()
	return query[[]int64](tb, f, `select coalesce(array_agg(seq order by seq), '{}') from outbox`)
}

func event(id string) store.Event {
	return store.Event{Topic: "users", AggregateType: "User", AggregateID: id, EventType: "UserCreated", Data: []byte(`{}`)}
}

// settledSeqs are acknowledged rows, wherever in the stream.
func settledSeqs(seqs []int64) []store.Settled { return []store.Settled{{Seqs: seqs}} }

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func seqs(rows []store.Row) []int64 {
	out := make([]int64, len(rows))
	for i, r := range rows {
		out[i] = r.Seq
	}
	return out
}

func ids(rows []store.Row) []string {
	out := make([]string, len(rows))
	for i, r := range rows {
		out[i] = r.AggregateID
	}
	return out
}
