package main

import (
	"encoding/json"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestAudit(t *testing.T) {
	dsn, server := storetest.NewDatabase(t), streamtest.Start(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": server.URL()}
	relay := start(t, env)
	relay.logged("leading")
	insert(t, dsn, "users", "User", "17", "UserCreated", "secret")
	insert(t, dsn, "users", "User", "17", "User\x1bVerified", "secret")
	eventually(t, "the events are in the archive", func() bool { return number(t, dsn, `select count(*) from outbox_published`) == 2 })
	relay.stop()
	relay.wait()

	got := execute(t, env, "audit")
	expectCode(t, got, 0)
	expectText(t, "audit", got.stdout, `compared 2 events of the archive with stream OUTBOX`, "0 missing, 0 twice, 0 out of order")

	js, err := jetstream.New(server.Conn(t))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	got = execute(t, env, "audit", "--since", "1h", "--json", "--patience", "1ms")
	expectCode(t, got, 1)
	expectText(t, "standard error of audit", got.stderr, "audit: 1 event breaks the claim")
	var found audited
	if err := json.Unmarshal([]byte(got.stdout), &found); err != nil || found.Since == nil || found.Events != 2 || found.Count["missing"] != 1 ||
		len(found.Violations) != 1 || found.Violations[0].Seq != 2 || found.Violations[0].EventType != "User\x1bVerified" {
		t.Errorf("audit --json: %v\n%s", err, got.stdout)
	}
	got = execute(t, env, "audit", "--patience", "1ms")
	expectCode(t, got, 1)
	expectText(t, "audit", got.stdout, "SEQ", "User/17", `"User\x1bVerified"`, "missing: the archive has it, and the stream does not", "1 missing, 0 twice, 0 out of order")

	for args, want := range map[string]string{"--since=yesterday": "want a time", "--limit=0": "want 1 or more", "--patience=0s": "want more than 0s", "x": "unexpected argument"} {
		got := execute(t, env, "audit", args)
		expectCode(t, got, 2)
		expectText(t, "standard error of audit "+args, got.stderr, want)
	}
	server.Stop()
	got = execute(t, env, "audit")
	expectCode(t, got, 1)
	expectText(t, "standard error of audit", got.stderr, "connect to NATS")
}
