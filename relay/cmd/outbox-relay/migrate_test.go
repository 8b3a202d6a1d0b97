package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestMigrateTwice(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_TABLE": "shop.events"}
	for _, done := range []string{"have been created", "were up to date already"} {
		got := execute(t, env, "migrate")
		expectCode(t, got, 0)
		if want := "the tables of shop.events " + done + "\n"; got.stdout != want {
			t.Errorf("migrate prints %q, want %q", got.stdout, want)
		}
	}
	if n := number(t, dsn, `select count(*) from shop.events`); n != 0 {
		t.Errorf("%d events in a new outbox", n)
	}
}

func TestMigratePrintNeedsNoDatabase(t *testing.T) {
	for _, env := range []environment{nil, {"OUTBOX_DATABASE_DSN": nowhere}, {"OUTBOX_DATABASE_DSN": "nonsense"}} {
		got := execute(t, env, "migrate", "--print")
		expectCode(t, got, 0)
		expectText(t, "the script", got.stdout, `create table "public"."outbox"`)
	}

	// What is printed is what the relay wants to find.
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_TABLE": "shop.events"}
	sql(t, dsn, execute(t, env, "migrate", "--print").stdout)
	expectCode(t, execute(t, env, "migrate"), 0)
}

func TestMigratePrintsGrants(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_TABLE": "shop.events"}
	expectCode(t, execute(t, env, "migrate"), 0)
	role := fmt.Sprintf("producer %d", time.Now().UnixNano())
	sql(t, dsn, `create role "`+role+`"`)
	owner := connect(t, dsn)
	t.Cleanup(func() {
		if _, err := owner.Exec(context.WithoutCancel(t.Context()), `drop owned by "`+role+`"; drop role "`+role+`"`); err != nil {
			t.Error(err)
		}
	})
	got := execute(t, environment{"OUTBOX_TABLE": "shop.events"}, "migrate", "--print-grants", "--producer", role, "--relay", role, "--migrator", role)
	expectCode(t, got, 0)
	expectText(t, "the grants", got.stdout, `GRANT INSERT (id, topic, aggregate_type, aggregate_id, event_type, data, headers) ON "shop"."events" TO "`+role+`";`)
	sql(t, dsn, got.stdout)

	got = execute(t, env, "migrate", "--print-grants")
	expectText(t, "the grants", got.stdout, `TO "outbox_producer"`, `TO "outbox_relay"`, `TO "outbox_migrator"`)
	got = execute(t, env, "migrate", "--print-grants", "--print")
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "exclude each other")
}

func TestDoctorComparesProducersGrants(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	expectCode(t, execute(t, environment{"OUTBOX_DATABASE_DSN": dsn}, "migrate"), 0)
	sql(t, dsn, `grant insert on outbox to public`)
	d := diagnose(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": streamtest.Start(t).URL()})
	d.expect(t, `warning producers: role "public" may insert whole rows`)
}

func TestMigrateFails(t *testing.T) {
	got := execute(t, nil, "migrate")
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "OUTBOX_DATABASE_DSN: not set")

	got = execute(t, environment{"OUTBOX_DATABASE_DSN": nowhere}, "migrate")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "outbox-relay: cannot reach Postgres: ", "connection refused")

	got = execute(t, environment{"OUTBOX_TABLE": "a.b.c"}, "migrate", "--print")
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "OUTBOX_TABLE")
}
