package main

import (
	"context"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/examples/internal/logtest"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// patience is how long anything here may take before the test fails.
const patience = 20 * time.Second

// settings is an environment of these variables only.
func settings(env map[string]string) config.Sources {
	return config.Sources{LookupEnv: func(name string) (string, bool) { value, ok := env[name]; return value, ok }}
}

// producer is a running one.
type producer struct {
	env  map[string]string
	log  *logtest.Log
	stop context.CancelFunc

	ended chan struct{} // Closed once err is set.
	err   error         // What run returned.
}

// start runs a producer on a free port. It is stopped when the test ends, unless the test did that.
func start(t *testing.T, env map[string]string) *producer {
	t.Helper()
	env = maps.Clone(env)
	env["HTTP_ADDR"] = "127.0.0.1:0"
	ctx, stop := context.WithCancel(t.Context())
	p := &producer{env: env, log: &logtest.Log{}, stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.err = run(ctx, nil, settings(env), p.log)
	}()
	t.Cleanup(func() {
		stop()
		<-p.ended
		t.Logf("log:\n%s", p.log)
	})
	return p
}

// url waits for the producer to serve, and returns where.
func (p *producer) url(t *testing.T) string {
	t.Helper()
	return "http://" + logtest.Value(p.log.Await(t, "msg=serving"), "addr")
}

// end stops the producer and returns what run returned.
func (p *producer) end(t *testing.T) error {
	t.Helper()
	p.stop()
	select {
	case <-p.ended:
		return p.err
	case <-time.After(patience):
		t.Fatalf("not stopped within %v", patience)
		return nil
	}
}

// request returns status and body.
func request(t *testing.T, method, url, body string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.Status + " " + strings.TrimSpace(string(answer))
}

func TestTwoProducersTakeOverFromEachOther(t *testing.T) {
	nats := streamtest.Start(t)
	env := map[string]string{"OUTBOX_DATABASE_DSN": storetest.NewDatabase(t), "OUTBOX_NATS_URL": nats.URL()}
	first := start(t, env)
	first.log.Await(t, "msg=leading")
	second := start(t, env)
	second.log.Await(t, "standing by")

	if got, want := request(t, "POST", first.url(t)+"/users", `{ "name":"john.doe", "email": "sample-user@gmail.de" }`), `201 Created {"id":1}`; got != want {
		t.Errorf("POST /users of the leader: %s, want %s", got, want)
	}
	if got, want := request(t, "PATCH", second.url(t)+"/users/1/verify", ""), `200 OK {"status":"verified"}`; got != want {
		t.Errorf("PATCH /users/1/verify of the standby: %s, want %s", got, want)
	}
	first.log.Await(t, `msg="user created" id=1`)
	second.log.Await(t, `msg="user verified" id=1`)
	if err := first.end(t); err != nil {
		t.Errorf("the first producer ended with: %v", err)
	}
	second.log.Await(t, "msg=leading")
	if got, want := request(t, "POST", second.url(t)+"/users", `{"name":"jane.doe","email":"jane@example.com"}`), `201 Created {"id":2}`; got != want {
		t.Errorf("POST /users of the new leader: %s, want %s", got, want)
	}

	// Each user's events are in order; between users there is none.
	want := []string{
		`outbox.users.User.1 {"id":1,"name":"john.doe","email":"sample-user@gmail.de"}`,
		`outbox.users.User.1 {"id":1,"verified":true}`,
		`outbox.users.User.2 {"id":2,"name":"jane.doe","email":"jane@example.com"}`,
	}
	got := receive(t, nats, len(want))
	slices.SortStableFunc(got, func(a, b string) int {
		subject := func(message string) string { s, _, _ := strings.Cut(message, " "); return s }
		return strings.Compare(subject(a), subject(b))
	})
	if !slices.Equal(got, want) {
		t.Errorf("the stream, by subject:\n got %q\nwant %q", got, want)
	}
	if err := second.end(t); err != nil {
		t.Errorf("the second producer ended with: %v", err)
	}
}

// receive returns the first n messages of the stream.
func receive(t *testing.T, nats *streamtest.Server, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	consumer, err := nats.JetStream(t).OrderedConsumer(ctx, "OUTBOX", jetstream.OrderedConsumerConfig{FilterSubjects: []string{"outbox.>"}})
	if err != nil {
		t.Fatal(err)
	}
	iterator, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer iterator.Stop()
	messages := make([]string, n)
	for i := range messages {
		msg, err := iterator.Next(jetstream.NextContext(ctx))
		if err != nil {
			t.Fatalf("after %q: %v", messages[:i], err)
		}
		messages[i] = msg.Subject() + " " + string(msg.Data())
	}
	return messages
}

func TestWaitsForPostgresAndNATS(t *testing.T) {
	server := storetest.Start(t, "fsync=off")
	nats := streamtest.Start(t)
	env := map[string]string{"OUTBOX_DATABASE_DSN": server.DSN(), "OUTBOX_NATS_URL": nats.URL()}
	if err := server.Stop(postgres.Fast); err != nil {
		t.Fatal(err)
	}
	nats.Stop()

	p := start(t, env)
	p.log.Await(t, "tables are not ready")
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	url := p.url(t)
	p.log.Await(t, "not fit to lead")
	if got, want := request(t, "GET", url+"/healthz", ""), "200 OK ok"; got != want {
		t.Errorf("GET /healthz without NATS: %s, want %s", got, want)
	}
	if got, want := request(t, "POST", url+"/users", `{"name":"john.doe","email":"john@example.com"}`), `201 Created {"id":1}`; got != want {
		t.Errorf("POST /users without NATS: %s, want %s", got, want)
	}
	nats.Restart()
	p.log.Await(t, "fit to lead again")
	if got := receive(t, nats, 1); !strings.Contains(got[0], "john.doe") {
		t.Errorf("the stream = %q, want the user created in the outage", got)
	}
	if got := request(t, "GET", url+"/metrics", ""); !strings.Contains(got, `outbox_relay_leader{stream="OUTBOX",table="public.outbox"} 1`) ||
		!strings.Contains(got, `outbox_relay_pending_events{`) || !strings.Contains(got, `outbox_relay_ready{`) || !strings.Contains(got, `outbox_relay_build_info{`) {
		t.Errorf("GET /metrics: %s", got)
	}
	if err := p.end(t); err != nil {
		t.Errorf("the producer ended with: %v", err)
	}
}

func TestStopsWhileItWaits(t *testing.T) {
	p := start(t, map[string]string{"OUTBOX_DATABASE_DSN": "postgres://127.0.0.1:1/nowhere"})
	p.log.Await(t, "tables are not ready")
	if err := p.end(t); err != nil {
		t.Errorf("the producer ended with: %v", err)
	}
}

func TestHealthcheck(t *testing.T) {
	p := start(t, map[string]string{"OUTBOX_DATABASE_DSN": storetest.NewDatabase(t), "OUTBOX_NATS_URL": "nats://127.0.0.1:1"})
	env := settings(map[string]string{"HTTP_ADDR": strings.TrimPrefix(p.url(t), "http://")})
	if err := run(t.Context(), []string{"healthcheck"}, env, io.Discard); err != nil {
		t.Errorf("healthcheck of a running producer: %v", err)
	}
	if err := p.end(t); err != nil {
		t.Errorf("the producer ended with: %v", err)
	}
	if err := run(t.Context(), []string{"healthcheck"}, env, io.Discard); err == nil {
		t.Error("healthcheck of a stopped producer: no error")
	}
}

func TestRefusesToStart(t *testing.T) {
	const dsn = "postgres://127.0.0.1:1/nowhere"
	for _, test := range []struct {
		name string
		args []string
		env  map[string]string
		want string
	}{
		{"arguments", []string{"serve"}, nil, "serve"},
		{"no DSN", nil, nil, "OUTBOX_DATABASE_DSN"},
		{"a NATS server of its own", nil, map[string]string{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": "embedded"}, "OUTBOX_NATS_URL"},
		{"an address without a colon", []string{"healthcheck"}, map[string]string{"HTTP_ADDR": "8080"}, "8080"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := run(t.Context(), test.args, settings(test.env), io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("run: %v, want an error about %s", err, test.want)
			}
		})
	}
}
