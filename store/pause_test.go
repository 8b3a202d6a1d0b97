package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

func TestPause(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	relay, person := open(t, dsn, store.Options{}), open(t, dsn, store.Options{})
	if err := relay.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{"", "\x00"} {
		if err := person.Pause(t.Context(), reason, "ada"); !errors.Is(err, store.ErrNoReason) {
			t.Errorf("a pause for the reason %q: %v", reason, err)
		}
	}
	if ended, err := person.Resume(t.Context()); ended != nil || err != nil {
		t.Errorf("without a pause Resume returns %+v, %v", ended, err)
	}

	if err := person.Pause(t.Context(), "first", "ada"); err != nil {
		t.Fatal(err)
	}
	first, err := person.Inspect(t.Context())
	if err != nil || first.Pause == nil || first.Pause.Reason != "first" || first.Pause.By != "ada" || time.Since(first.Pause.Since).Abs() > time.Minute {
		t.Fatalf("Inspect finds %+v, %v", first.Pause, err)
	}
	if err := person.Pause(t.Context(), "second", "bob"); err != nil {
		t.Fatal(err)
	}

	// A relay that stands by, one that begins a term and one in its term.
	stands := func(want string) {
		t.Helper()
		if _, err := relay.Stand(t.Context(), "S", store.Candidacy{Fit: true}); err != nil {
			t.Fatal(err)
		}
		expectPause(t, relay, want)
	}
	stands("second")
	if since := relay.Paused().Since; !since.Equal(first.Pause.Since) {
		t.Errorf("with another reason it has lasted since %v, want %v", since, first.Pause.Since)
	}
	ended, err := person.Resume(t.Context())
	if err != nil || ended == nil || ended.Reason != "second" {
		t.Errorf("Resume returns %+v, %v", ended, err)
	}
	stands("")
	var term *store.Term
	roundTrip := func(request store.Request) {
		t.Helper()
		if _, err := term.RoundTrip(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	fetch := store.Request{Fetch: &store.Fetch{Rows: 1, Bytes: 1}}
	if err := person.Pause(t.Context(), "third", "bob"); err != nil {
		t.Fatal(err)
	}
	term = begin(t, relay, "S")
	roundTrip(fetch) // The first round trip of a term asks.
	expectPause(t, relay, "third")
	if _, err := person.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	roundTrip(store.Request{AskPause: true})
	expectPause(t, relay, "")

	// Whoever listens asks at once, and others soon.
	for _, listens := range []bool{false, true} {
		if listens {
			heard := make(chan struct{}, 10)
			listening, stop := context.WithCancel(t.Context())
			t.Cleanup(stop)
			go func() { _ = relay.Listen(listening, func() { heard <- struct{}{} }) }()
			<-heard // It has connected.
			roundTrip(store.Request{AskPause: true})
			if err := person.Pause(t.Context(), "fourth", "bob"); err != nil {
				t.Fatal(err)
			}
			<-heard
			roundTrip(fetch)
			expectPause(t, relay, "fourth")
			continue
		}
		if err := person.Pause(t.Context(), "fourth", "bob"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for relay.Paused() == nil && time.Since(began) < 5*time.Second {
			roundTrip(fetch)
		}
		expectPause(t, relay, "fourth")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("a busy relay knew of the pause after %v", took)
		}
		if _, err := person.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func expectPause(t *testing.T, relay *store.Outbox, want string) {
	t.Helper()
	got := ""
	if p := relay.Paused(); p != nil {
		got = p.Reason
	}
	if got != want {
		t.Errorf("the relay knows of a pause for the reason %q, want %q", got, want)
	}
}
