package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// hazard returns what a check has found.
func (f *fixture) hazard(t *testing.T, check string) store.Hazard {
	t.Helper()
	found, err := f.Hazards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range found {
		if h.Check == check {
			return h
		}
	}
	t.Fatalf("nobody looked at %s: %+v", check, found)
	return store.Hazard{}
}

// Each hazard is found, with its remedy, and the remedy is one: run as SQL it leaves nothing to be found.
func TestHazards(t *testing.T) {
	for _, tt := range []struct {
		name, sql, check string
		severity         store.Severity
		text             string
	}{
		{"sequence restarted", `alter sequence outbox_seq_seq restart`, "sequence", store.Harmful, "is at 0, and in the outbox is seq 3"},
		{"sequence restarted, all published", `insert into outbox_published (part, stream, after, seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at)
			values (0, 's', 0, 170, gen_random_uuid(), 't', 'a', '1', 'e', '', now())`, "sequence", store.Harmful, "in the archive is seq 170"},
		{
			"a seq of one's own", `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data) overriding system value values (9000000000000000000, 't', 'a', '1', 'e', '')`,
			"sequence", store.Doubtful, "has not given out",
		},
		{"sequence cache", `alter sequence outbox_seq_seq cache 10`, "sequence", store.Doubtful, "10 numbers at once"},
		{"sequence counts down", `alter sequence outbox_seq_seq increment by -1 minvalue -100`, "sequence", store.Harmful, "counts down"},
		{"sequence cycles", `alter sequence outbox_seq_seq cycle`, "sequence", store.Doubtful, "begins anew"},
		{"soft delete by a trigger", `create function keep() returns trigger language plpgsql as 'begin return null; end';
			create trigger "Soft" before delete on outbox for each row execute function keep()`, "triggers", store.Harmful, `"Soft"`},
		{"soft delete by a rule", `create rule soft as on delete to outbox do instead nothing`, "triggers", store.Harmful, "soft"},
		{"dead letters kept out by a trigger", `create function keep() returns trigger language plpgsql as 'begin return null; end';
			create trigger keep before insert on outbox_dead for each row execute function keep()`, "triggers", store.Harmful, "keep on public.outbox_dead"},
		{"unlogged", `alter table outbox set unlogged; alter table outbox_published_1 set unlogged`, "storage", store.Harmful, "public.outbox is unlogged"},
		{"inheritance", `create table outbox_old () inherits (outbox)`, "storage", store.Harmful, "public.outbox_old inherits"},
		{"foreign key", `create table audit (seq bigint constraint audited references outbox)`, "foreign keys", store.Harmful, "audited of public.audit"},
		{"publication without an identity", `alter table outbox_published_1 replica identity default; create publication everything for all tables`, "publications", store.Harmful, "outbox_published_1 in publication everything"},
		{"publication of the archive", `alter table outbox_published_0 replica identity nothing; create publication archive for table outbox_published`, "publications", store.Harmful, "outbox_published_0 in publication archive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, store.Options{})
			f.insert(t, event("1"), event("2"), event("3"))
			if got := f.hazard(t, tt.check); got.Severity != store.Harmless {
				t.Fatalf("before: got %+v", got)
			}
			f.exec(t, tt.sql)
			got := f.hazard(t, tt.check)
			if got.Severity != tt.severity || !strings.Contains(got.Text, tt.text) {
				t.Fatalf("got %+v, want %q", got, tt.text)
			}
			_, remedy, ok := strings.Cut(got.Text, "run `")
			if !ok {
				return // It is for somebody else to mend.
			}
			remedy, _, _ = strings.Cut(remedy, "`")
			f.exec(t, remedy)
			if got := f.hazard(t, tt.check); got.Severity != store.Harmless {
				t.Errorf("after %s: got %+v", remedy, got)
			}
		})
	}
}

// What harms nobody is not reported.
func TestNoHazards(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.exec(t, `
create publication everything for all tables;
create function look() returns trigger language plpgsql as 'begin return null; end';
create trigger after_delete after delete on outbox for each row execute function look();
create trigger before_statement before delete on outbox for each statement execute function look();
create table audit (seq bigint)`)
	found, err := f.Hazards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range found {
		if h.Severity != store.Harmless {
			t.Errorf("got %+v", h)
		}
	}
}

func TestHazardsOfARole(t *testing.T) {
	t.Parallel()
	f := newFixture(t, store.Options{})
	role := "relay_" + query[string](t, f, `select md5(random()::text)`)
	f.exec(t, `create role `+role+` login connection limit 3; `+f.Table().Grants(role))
	t.Cleanup(func() {
		if _, err := f.conn.Exec(context.WithoutCancel(t.Context()), `drop owned by `+role+`; drop role `+role); err != nil {
			t.Error(err)
		}
	})
	g := &fixture{Outbox: open(t, f.dsn+"&user="+role, store.Options{}), dsn: f.dsn, conn: f.conn}
	if got := g.hazard(t, "connections"); got.Severity != store.Doubtful || !strings.Contains(got.Text, "connection limit 4`") {
		t.Errorf("got %+v", got)
	}
	f.exec(t, `alter role `+role+` connection limit 1`)
	if got := g.hazard(t, "connections"); got.Severity != store.Harmful {
		t.Errorf("got %+v", got)
	}
	f.exec(t, `alter role `+role+` connection limit 4; alter table outbox_dead enable row level security`)
	if got := g.hazard(t, "row policies"); got.Severity != store.Harmful || !strings.Contains(got.Text, "outbox_dead") {
		t.Errorf("got %+v", got)
	}
	if got := g.hazard(t, "connections"); got.Severity != store.Harmless {
		t.Errorf("got %+v", got)
	}
	f.exec(t, `alter table outbox_dead disable row level security; revoke select on all sequences in schema public from `+role)
	if got := g.hazard(t, "sequence"); got.Severity != store.Doubtful || !strings.Contains(got.Text, "grant select on sequence") {
		t.Errorf("got %+v", got)
	}
}

// A synchronous standby that is gone stops every commit.
func TestHazardOfAMissingStandby(t *testing.T) {
	t.Parallel()
	server := storetest.Start(t, "synchronous_commit=local")
	w := watched(t, newFixtureAt(t, server.DSN(), store.Options{}))
	if got := w.hazard(t, "standbys"); got.Severity != store.Harmless {
		t.Errorf("got %+v", got)
	}
	w.exec(t, `alter system set synchronous_standby_names = 'faraway'`)
	w.exec(t, `select pg_reload_conf()`)
	eventually(t, "the standby is missed", func() bool { return w.hazard(t, "standbys").Severity == store.Harmful })

	done := w.patiently(t, `set synchronous_commit = on; insert into public.outbox (topic, aggregate_type, aggregate_id, event_type, data) values ('t', 'a', '1', 'e', '')`)
	eventually(t, "the watcher says what is waited for", func() bool { return len(w.news()) > 0 })
	if got := w.news()[0]; got.Kind != store.FindingSlow || !strings.Contains(got.Text(), "synchronous standby") {
		t.Errorf("got %s", got.Text())
	}
	if got := w.hazard(t, "standbys"); !strings.Contains(got.Text, "of 1 now") {
		t.Errorf("got %+v", got)
	}
	w.exec(t, `alter system reset synchronous_standby_names`)
	w.exec(t, `select pg_reload_conf()`)
	if err := await(t, "end of the commit", done); err != nil {
		t.Error(err)
	}
}

// Who stands in the way just now is part of an inspection, which does not wait for him.
func TestInspectObstacles(t *testing.T) {
	f := newFixture(t, store.Options{})
	if got := f.inspect(t); len(got.Obstacles()) != 0 || *got.DeadRows != 0 {
		t.Errorf("got %+v, want nothing", got.Obstacles())
	}
	blocker, waiter := connect(t, f.dsn+"&application_name=psql"), connect(t, f.dsn+"&application_name=migration")
	if _, err := blocker.Exec(t.Context(), fmt.Sprintf(`begin; select pg_advisory_lock(1, %d); select from outbox`, f.Table().LockKey())); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := waiter.Exec(t.Context(), `alter table outbox add column more int`)
		done <- err
	}()
	var found store.Inspection
	eventually(t, "the wait is seen", func() bool {
		var err error
		found, err = f.Inspect(t.Context())
		if len(found.LockWaits) > 0 && (err == nil || !strings.Contains(err.Error(), "how much waits") || found.Waiting != nil) {
			t.Errorf("got %v and %+v waiting, want that this could not be read", err, found.Waiting)
		}
		return len(found.LockWaits) > 0
	})
	if w := found.LockWaits[0]; len(found.LockWaits) != 1 || w.PID != waiter.PgConn().PID() || w.Application != "migration" || w.Waited < time.Second ||
		w.Lock != (store.Lock{Mode: "AccessExclusiveLock", Type: "relation", Relation: "public.outbox"}) || len(w.Holders) != 1 || w.Holders[0].PID != blocker.PgConn().PID() {
		t.Errorf("got %+v", found.LockWaits)
	}
	var texts []string
	for _, h := range found.Obstacles() {
		texts = append(texts, h.Check+": "+h.Text)
	}
	all := strings.Join(texts, "\n")
	for _, part := range []string{"locks: pid", `(application "migration") has been waiting for`, "leader's lock: it is held by a session that is no relay's", fmt.Sprintf("pg_terminate_backend(%d)", blocker.PgConn().PID())} {
		if !strings.Contains(all, part) {
			t.Errorf("the obstacles do not say %q:\n%s", part, all)
		}
	}
	t.Log(all)

	if _, err := blocker.Exec(t.Context(), fmt.Sprintf(`rollback; select pg_advisory_lock(2, %d)`, f.Table().LockKey())); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "end of the statement", done); err != nil {
		t.Error(err)
	}
	if found = f.inspect(t); len(found.LockWaits) != 0 || len(found.LeaderLocks) != 2 || found.LeaderLocks[1].Key != 2 {
		t.Errorf("got %+v", found)
	}
}

// Whatever a row holds, the rest can be read.
func TestInspectOfAnyContent(t *testing.T) {
	f := newFixture(t, store.Options{})
	const row = `insert into outbox (seq, topic, aggregate_type, aggregate_id, event_type, data, last_error, created_at, given_up_at) overriding system value values `
	f.exec(t, row+`(-5, 't', 'a', '1', 'e', '', 'odd', 'infinity', null), (0, 't', 'a', '1', 'e', '', 'odd', '-infinity', null)`)
	if got := f.inspect(t); got.Waiting.Rows != 2 || got.Oldest != nil {
		t.Errorf("got %+v waiting for %v, want 2, whose time is unknown", got.Waiting, got.Oldest)
	}
	f.exec(t, row+`(1, 't', 'a', '1', 'e', '', 'odd', '4713-01-01 BC', null), (2, 't', 'a', '1', 'e', '', 'kept', now() - interval '1 hour', now())`)
	got := f.inspect(t)
	if got.Waiting.Rows != 3 || got.Dead.Rows != 1 || *got.Oldest < 290*365*24*time.Hour {
		t.Errorf("got %+v waiting for %v, %+v dead, want 3, as long as a duration can be, and 1", got.Waiting, got.Oldest, got.Dead)
	}
	f.exec(t, `delete from outbox where seq = 1; `+row+`(3, 't', 'a', '1', 'e', '', 'odd', '294276-12-31', null)`)
	if got := f.inspect(t); *got.Oldest != 0 {
		t.Errorf("an event of the future has waited for %v", *got.Oldest)
	}
}
