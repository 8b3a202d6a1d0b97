package versions_test

import (
	"encoding/json"
	"regexp"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// A server that is older than a setting of the stream keeps the stream offline. The relay names the setting and what to do;
// once that is done, the older server takes the backlog.
func TestDowngrade(t *testing.T) {
	t.Parallel()
	older := harness.NATSServer(t, "2.12.15")
	w := harness.NewWorld(t, harness.Options{SharedPostgres: true})
	const rows = 2000
	conn, b := w.Connect(), w.Backlog().Migrate()
	relay := w.Relay()
	b.Add(conn, rows)
	b.Audit(conn)

	w.NATS.Kill()
	w.NATS.Program = older
	w.NATS.Start()
	b.Add(conn, rows)
	relay.WaitFor(regexp.MustCompile(`fault=setup .*nats-server 2\.12\.15.*go back to 2\.14 .*allow_batched: false`))

	w.NATS.Kill()
	w.NATS.Program = ""
	w.NATS.Start()
	b.Audit(conn)
	disallowBatches(w)

	w.NATS.Kill()
	w.NATS.Program = older
	w.NATS.Start()
	b.Add(conn, rows)
	b.Audit(conn)
}

// disallowBatches does the same as the command that the relay and doctor name.
func disallowBatches(w *harness.World) {
	w.Helper()
	conn, err := nats.Connect(w.URL())
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close()
	request := func(subject string, body []byte) (answer struct {
		Config map[string]any  `json:"config"`
		Error  json.RawMessage `json:"error"`
	},
	) {
		msg, err := conn.RequestWithContext(w.Context(), subject, body)
		if err != nil {
			w.Fatal(err)
		}
		if err := json.Unmarshal(msg.Data, &answer); err != nil || answer.Error != nil {
			w.Fatalf("%s: %v %s", subject, err, msg.Data)
		}
		return answer
	}
	config := request("$JS.API.STREAM.INFO.OUTBOX", nil).Config
	config["allow_batched"] = false
	body, err := json.Marshal(config)
	if err != nil {
		w.Fatal(err)
	}
	request("$JS.API.STREAM.UPDATE.OUTBOX", body)
}
