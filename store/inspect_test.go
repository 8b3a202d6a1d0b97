package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

func (f *fixture) inspect(t *testing.T) store.Inspection {
	t.Helper()
	found, err := f.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestInspectNothing(t *testing.T) {
	found := newFixture(t, store.Options{}).inspect(t)
	none := store.Count{Exact: true}
	if len(found.Terms) != 0 || *found.Locked || *found.Waiting != none || *found.Dead != none || *found.Archived != none || found.Oldest != nil || *found.ArchivedBytes < 0 {
		t.Errorf("got %+v, want nothing", found)
	}
}

func TestInspect(t *testing.T) {
	f := newFixture(t, store.Options{Retain: time.Hour, AdoptStream: true})
	created := time.Now().Truncate(time.Microsecond)
	if _, err := f.Begin(t.Context(), "former", "somebody", 0); err != nil {
		t.Fatal(err)
	}
	term := f.begin(t)
	f.putBack(t, nil, store.Checkpoint{Created: created, Sequence: 7, Before: 5})
	f.insert(t, event("1"), event("2"), event("3"), event("4"))
	f.roundTrip(t, store.Request{Settled: settledSeqs([]int64{1}), Dead: []store.Failure{{Ref: store.Ref{Seq: 2}, Attempts: 1, Reason: "refused"}}})
	f.exec(t, `update outbox set created_at = created_at - interval '1 hour' where seq = 3`)
	err := f.Session().Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `select pg_advisory_lock(17, $1)`, f.Table().LockKey())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	found := f.inspect(t)
	if len(found.Terms) != 2 || found.Terms[1].Stream != "former" || found.Terms[1].Leader != "somebody" || found.Terms[1].Checkpoint != (store.Checkpoint{}) {
		t.Fatalf("the terms are %+v, want the latest, and before it the former stream's", found.Terms)
	}
	latest := found.Terms[0]
	if latest.Stream != "s" || latest.Outbox != term.OutboxID || latest.Number != 1 || latest.Leader != "me" || time.Since(latest.Since).Abs() > time.Minute ||
		latest.For < 0 || latest.For > time.Minute || !latest.Checkpoint.Created.Equal(created) || latest.Checkpoint.Sequence != 7 || latest.Checkpoint.Before != 5 {
		t.Errorf("the latest term is %+v", latest)
	}
	if !*found.Locked {
		t.Error("nobody holds the leader's lock, they say")
	}
	if want := (store.Count{Rows: 2, Exact: true}); *found.Waiting != want {
		t.Errorf("%+v wait, want %+v", *found.Waiting, want)
	}
	if *found.Oldest < time.Hour || *found.Oldest > time.Hour+time.Minute {
		t.Errorf("the oldest has waited %v, want an hour", *found.Oldest)
	}
	if want := (store.Count{Rows: 1, Exact: true}); *found.Dead != want || *found.Archived != want || *found.ArchivedBytes < 8192 {
		t.Errorf("%+v are dead and %+v in the archive, of %d bytes, want one each", *found.Dead, *found.Archived, *found.ArchivedBytes)
	}
}

// A large table is not counted, and the planner knows its size without statistics.
func TestInspectALargeTable(t *testing.T) {
	f := newFixture(t, store.Options{})
	const many = 30_000
	f.exec(t, `alter table outbox set (autovacuum_enabled = off);
insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 'users', 'User', '1', 'e', '{}' from generate_series(1, 30000)`)
	if got := *f.inspect(t).Waiting; got.Exact || got.Rows < many/3 || got.Rows > many*3 {
		t.Errorf("%+v wait, want about %d", got, many)
	}
	f.exec(t, `analyze outbox`)
	if got := *f.inspect(t).Waiting; got.Exact || got.Rows < many*9/10 || got.Rows > many*11/10 {
		t.Errorf("after analyze %+v wait, want about %d", got, many)
	}
}

// What is missing is said, and the rest is told.
func TestInspectWhatIsLeft(t *testing.T) {
	f := newFixture(t, store.Options{})
	f.insert(t, event("1"))
	f.exec(t, `drop table outbox_dead; drop table outbox_relay`)
	found, err := f.Inspect(t.Context())
	if !errors.Is(err, store.ErrNoTable) || !strings.Contains(err.Error(), "how many dead letters") || !strings.Contains(err.Error(), "who leads") {
		t.Errorf("got %v, want ErrNoTable for the two that are missing", err)
	}
	if found.Dead != nil || found.Waiting == nil || found.Waiting.Rows != 1 || found.Archived == nil {
		t.Errorf("got %+v, want all but the dead letters", found)
	}
}

func (f *fixture) diagnose(t *testing.T) store.Diagnosis {
	t.Helper()
	found, err := f.Diagnose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestDiagnose(t *testing.T) {
	f := newFixture(t, store.Options{})
	found := f.diagnose(t)
	if found.Tables != nil || found.Schema == 0 || found.Schema != found.SchemaNeeded || found.Standby || found.Trigger != store.TriggerEnabled {
		t.Errorf("got %+v, want all well", found)
	}
	if want := query[string](t, f, `select current_setting('server_version')`); found.Version != want {
		t.Errorf("got version %q, want %q", found.Version, want)
	}
	if want := query[string](t, f, `select current_user || ' in ' || current_database()`); found.Role+" in "+found.Database != want {
		t.Errorf("got %s in %s, want %s", found.Role, found.Database, want)
	}
	for setting, got := range map[string]string{
		"synchronous_commit": found.SynchronousCommit, "fsync": found.Fsync, "full_page_writes": found.FullPageWrites,
	} {
		if want := query[string](t, f, `select current_setting($1)`, setting); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	f.exec(t, `do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$`)
	if got := f.diagnose(t).SynchronousCommit; got != "off" {
		t.Errorf("synchronous_commit is %q, want the database's, off", got)
	}
}

func TestDiagnoseTheTrigger(t *testing.T) {
	f := newFixture(t, store.Options{})
	for _, step := range []struct {
		do   string
		want store.Trigger
	}{
		{`alter table outbox disable trigger outbox_wake`, store.TriggerDisabled},
		{`alter table outbox enable replica trigger outbox_wake`, store.TriggerDisabled},
		{`alter table outbox enable always trigger outbox_wake`, store.TriggerEnabled},
		{`drop trigger outbox_wake on outbox`, store.TriggerMissing},
		{`create function f() returns trigger language plpgsql as 'begin return null; end';
		  create trigger outbox_wake before insert on outbox for each statement execute function f()`, store.TriggerForeign},
	} {
		f.exec(t, step.do)
		if got := f.diagnose(t); got.Trigger != step.want || got.Tables != nil {
			t.Errorf("after %s: the trigger is %s and the tables %v, want %s and well", step.do, got.Trigger, got.Tables, step.want)
		}
	}
}

func TestDiagnoseNothing(t *testing.T) {
	outbox := open(t, storetest.NewDatabase(t), store.Options{})
	found, err := outbox.Diagnose(t.Context())
	if err != nil || !errors.Is(found.Tables, store.ErrNoTable) || found.Schema != 0 || found.Trigger != "" {
		t.Errorf("got %+v and %v, want ErrNoTable", found, err)
	}
	if _, err := open(t, "host=127.0.0.1 port=1", store.Options{}).Diagnose(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot reach Postgres") {
		t.Errorf("without a server: got %v", err)
	}
}
