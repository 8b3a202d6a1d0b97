package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
)

// What a leader says of its trouble is there for those who look, until it says otherwise or another leads. Nobody is waited
// for, and a leader of a former term says nothing.
func TestTroubleIsRecorded(t *testing.T) {
	f := newFixture(t, store.Options{})
	if _, err := f.Begin(t.Context(), "A", "leader", 0); err != nil {
		t.Fatal(err)
	}
	report := func(reason string, since time.Duration) {
		t.Helper()
		if err := f.leader(t).Report(t.Context(), reason, since); err != nil {
			t.Fatal(err)
		}
	}
	recorded := func(when, want string) store.Trouble {
		t.Helper()
		got := f.inspect(t).Terms[0].Trouble
		if got.Text != want {
			t.Errorf("%s: %+v is recorded, want %q", when, got, want)
		}
		return got
	}
	recorded("at first", "")
	report("the stream is full", time.Minute)
	if got := recorded("then", "the stream is full"); got.For < time.Minute || got.For > 2*time.Minute || got.Age < 0 || got.Age > time.Minute {
		t.Errorf("it began %v ago and was said %v ago", got.For, got.Age)
	}
	report("other\x00wise "+string([]byte{0xff}), 0)
	recorded("whatever is in it", "otherwise \uFFFD")
	report(strings.Repeat("x", 5000), 0)
	recorded("whatever its length", strings.Repeat("x", 2000)+"…")
	report("", 0)
	recorded("once it can publish again", "")

	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select from outbox_relay for update`); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	report("unheard", 0)
	if took := time.Since(began); took > time.Second {
		t.Errorf("it waited %v for somebody's lock", took)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	recorded("while somebody has locked the record", "")

	report("of the former term", 0)
	if _, err := f.another(t, store.Options{}).Begin(t.Context(), "A", "next", 0); err != nil {
		t.Fatal(err)
	}
	recorded("in the next term", "")
	report("too late", 0)
	recorded("said by the former leader", "")
}
