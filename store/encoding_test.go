package store_test

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// In a database of another encoding texts come through as what they are, in UTF-8, and payloads byte by byte. What the
// encoding cannot hold, Postgres refuses at the insert.
func TestEncodingsOfDatabases(t *testing.T) {
	for encoding, test := range map[string]struct{ holds, refuses string }{
		"LATIN1":    {"Grüße, señor", "€"},
		"EUC_JP":    {"日本語テスト", "€"},
		"SQL_ASCII": {"Grüße, 日本語, €", ""},
		"UTF8":      {"Grüße, 日本語, €, 🎉", ""},
	} {
		t.Run(encoding, func(t *testing.T) {
			first := storetest.NewDatabase(t)
			admin := connect(t, first)
			name := fmt.Sprintf("outbox_encoding_%d", time.Now().UnixNano())
			if _, err := admin.Exec(t.Context(), `create database `+name+` template template0 encoding '`+encoding+`' lc_collate 'C' lc_ctype 'C'`); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if _, err := admin.Exec(context.WithoutCancel(t.Context()), `drop database `+name+` with (force)`); err != nil {
					t.Error(err)
				}
			})
			u, err := url.Parse(first)
			if err != nil {
				t.Fatal(err)
			}
			u.Path = "/" + name
			f := newFixtureAt(t, u.String(), store.Options{Retain: time.Hour})
			if _, err := f.conn.Exec(t.Context(), `set client_encoding = 'UTF8'`); err != nil {
				t.Fatal(err)
			}
			all := make([]byte, 256)
			for i := range all {
				all[i] = byte(i)
			}
			want := store.Event{Topic: test.holds, AggregateType: test.holds, AggregateID: test.holds, EventType: test.holds, Data: all, Headers: map[string]string{"X-Name": test.holds}}
			f.insert(t, want)
			if _, err := f.Begin(t.Context(), "EVENTS", "me", 0); err != nil {
				t.Fatal(err)
			}
			rows := f.fetch(t)
			if len(rows) != 1 {
				t.Fatalf("got %d rows, want 1", len(rows))
			}
			check := func(got store.Row) {
				t.Helper()
				for _, text := range []string{got.Topic, got.AggregateType, got.AggregateID, got.EventType} {
					if text != test.holds {
						t.Errorf("got the text %q, want %q", text, test.holds)
					}
				}
				if headers := `{"X-Name": "` + test.holds + `"}`; string(got.Headers) != headers || !bytes.Equal(got.Data, all) {
					t.Errorf("got headers %s and %d bytes, want %s and all bytes", got.Headers, len(got.Data), headers)
				}
			}
			check(rows[0])
			f.roundTrip(t, store.Request{Dead: []store.Failure{{Ref: store.Ref{Seq: rows[0].Seq}, Attempts: 1, Reason: "refused: " + test.holds}}})
			letters, err := f.DeadLetters(t.Context(), store.DeadFilter{AggregateID: test.holds}, true)
			if err != nil || len(letters) != 1 {
				t.Fatalf("got %d dead letters, %v, want 1", len(letters), err)
			}
			l := letters[0]
			check(store.Row{Topic: l.Topic, AggregateType: l.AggregateType, AggregateID: l.AggregateID, EventType: l.EventType, Headers: l.Headers, Data: l.Data})
			if reason := "refused: " + test.holds; letters[0].LastError != reason {
				t.Errorf("got the reason %q, want %q", letters[0].LastError, reason)
			}
			if test.refuses == "" {
				return
			}
			err = pgx.BeginFunc(t.Context(), f.conn, func(tx pgx.Tx) error {
				return store.Insert(t.Context(), tx, store.Event{Topic: test.refuses, AggregateType: "A", AggregateID: "1", EventType: "E"})
			})
			if err == nil {
				t.Errorf("%q was taken by a database that cannot hold it", test.refuses)
			}
		})
	}
}
