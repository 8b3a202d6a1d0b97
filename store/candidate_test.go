package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/store"
)

// another opens the fixture's outbox once more, as another relay does.
func (f *fixture) another(tb testing.TB, options store.Options) *store.Outbox {
	tb.Helper()
	o := open(tb, f.dsn, options)
	tb.Cleanup(func() { _ = o.Close(context.WithoutCancel(tb.Context())) })
	return o
}

// A second relay of the same table and another stream would split the outbox.
func TestOtherStreamIsRefused(t *testing.T) {
	f := newFixture(t, store.Options{})
	if _, err := f.Begin(t.Context(), "A", "the first", 0); err != nil {
		t.Fatal(err)
	}
	other := f.another(t, store.Options{})
	_, beginErr := other.Begin(t.Context(), "B", "the second", 0)
	_, standErr := other.Stand(t.Context(), "B", true)
	for what, err := range map[string]error{"begin": beginErr, "stand": standErr} {
		if !errors.Is(err, store.ErrOtherStream) || !store.Fatal(err) {
			t.Fatalf("%s: got %v, want a fatal ErrOtherStream", what, err)
		}
		for _, part := range []string{`"A"`, `"B"`, `"the first"`, "OUTBOX_STREAM", "OUTBOX_ADOPT_STREAM", f.Table().String()} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %s", what, err, part)
			}
		}
	}
	if n := query[int](t, f, `select count(*) from outbox_relay`); n != 1 {
		t.Errorf("%d streams are recorded, want the first one alone", n)
	}
	if term, err := f.Begin(t.Context(), "A", "the first", 0); err != nil || term.Number != 2 || term.Adopted != "" {
		t.Errorf("the first one's next term: got %+v, %v", term, err)
	}
}

// Who takes the outbox to another stream is its leader from then on, whatever the clock said before.
func TestStreamIsAdopted(t *testing.T) {
	f := newFixture(t, store.Options{})
	if _, err := f.Begin(t.Context(), "A", "the first", 0); err != nil {
		t.Fatal(err)
	}
	f.exec(t, `update outbox_relay set leader_since = clock_timestamp() + interval '1 hour'`)
	adopting := f.another(t, store.Options{AdoptStream: true})
	if _, err := adopting.Stand(t.Context(), "B", true); err != nil {
		t.Error(err)
	}
	if term, err := adopting.Begin(t.Context(), "B", "the second", 0); err != nil || term.Adopted != "A" || !term.First {
		t.Errorf("got %+v, %v, want the first term on B, adopted from A", term, err)
	}
	if _, err := f.Begin(t.Context(), "A", "the first", 0); !errors.Is(err, store.ErrOtherStream) {
		t.Errorf("the first one's next term: got %v, want ErrOtherStream", err)
	}
	if term, err := f.another(t, store.Options{}).Begin(t.Context(), "B", "the third", 0); err != nil || term.Adopted != "" || term.Number != 2 {
		t.Errorf("without the setting, after it was adopted: got %+v, %v", term, err)
	}
}

// What a relay says of itself holds until it says otherwise, or its session ends, and is said of its stream only.
func TestStandbysAreCounted(t *testing.T) {
	f := newFixture(t, store.Options{})
	if _, err := f.Begin(t.Context(), "A", "leader", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stand(t.Context(), "A", true); err != nil { // The leader is no standby of its own.
		t.Fatal(err)
	}
	expect := func(when string, want int) {
		t.Helper()
		if n, err := f.Standbys(t.Context()); err != nil || n != want {
			t.Errorf("%s: got %d standbys, %v, want %d", when, n, err, want)
		}
	}
	say := func(o *store.Outbox, stream string, fit bool) {
		t.Helper()
		if obstacle, err := o.Stand(t.Context(), stream, fit); err != nil || obstacle != "" {
			t.Errorf("got %q, %v", obstacle, err)
		}
	}
	expect("alone", 0)
	one, two := f.another(t, store.Options{}), f.another(t, store.Options{AdoptStream: true})
	say(one, "A", false)
	expect("beside one that is not fit", 0)
	say(one, "A", true)
	say(one, "A", true)
	say(two, "B", true)
	expect("beside one that is fit, and one of another stream", 1)
	found := f.inspect(t)
	if len(found.Candidates) != 3 {
		t.Errorf("got %d candidates, want 3", len(found.Candidates))
	}
	for _, tt := range []struct {
		stream string
		adopt  bool
		want   store.Severity
		parts  []string
	}{
		{"A", false, store.Harmful, []string{"another stream", "stands by", `"A"`}},
		{"B", false, store.Harmful, []string{`"A"`, `"leader"`, `"B"`, "OUTBOX_ADOPT_STREAM"}},
		{"B", true, store.Doubtful, []string{`"A"`, `"B"`}},
	} {
		hazard := found.CheckStream(tt.stream, tt.adopt)
		if hazard.Severity != tt.want {
			t.Errorf("for %s: got %+v", tt.stream, hazard)
		}
		for _, part := range tt.parts {
			if !strings.Contains(hazard.Text, part) {
				t.Errorf("for %s: %q does not say %s", tt.stream, hazard.Text, part)
			}
		}
	}
	say(one, "A", false)
	expect("once it is not fit any more", 0)
	say(one, "A", true)
	if err := errors.Join(one.Close(t.Context()), two.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody stands by", func() bool {
		n, err := f.Standbys(t.Context())
		return err == nil && n == 0
	})
	found = f.inspect(t)
	if hazard := found.CheckStream("A", false); hazard.Severity != store.Harmless {
		t.Errorf("alone: got %+v", hazard)
	}
}

// Whoever holds the leader's lock without being a relay keeps all of them from leading, and is named.
func TestStrangerWithTheLockIsNamed(t *testing.T) {
	f := newFixture(t, store.Options{})
	stranger := connect(t, f.dsn+"&application_name=psql")
	if _, err := stranger.Exec(t.Context(), `select pg_advisory_lock(42, $1)`, f.Table().LockKey()); err != nil {
		t.Fatal(err)
	}
	obstacle, err := f.Stand(t.Context(), "A", true)
	if err != nil || !strings.Contains(obstacle, `application "psql"`) || !strings.Contains(obstacle, "pg_terminate_backend") {
		t.Errorf("got %q, %v", obstacle, err)
	}
}
