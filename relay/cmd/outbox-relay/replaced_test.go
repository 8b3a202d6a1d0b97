package main

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// A stream that is deleted and created again under a relay that has nothing to do gets the lost events back before newer ones
// of their aggregates: in the first term of all, which has no fence, and where no batch would look for one, too.
func TestStreamReplacedWhileTheRelayIsIdle(t *testing.T) {
	for _, batches := range []bool{true, false} {
		for _, term := range []int{1, 2} {
			t.Run(fmt.Sprintf("batches=%v, term %d", batches, term), func(t *testing.T) {
				t.Parallel()
				broker := streamtest.Start(t)
				js := broker.JetStream(t)
				config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, Duplicates: time.Hour, AllowBatchPublish: batches}
				if _, err := js.CreateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
				dsn := storetest.NewDatabase(t)
				env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": broker.URL()}
				settled := func() bool { return number(t, dsn, `select count(*) from outbox`) == 0 }
				const events = `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
					select 't', 'A', (n %% 10)::text, 'E', '' from generate_series(1, %d) n`
				var relay *running
				for n := range term {
					if n > 0 {
						relay.stop()
						relay.wait()
					}
					relay = start(t, env)
					relay.logged("leading")
					sql(t, dsn, fmt.Sprintf(events, 50))
					eventually(t, "the first events are stored", settled)
				}
				time.Sleep(2 * time.Second) // Longer than the stream counts as proven, and less than until it is looked at.
				if err := js.DeleteStream(t.Context(), "OUTBOX"); err != nil {
					t.Fatal(err)
				}
				if _, err := js.CreateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
				sql(t, dsn, fmt.Sprintf(events, 25))
				want := 50*term + 25
				stored := func() (n int) {
					for _, m := range broker.Messages(t, "OUTBOX") {
						if m.Header.Get("Outbox-Seq") != "" {
							n++
						}
					}
					return n
				}
				eventually(t, "all are stored again", func() bool { return settled() && stored() == want })
				latest := map[string]int{}
				for _, m := range broker.Messages(t, "OUTBOX") {
					seq, err := strconv.Atoi(m.Header.Get("Outbox-Seq"))
					if err != nil {
						continue // A fence.
					}
					if seq < latest[m.Subject] {
						t.Errorf("%s: event %d is stored after event %d", m.Subject, seq, latest[m.Subject])
					}
					latest[m.Subject] = seq
				}
			})
		}
	}
}
