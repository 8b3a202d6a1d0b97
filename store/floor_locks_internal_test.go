package store

import (
	"context"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// A transaction with an old number holds every snapshot's xmin back. The floor passes it if it has nothing to do with
// the outbox, and does not if it has drawn a seq.
func TestFloorPassesStrangersOnly(t *testing.T) {
	const insert = `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'A', '1', 'E', '')`
	tests := []struct {
		name, open string
		passes     bool
	}{
		{"a stranger", `begin; select pg_current_xact_id()`, true},
		{"a producer", `begin; ` + insert, false},
		{"a producer that rolled back to a savepoint", `begin; savepoint s; ` + insert + `; rollback to s`, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dsn := storetest.NewDatabase(t)
			outbox, err := Open(dsn, Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = outbox.Close(context.WithoutCancel(t.Context())) })
			if err := outbox.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			execute(t, dsn, insert) // So that a producer's seq is not the first.
			execute(t, dsn, tt.open)

			term, err := outbox.Begin(t.Context(), "s", "me", 0)
			if err != nil {
				t.Fatal(err)
			}
			request := Request{Fetch: &Fetch{Rows: 10, Bytes: 1 << 20}}
			for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline) && term.floor.at <= 2; {
				execute(t, dsn, insert)
				response, err := term.RoundTrip(t.Context(), request)
				if err != nil {
					t.Fatal(err)
				}
				request.Settled = nil
				for _, row := range response.Rows {
					request.Settled = append(request.Settled, Settled{Seqs: []int64{row.Seq}})
					request.Fetch.Highest = row.Seq
				}
			}
			if passed := term.floor.at > 2; passed != tt.passes {
				t.Errorf("the floor is at %d; it passes: %v, want %v", term.floor.at, passed, tt.passes)
			}
		})
	}
}
