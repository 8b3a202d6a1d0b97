package main

import (
	"testing"

	"github.com/go-outbox/go-outbox/store/storetest"
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

func TestMigrateFails(t *testing.T) {
	got := execute(t, nil, "migrate")
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "OUTBOX_DATABASE_DSN: not set")

	got = execute(t, environment{"OUTBOX_DATABASE_DSN": nowhere}, "migrate")
	expectCode(t, got, 1)
	expectText(t, "standard error", got.stderr, "outbox-relay: connect to Postgres: ", "connection refused")

	got = execute(t, environment{"OUTBOX_TABLE": "a.b.c"}, "migrate", "--print")
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "OUTBOX_TABLE")
}
