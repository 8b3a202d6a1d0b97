package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// What a limit on the messages of a subject has removed is not taken for lost when the limit is there no more: it would
// come after newer events of its aggregate. What is lost is put back all the same.
func TestALimitOnMessagesOfASubjectIsRemembered(t *testing.T) {
	broker := streamtest.Start(t)
	js := broker.JetStream(t)
	config := jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, Duplicates: 2 * time.Second, AllowBatchPublish: true, MaxMsgsPerSubject: 1,
	}
	_, err := js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL(), "OUTBOX_RETAIN": "1h"}
	relay := start(t, env)
	relay.logged("leading")
	insert(t, dsn, "a", "A", "first", "E", "x") // It remains, so that the stream's beginning does not tell what was removed.
	checkpointed := func(sequence int) {
		t.Helper()
		eventually(t, fmt.Sprintf("the checkpoint is %d", sequence), func() bool { return number(t, dsn, `select checkpoint from outbox_relay`) == sequence })
	}
	for n := range 5 {
		sql(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) select 'a', 'A', (n % 10)::text, 'E', '' from generate_series(1, 100) n`)
		eventually(t, "all are settled", func() bool { return number(t, dsn, `select count(*) from outbox`) == 0 })
		checkpointed(1 + 100*(n+1)) // So that what follows is another epoch.
	}
	config.MaxMsgsPerSubject = -1
	if _, err = js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	// The end of the stream is somebody else's, so that it does not tell that nothing is lost either.
	if _, err := js.Publish(t.Context(), "outbox.foreign", nil); err != nil {
		t.Fatal(err)
	}
	checkpointed(502) // It moves past that message.
	relay.stop()
	relay.wait()
	second := start(t, env)
	second.logged("leading")
	insert(t, dsn, "a", "A", "11", "E", "x")
	eventually(t, "the next event is settled", func() bool { return number(t, dsn, `select count(*) from outbox`) == 0 })
	if got := len(broker.Messages(t, "OUTBOX")); got != 13 {
		t.Errorf("the stream has %d messages, want 13:\n%s", got, second.stderr.String())
	}
	second.stop()
	second.wait()

	// The latest of all is lost with the stream.
	if err := js.DeleteStream(t.Context(), "OUTBOX"); err != nil {
		t.Fatal(err)
	}
	if _, err = js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	third := start(t, env)
	eventually(t, "what was lost is published again", func() bool { return len(broker.Messages(t, "OUTBOX")) == 502 })
	if log := third.stderr.String(); !strings.Contains(log, "lost_by_the_broker_and_published_again") {
		t.Errorf("the log does not tell of it:\n%s", log)
	}
}
