package main

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// If no relay can lead, status and doctor say of each why, also where nothing but Postgres can be reached.
func TestRelaysOfWhichNoneCanLead(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	broker := streamtest.Start(t)
	elsewhere := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL()}
	expectCode(t, execute(t, elsewhere, "migrate"), 0)
	const away, absent = "nats://127.0.0.1:1", `stream "OUTBOX": does not exist`
	start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": away})
	start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL(), "OUTBOX_STREAM_CREATE": "false"})
	status := func() string { return execute(t, elsewhere, "status").stdout }
	eventually(t, "status names the broker that cannot be reached, and the stream that is not there", func() bool {
		text := status()
		return strings.Contains(text, away) && strings.Contains(text, absent)
	})
	expectText(t, "status", status(), "leader        none so far\n", "cannot lead   ", ", as it said ")
	expectText(t, "status --json", execute(t, elsewhere, "status", "--json").stdout, `"candidates":[{"name":"`, `"trouble":{"reason":"`)
	d := diagnose(t, elsewhere)
	expectCode(t, d.result, 1)
	d.expect(t, "failure candidates: no relay leads; 2 candidates cannot: ", "failure candidates: "+away, "failure candidates: "+absent)

	// Once one leads, the other's reason is a warning; and it ends with the reason.
	if _, err := broker.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one leads, and one cannot", func() bool {
		text := status()
		return strings.Contains(text, "term        1") && strings.Contains(text, away) && !strings.Contains(text, absent)
	})
	d = diagnose(t, elsewhere)
	expectCode(t, d.result, 0)
	d.expect(t, "warning candidates: 1 candidate could not lead: ", "warning candidates: "+away)
}
