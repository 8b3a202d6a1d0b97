package store_test

import (
	"database/sql"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // The database/sql driver of these tests.

	"github.com/go-outbox/go-outbox/store"
)

// A pool or connection in place of a transaction would insert the event whatever becomes of the caller's own
// change; that must not compile.
func TestInsertTakesTransactionsOnly(t *testing.T) {
	transaction := reflect.TypeFor[pgx.Tx]()
	for _, no := range []reflect.Type{reflect.TypeFor[*pgxpool.Pool](), reflect.TypeFor[*pgx.Conn](), reflect.TypeFor[*pgxpool.Conn]()} {
		if no.Implements(transaction) {
			t.Errorf("%v can be passed to Insert", no)
		}
	}
	if got, want := reflect.TypeOf(store.InsertSQL).In(1), reflect.TypeFor[*sql.Tx](); got != want {
		t.Errorf("InsertSQL takes %v, want %v", got, want)
	}
}

// awkward are values that a naive way of passing arrays or JSON would mangle.
func awkward() []store.Event {
	id := uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	return []store.Event{
		{ID: id, Topic: `a"b\c`, AggregateType: "{x,NULL}", AggregateID: " ", EventType: "NULL", Data: []byte{0, 1, 0xff}, Headers: map[string]string{"Trace": `q"\,{}`}},
		{Topic: "日本語", AggregateType: "'; drop table outbox; --", AggregateID: "\x01\t\n", EventType: "é"},
		{Topic: "t", AggregateType: "a", AggregateID: strings.Repeat("x", 1600), EventType: "e", Data: []byte("\\x00")},
	}
}

func TestInsert(t *testing.T) {
	for name, insert := range map[string]func(t *testing.T, f *fixture, events ...store.Event) error{
		"pgx": func(t *testing.T, f *fixture, events ...store.Event) error {
			t.Helper()
			return pgx.BeginFunc(t.Context(), f.conn, func(tx pgx.Tx) error { return store.Insert(t.Context(), tx, events...) })
		},
		"sql": func(t *testing.T, f *fixture, events ...store.Event) error {
			t.Helper()
			db, err := sql.Open("pgx", f.dsn)
			if err != nil {
				return err
			}
			defer db.Close()
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				return err
			}
			if err := store.InsertSQL(t.Context(), tx, events...); err != nil {
				_ = tx.Rollback()
				return err
			}
			return tx.Commit()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, store.Options{})
			events := awkward()
			if err := insert(t, f, events...); err != nil {
				t.Fatal(err)
			}
			for _, e := range events { // And each alone, which is another statement.
				if err := insert(t, f, e); err != nil {
					t.Fatal(err)
				}
			}
			if err := insert(t, f); err != nil {
				t.Errorf("inserting nothing: %v", err)
			}
			want := append(slices.Clone(events), events...)
			rows := f.fetch(t)
			if len(rows) != len(want) {
				t.Fatalf("got %d rows, want %d", len(rows), len(want))
			}
			for i, r := range rows {
				w := want[i]
				got := store.Event{ID: r.ID, Topic: r.Topic, AggregateType: r.AggregateType, AggregateID: r.AggregateID, EventType: r.EventType, Data: r.Data}
				if w.ID == uuid.Nil && got.ID != uuid.Nil {
					w.ID = got.ID // Drawn for it.
				}
				if w.Data == nil {
					w.Data = []byte{}
				}
				headers := w.Headers
				w.Headers = nil
				if !reflect.DeepEqual(got, w) {
					t.Errorf("row %d:\n got %+v\nwant %+v", i, got, w)
				}
				if (r.Headers != nil) != (headers != nil) || headers != nil && string(r.Headers) != `{"Trace": "q\"\\,{}"}` {
					t.Errorf("row %d: got headers %s, want %v", i, r.Headers, headers)
				}
				if since := time.Since(r.CreatedAt); since < -time.Minute || since > time.Minute {
					t.Errorf("row %d: created at %v", i, r.CreatedAt)
				}
			}
		})
	}
}

func TestInsertRefuses(t *testing.T) {
	f := newFixture(t, store.Options{})
	change := func(with func(*store.Event)) store.Event {
		e := event("1")
		with(&e)
		return e
	}
	tests := []struct {
		name  string
		event store.Event
		want  string
	}{
		{"no topic", change(func(e *store.Event) { e.Topic = "" }), "Topic is empty"},
		{"no aggregate", change(func(e *store.Event) { e.AggregateID = "" }), "AggregateID is empty"},
		{"zero byte", change(func(e *store.Event) { e.EventType = "a\x00b" }), "zero byte"},
		{"not UTF-8", change(func(e *store.Event) { e.AggregateType = "a\xff" }), "not valid UTF-8"},
		{"reserved header", change(func(e *store.Event) { e.Headers = map[string]string{"nats-rollup": "all"} }), "commands to the server"},
		{"header name", change(func(e *store.Event) { e.Headers = map[string]string{"a:b": ""} }), "visible ASCII"},
		{"header name for the client", change(func(e *store.Event) { e.Headers = map[string]string{"X/Trace": ""} }), `header "X/Trace": not a header name`},
		{"empty header name", change(func(e *store.Event) { e.Headers = map[string]string{"": "x"} }), `header "": not a header name`},
		{"relay's header", change(func(e *store.Event) { e.Headers = map[string]string{"Outbox-Seq": "1"} }), "the relay's"},
		{"header value", change(func(e *store.Event) { e.Headers = map[string]string{"a": "b\r\nc"} }), "CR, LF or NUL"},
		{"header that is no UTF-8", change(func(e *store.Event) { e.Headers = map[string]string{"a": "\xff"} }), "not valid UTF-8"},
		{"header that hides the id", change(func(e *store.Event) { e.Headers = map[string]string{"a": "Nats-Msg-IdNats-Msg-Id"} }), "hide the event's ID"},
		{"status without data", change(func(e *store.Event) { e.Headers = map[string]string{"Status": "404"}; e.Data = nil }), `header "Status"`},
		{"large header", change(func(e *store.Event) { e.Headers = map[string]string{"a": strings.Repeat("x", 70_000)} }), "exceed 64512"},
		{"large aggregate id", change(func(e *store.Event) { e.AggregateID = strings.Repeat("x", 70_000) }), "exceed 64512"},
		{"long header name", change(func(e *store.Event) { e.Headers = map[string]string{strings.Repeat(":", 70_000): ""} }), "… (70000 bytes)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tx, err := f.conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context()) //nolint:errcheck // Nothing to keep.
			err = store.Insert(t.Context(), tx, event("1"), tt.event)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "event 2 of 2") {
				t.Errorf("got error %v, want one about event 2 of 2 with %q", err, tt.want)
			}
			if err := store.Insert(t.Context(), tx, event("1")); err != nil {
				t.Errorf("the transaction is not usable any more: %v", err)
			}
		})
	}
	if rows := f.fetch(t); len(rows) != 0 {
		t.Errorf("%d rows were inserted", len(rows))
	}
}

// The floor's proof (floor.go) rests on it. The payload is made when the seq is: by then there must be a number.
func TestTransactionHasItsNumberBeforeASeq(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.exec(t, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
		values ('t', 'a', '1', 'e', convert_to(coalesce(pg_current_xact_id_if_assigned()::text, 'none'), 'UTF8'))`)
	if got := string(f.fetch(t)[0].Data); got == "none" {
		t.Error("a seq can be drawn by a transaction that has no number yet")
	}
}

func TestCustomTable(t *testing.T) {
	f := newFixture(t, store.Options{Table: store.Table{Schema: `Sales "eu"`, Name: `order"s; x`}})
	f.insert(t, event("1"), event("2"))
	f.exec(t, `insert into "Sales ""eu"""."order""s; x" (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'a', '3', 'e', '')`)
	if got, want := ids(f.fetch(t)), []string{"1", "2", "3"}; !slices.Equal(got, want) {
		t.Errorf("got aggregates %q, want %q", got, want)
	}
}

func BenchmarkInsert(b *testing.B) {
	f := newFixture(b, store.Options{})
	for _, n := range []int{1, 10, 100, 1000} {
		events := make([]store.Event, n)
		for i := range events {
			events[i] = event("17")
			events[i].Data = make([]byte, 256)
		}
		b.Run(map[int]string{1: "one", 10: "ten", 100: "hundred", 1000: "thousand"}[n], func(b *testing.B) {
			for b.Loop() {
				f.insert(b, events...)
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
