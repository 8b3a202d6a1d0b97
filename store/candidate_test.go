package store_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

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
	_, standErr := other.Stand(t.Context(), "B", store.Candidacy{Fit: true})
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
	if _, err := adopting.Stand(t.Context(), "B", store.Candidacy{Fit: true}); err != nil {
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
	if _, err := f.Stand(t.Context(), "A", store.Candidacy{Fit: true}); err != nil { // The leader is no standby of its own.
		t.Fatal(err)
	}
	expect := func(when string, want int) {
		t.Helper()
		if n, err := f.leader(t).Standbys(t.Context()); err != nil || n != want {
			t.Errorf("%s: got %d standbys, %v, want %d", when, n, err, want)
		}
	}
	say := func(o *store.Outbox, stream string, fit bool) {
		t.Helper()
		if obstacle, err := o.Stand(t.Context(), stream, store.Candidacy{Fit: fit}); err != nil || obstacle != "" {
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
		n, err := f.leader(t).Standbys(t.Context())
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
	obstacle, err := f.Stand(t.Context(), "A", store.Candidacy{Fit: true})
	if err != nil || !strings.Contains(obstacle, `application "psql"`) || !strings.Contains(obstacle, "pg_terminate_backend") {
		t.Errorf("got %q, %v", obstacle, err)
	}
}

// Why candidates could not lead is told where the database can be reached, is not written again and again, and ends with the
// reason.
func TestReasonsOfCandidatesAreRecorded(t *testing.T) {
	f := newFixture(t, store.Options{})
	one, two := f.another(t, store.Options{}), f.another(t, store.Options{})
	say := func(o *store.Outbox, c store.Candidacy) {
		t.Helper()
		if obstacle, err := o.Stand(t.Context(), "A", c); err != nil || obstacle != "" {
			t.Errorf("got %q, %v", obstacle, err)
		}
	}
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for _, u := range f.inspect(t).Unfit {
			got = append(got, u.Name+" of "+u.Stream+": "+u.Trouble.Text)
			if u.Trouble.For < 0 || u.Trouble.Age < 0 || u.Trouble.For > time.Minute {
				t.Errorf("got %+v", u)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	say(one, store.Candidacy{Name: "one", Reason: "cannot reach NATS\x00\xff"})
	say(two, store.Candidacy{Name: "two", Fit: true})
	expect("one of A: cannot reach NATS\uFFFD")
	written := query[string](t, f, `select xmin::text from outbox_candidates`)
	for range 20 {
		say(one, store.Candidacy{Name: "one", Reason: "cannot reach NATS\x00\xff"})
		say(one, store.Candidacy{Name: "one", Reason: "another reason, too soon"})
	}
	if now := query[string](t, f, `select xmin::text from outbox_candidates`); now != written {
		t.Error("it is written again within seconds")
	}
	say(two, store.Candidacy{Name: "two", Reason: strings.Repeat("x", 10_000)})
	if got := f.inspect(t).Unfit; len(got) != 2 || len(got[1].Trouble.Text) > 2_100 {
		t.Errorf("got %.300v, want two, and what is long cut", got)
	}
	say(two, store.Candidacy{Name: "two", Fit: true})
	expect("one of A: cannot reach NATS\uFFFD")
	// Who has not said so for long is gone.
	f.exec(t, `update outbox_candidates set at = at - interval '31 seconds', since = since - interval '31 seconds'`)
	expect()
	f.exec(t, `update outbox_candidates set at = at - interval '2 hours'`)
	three := f.another(t, store.Options{})
	say(three, store.Candidacy{Name: "three", Reason: "because"})
	if n := query[int](t, f, `select count(*) from outbox_candidates`); n != 1 {
		t.Errorf("%d rows are left, want that of the one that is there", n)
	}
}

// Whatever is in the table, and whoever has locked it, costs a candidate next to nothing.
func TestReasonsStandInNobodysWay(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.exec(t, `insert into outbox_candidates values ('a', 1, 'A', 'r', 'infinity', 'infinity'), ('b', 2, 'A', 'r', '-infinity', clock_timestamp()),
		('c', 3, E'A\n', E'\x1b[31m', clock_timestamp(), clock_timestamp())`)
	f.exec(t, `insert into outbox_candidates select 'many ' || i, i, 'A', repeat('x', 10000), clock_timestamp(), clock_timestamp() from generate_series(1, 1000) i`)
	if got := f.inspect(t).Unfit; len(got) != 50 {
		t.Errorf("got %d, want as many as a person reads", len(got))
	}
	locker := connect(t, f.dsn)
	if _, err := locker.Exec(t.Context(), `begin; lock table outbox_candidates`); err != nil {
		t.Fatal(err)
	}
	candidate := f.another(t, store.Options{})
	began := time.Now()
	if _, err := candidate.Stand(t.Context(), "A", store.Candidacy{Name: "me", Reason: "because"}); err != nil {
		t.Errorf("with the table locked: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	if _, err := candidate.Stand(t.Context(), "A", store.Candidacy{Name: "me", Fit: true}); err != nil {
		t.Errorf("the session cannot be used any more: %v", err)
	}
}
