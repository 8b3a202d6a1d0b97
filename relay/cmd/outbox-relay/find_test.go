package main

import (
	"encoding/json"
	"testing"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestFind(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn}
	relay := start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": streamtest.Start(t).URL()})
	relay.logged("leading")
	insert(t, dsn, "users", "User", "17", "UserCreated", "x")
	eventually(t, "the event is in the archive", func() bool { return number(t, dsn, `select count(*) from outbox_published`) == 1 })
	relay.stop()
	relay.wait()
	insert(t, dsn, "users", "User", "17", "UserVerified", "y")

	got := execute(t, env, "find", "User/17")
	expectCode(t, got, 0)
	expectText(t, "find", got.stdout, "User/17", "UserVerified  pending: 0 events are ahead of it", `published to stream "OUTBOX" after its sequence 0`)

	got = execute(t, env, "find", "1", "--json")
	expectCode(t, got, 0)
	var found []foundEvent
	if err := json.Unmarshal([]byte(got.stdout), &found); err != nil || len(found) != 1 || found[0].Place != "published" || found[0].Stream != "OUTBOX" || found[0].DataBytes != 1 {
		t.Fatalf("find 1 --json: %v\n%s", err, got.stdout)
	}
	got = execute(t, env, "find", found[0].ID.String())
	expectCode(t, got, 0)
	expectText(t, "find ID", got.stdout, "UserCreated")

	sql(t, dsn, `update outbox set retry_at = clock_timestamp() + interval '1 hour', attempts = 3, last_error = E'no\n responders'`)
	got = execute(t, env, "find", "seq:2")
	expectText(t, "find", got.stdout, `refused 3 times, and tried again at `, `no\n responders`)

	got = execute(t, env, "find", "77", "--json")
	expectCode(t, got, 1)
	expectText(t, "find 77", got.stdout, "[]")
	expectText(t, "find 77", got.stderr, "not in the outbox, not among the dead letters")
	for _, wrong := range []string{"17x", "/17", "User/", "00000000-0000-0000-0000-000000000000"} {
		expectCode(t, execute(t, env, "find", wrong), 2)
	}
}
