package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/go-outbox/go-outbox/store"
)

// The table refuses what no relay could make sense of, by the name of the check, and takes all else.
func TestTableChecksRows(t *testing.T) {
	f := newFixture(t, store.Options{})
	// Postgres parses constraints anew for each statement, and a producer pays for it.
	if n := query[int](t, f, `select count(*) from pg_constraint where conrelid = 'outbox'::regclass and contype = 'c'`); n != 0 {
		t.Errorf("the outbox has %d check constraints, want the checks in a trigger", n)
	}
	tests := []struct{ columns, values, refusedBy string }{
		{"seq", "0", "outbox_seq_positive"},
		{"seq", "-1", "outbox_seq_positive"},
		{"seq", "9000000000000000000", ""},
		{"id", "'00000000-0000-0000-0000-000000000000'", "outbox_id_not_nil"},
		{"id", "'00000000-0000-0000-0000-000000000001'", ""},
		{"attempts", "-1", "outbox_attempts_in_range"},
		{"attempts", "2147483647", "outbox_attempts_in_range"},
		{"attempts", "1000000", ""},
		{"retry_at", "'infinity'", "outbox_retry_at_finite"},
		{"retry_at", "'-infinity'", "outbox_retry_at_finite"},
		{"retry_at", "'2100-01-01'", ""},
		{"created_at", "'infinity'", "outbox_created_at_in_range"},
		{"created_at", "'-infinity'", "outbox_created_at_in_range"},
		{"created_at", "'0001-12-31 00:00:00+00 BC'", "outbox_created_at_in_range"},
		{"created_at", "'10000-01-01 00:00:00+00'", "outbox_created_at_in_range"},
		{"created_at", "'0001-01-01 00:00:00+00'", ""},
		{"created_at", "'9999-12-31 23:59:59+00'", ""},
		{"headers", "null", ""},
		{"headers", "'null'", ""},
		{"headers", "'{}'", ""},
		{"headers", `'{"a": "b", "c": 1.5, "d": true, "e": [], "f": ["x", 2, false]}'`, ""},
		{"headers", `'[]'`, "outbox_headers_flat"},
		{"headers", `'["a"]'`, "outbox_headers_flat"},
		{"headers", `'"text"'`, "outbox_headers_flat"},
		{"headers", `'5'`, "outbox_headers_flat"},
		{"headers", `'{"a": null}'`, "outbox_headers_flat"},
		{"headers", `'{"a": {}}'`, "outbox_headers_flat"},
		{"headers", `'{"ok": "x", "a": {"b": "c"}}'`, "outbox_headers_flat"},
		{"headers", `'{"a": [null]}'`, "outbox_headers_flat"},
		{"headers", `'{"a": [{}]}'`, "outbox_headers_flat"},
		{"headers", `'{"a": [["x"]]}'`, "outbox_headers_flat"},
		{"headers", `'{"a": ["x", ["y"]]}'`, "outbox_headers_flat"},
		{"topic", "''", "outbox_topic_not_empty"},
		{"aggregate_type", "''", "outbox_aggregate_type_not_empty"},
		{"aggregate_id", "''", "outbox_aggregate_id_not_empty"},
		{"event_type", "''", "outbox_event_type_not_empty"},
		{"topic", "' '", ""},
		{"aggregate_id", "repeat('x', 100000)", ""},
		// The relay has refused it: it may have been there before the checks.
		{"last_error, headers", `'refused', '[]'`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.columns+" "+tt.values, func(t *testing.T) {
			columns, values := "topic, aggregate_type, aggregate_id, event_type, data", "'t', 'A', '1', 'E', ''"
			switch tt.columns { // A column cannot be named twice.
			case "topic":
				columns, values = "aggregate_type, aggregate_id, event_type, data", "'A', '1', 'E', ''"
			case "aggregate_type":
				columns, values = "topic, aggregate_id, event_type, data", "'t', '1', 'E', ''"
			case "aggregate_id":
				columns, values = "topic, aggregate_type, event_type, data", "'t', 'A', 'E', ''"
			case "event_type":
				columns, values = "topic, aggregate_type, aggregate_id, data", "'t', 'A', '1', ''"
			}
			_, err := f.conn.Exec(t.Context(), `insert into outbox (`+columns+`, `+tt.columns+`) overriding system value values (`+values+`, `+tt.values+`)`)
			pg, _ := errors.AsType[*pgconn.PgError](err)
			switch {
			case tt.refusedBy == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.refusedBy != "" && (pg == nil || pg.ConstraintName != tt.refusedBy):
				t.Errorf("got %v, want it refused by %s", err, tt.refusedBy)
			}
		})
	}
}

// A publication of all tables, as of a logical replica or Debezium, refuses updates and deletions in tables without key and
// replica identity.
func TestPublicationOfAllTables(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Minute})
	f.exec(t, `create publication everything for all tables`)
	f.insert(t, event("1"), event("2"), event("3"), event("4"))
	if _, err := f.Begin(t.Context(), "OUTBOX", "one", 0); err != nil {
		t.Fatal(err)
	}
	f.roundTrip(t, store.Request{
		Settled: []store.Settled{{Seqs: []int64{1, 2}, After: 5}},
		Failed:  []store.Failure{{Ref: store.Ref{Seq: 3}, Attempts: 1, Reason: "refused"}},
		Dead:    []store.Failure{{Ref: store.Ref{Seq: 4}, Attempts: 3, Reason: "refused"}},
	})
	archived, err := f.leader(t).Archive(t.Context(), 0)
	if err != nil || len(archived) != 2 {
		t.Fatalf("the archive has %d events (%v), want 2", len(archived), err)
	}
	created := store.Checkpoint{Created: time.Now().Truncate(time.Microsecond), Sequence: 7}
	if _, err := f.leader(t).PutBack(t.Context(), nil, created); err != nil {
		t.Errorf("record a checkpoint: %v", err)
	}
	// The stream was created anew: what the archive says of sequences is updated, and an event comes back.
	created.Created = created.Created.Add(time.Second)
	if back, err := f.leader(t).PutBack(t.Context(), archived[:1], created); err != nil || back != 1 {
		t.Errorf("put back %d (%v), want 1", back, err)
	}
	if _, err := f.Requeue(t.Context(), store.DeadKey{Seq: 4}); err != nil {
		t.Errorf("requeue: %v", err)
	}
	if n := query[int](t, f, `select count(*) from outbox`); n != 3 {
		t.Errorf("%d events in the outbox, want 3", n)
	}
}
