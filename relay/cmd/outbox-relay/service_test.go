package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/admin"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestEveryFaultOfTheConfigurationIsListed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "relay.toml")
	if err := os.WriteFile(file, []byte("batch_sise = 1\n[relay]\npoll_interval = \"fast\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := execute(t, environment{"CONFIG_PATH": file, "OUTBOX_MAX_ATTEMPTS": "0", "OUTBOX_NATS_ULR": "nats://localhost"})
	expectCode(t, got, 2)
	lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
	if lines[0] != "outbox-relay: the configuration has 5 faults:" || len(lines) != 7 {
		t.Errorf("want a headline, 5 faults a line each and a hint, got:\n%s", got.stderr)
	}
	expectText(t, "the list", got.stderr, file+":1:1: batch_sise", file+":3:1: relay.poll_interval", "OUTBOX_MAX_ATTEMPTS", "OUTBOX_NATS_ULR", "database_dsn: not set")
}

func TestFaultsThatOnlyTheStreamKnows(t *testing.T) {
	for subject, want := range map[string]string{
		"{topic}.events":         "the first token must be a literal",
		"outbox.a{topic}":        "a placeholder must be a whole token",
		"outbox.{topic}.{topic}": "{topic} is used twice",
		"outbox.events":          "needs a placeholder",
	} {
		got := execute(t, environment{"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_SUBJECT": subject})
		expectCode(t, got, 2)
		expectText(t, "standard error", got.stderr, "outbox-relay: the configuration has a fault:\n  environment: OUTBOX_SUBJECT: ", want)
	}
}

// What one package finds is told with what the others find, each with its place.
func TestFaultsOfAllPackagesAreListedAtOnce(t *testing.T) {
	got := execute(t, environment{
		"OUTBOX_DATABASE_DSN": nowhere + "&pool_max_conns=4", "OUTBOX_SUBJECT": "events", "OUTBOX_BATCH_SIZE": "0", "OUTBOX_RETAIN": "0s", "OUTBOX_STRICT": "true",
	})
	expectCode(t, got, 2)
	expectText(t, "standard error", got.stderr, "the configuration has 4 faults:", "environment: OUTBOX_BATCH_SIZE: ", "environment: OUTBOX_SUBJECT: ", "environment: OUTBOX_RETAIN: ",
		"environment: OUTBOX_DATABASE_DSN: parameter pool_max_conns: it belongs to a connection pool, and the relay has none: leave it out")
}

func TestAnEventArrives(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	nats := streamtest.Start(t)
	relay := start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": nats.URL()})
	base := relay.base()
	eventually(t, "the relay is ready", func() bool { return get(t, base+"/readyz").code == http.StatusOK })

	insert(t, dsn, "users", "User", "17", "UserCreated", `{"name": "Ada"}`)
	message := next(t, nats.JetStream(t), "OUTBOX")
	if message.Subject() != "outbox.users.User.17" || string(message.Data()) != `{"name": "Ada"}` {
		t.Errorf("message %s %q, want outbox.users.User.17 with the payload", message.Subject(), message.Data())
	}

	ready := get(t, base+"/readyz")
	var report admin.Report
	if err := json.Unmarshal([]byte(ready.body), &report); err != nil || !report.Ready || !report.Publishing || report.State != "leading" || report.Term != 1 {
		t.Errorf("readyz = %d %s, want a leader in its first term", ready.code, ready.body)
	}
	eventually(t, "the metrics count the event", func() bool {
		return slices.Contains(strings.Split(get(t, base+"/metrics").body, "\n"), `outbox_relay_published_total{stream="OUTBOX",table="public.outbox"} 1`)
	})
	expectText(t, "metrics", get(t, base+"/metrics").body, `outbox_relay_leader{stream="OUTBOX",table="public.outbox"} 1`, "go_goroutines ", "process_start_time_seconds ")
	expectText(t, "the index", get(t, base+"/").body, "/readyz")

	env := environment{"OUTBOX_HTTP_ADDR": strings.TrimPrefix(base, "http://")}
	for _, args := range [][]string{{"healthcheck"}, {"healthcheck", "--ready"}} {
		got := execute(t, env, args...)
		expectCode(t, got, 0)
		if got.stdout != "healthy: leading, term 1\n" {
			t.Errorf("%v prints %q", args, got.stdout)
		}
	}

	// Without a broker it is alive and of no use.
	nats.Stop()
	insert(t, dsn, "users", "User", "17", "UserVerified", `{}`)
	eventually(t, "the relay is no longer ready", func() bool { return get(t, base+"/readyz").code == http.StatusServiceUnavailable })
	expectCode(t, execute(t, env, "healthcheck"), 0)
	unready := execute(t, env, "healthcheck", "--ready")
	expectCode(t, unready, 1)
	expectText(t, "standard error", unready.stderr, "outbox-relay: unhealthy: leading, term 1: ")
	nats.Restart()
	eventually(t, "the relay is ready again", func() bool { return get(t, base+"/readyz").code == http.StatusOK })

	relay.stop()
	if code := relay.wait(); code != 0 {
		t.Errorf("exit code %d after a stop, want 0", code)
	}
	log := relay.stderr.String()
	expectText(t, "the log", log, `"msg":"starting"`, `"http_addr":"127.0.0.1:0"`, `"msg":"stopping"`, `"msg":"stopped"`)
	if strings.Contains(log, "batch_size") {
		t.Error("a setting was logged that is as by default")
	}
	if strings.Contains(log, "Ada") {
		t.Error("a payload was logged")
	}
	if config, err := pgx.ParseConfig(dsn); err != nil || config.Password != "" && strings.Contains(log, config.Password) {
		t.Errorf("the password was logged (%v)", err)
	}
	expectCode(t, execute(t, env, "healthcheck"), 1)
}

// The permissions that relay/README.md names suffice: to create the stream, to publish, and for the next one to read back; and
// to be elected.
func TestPermissionsOfTheReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(readme), "A NATS user with permissions of its own needs to publish ")
	publish, text, _ := strings.Cut(text, "and to subscribe to ")
	subscribe, text, _ := strings.Cut(text, ". With `election.kind = \"jetstream\"` it also needs to publish")
	elect, _, _ := strings.Cut(text, ". ")
	subjects := func(text string) (all []string) {
		for i, part := range strings.Split(text, "`") {
			if i%2 == 1 {
				all = append(all, strings.ReplaceAll(part, "<stream>", "OUTBOX"))
			}
		}
		return all
	}
	for kind, allow := range map[string][]string{"postgres": subjects(publish), "jetstream": subjects(publish + elect)} {
		t.Run(kind, func(t *testing.T) {
			user := &server.User{Username: "relay", Password: "secret", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Allow: allow}, Subscribe: &server.SubjectPermission{Allow: subjects(subscribe)},
			}}
			nats := streamtest.Start(t, func(o *server.Options) { o.Users = []*server.User{user, {Username: "admin", Password: "secret"}} })
			dsn := storetest.NewDatabase(t)
			url := "nats://relay:secret@" + strings.TrimPrefix(nats.URL(), "nats://")
			env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": url, "OUTBOX_ELECTION": kind, "OUTBOX_LOGGING_LEVEL": "debug"}
			relay := start(t, env)
			for term := range 3 {
				relay.logged("leading")
				insert(t, dsn, "users", "User", strconv.Itoa(term), "UserCreated", "x")
				base := relay.base()
				eventually(t, "the event is published", func() bool {
					return strings.Contains(get(t, base+"/metrics").body, `outbox_relay_published_total{stream="OUTBOX",table="public.outbox"} 1`+"\n")
				})
				expectCode(t, diagnose(t, env).result, 0)
				standby := start(t, env)
				standby.logged("standing by: another relay leads")
				relay.stop()
				relay.wait()
				for _, log := range []string{relay.stderr.String(), standby.stderr.String()} {
					if strings.Contains(log, "cannot watch") || strings.Contains(log, "ermissions") {
						t.Errorf("not all is permitted:\n%s", log)
					}
				}
				relay = standby
			}
		})
	}
}

func TestARelayWithItsOwnBroker(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	dir := filepath.Join(t.TempDir(), "nats")
	env := environment{
		"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_LISTEN": "127.0.0.1:0", "OUTBOX_NATS_STORE_DIR": dir,
		"OUTBOX_TABLE": "shop.events", "OUTBOX_STREAM": "EVENTS", "OUTBOX_SUBJECT": "shop.{aggregate_id}.{event_type}", "OUTBOX_ELECTION": "none",
	}
	first := start(t, env)
	js := client(t, first)
	first.logged("leading")
	sql(t, dsn, `insert into shop.events (topic, aggregate_type, aggregate_id, event_type, data) values ('orders', 'Order', 'A 1', 'Paid', 'x')`)
	if got := next(t, js, "EVENTS").Subject(); got != "shop.A%201.Paid" {
		t.Errorf("subject %q, want shop.A%%201.Paid", got)
	}
	first.stop()
	if code := first.wait(); code != 0 {
		t.Errorf("exit code %d after a stop, want 0", code)
	}

	// Its streams outlive it.
	second := start(t, env)
	if got := next(t, client(t, second), "EVENTS").Subject(); got != "shop.A%201.Paid" {
		t.Errorf("subject %q after a restart, want shop.A%%201.Paid", got)
	}
}

func TestWhatAnEmbeddedBrokerIsNotMeantForIsSaid(t *testing.T) {
	const open, alone = "asks for no credentials", "is for one relay"
	for name, test := range map[string]struct {
		env  environment
		want map[string]bool
	}{
		"on all addresses": {environment{"OUTBOX_NATS_LISTEN": "0.0.0.0:0"}, map[string]bool{open: true, alone: true}},
		"on loopback":      {environment{"OUTBOX_NATS_LISTEN": "127.0.0.1:0"}, map[string]bool{open: false, alone: true}},
		"the only relay": {
			environment{"OUTBOX_NATS_LISTEN": "localhost:0", "OUTBOX_ELECTION": "none"}, map[string]bool{open: false, alone: false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			env := environment{"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_NATS_URL": "embedded", "OUTBOX_NATS_STORE_DIR": t.TempDir()}
			maps.Copy(env, test.env)
			r := start(t, env)
			r.logged("the outbox's tables are not ready; trying until they are")
			r.stop()
			r.wait()
			for text, want := range test.want {
				if got := strings.Contains(r.stderr.String(), text); got != want {
					t.Errorf("the log says %q: %t, want %t:\n%s", text, got, want, r.stderr)
				}
			}
		})
	}
}

func TestItWaitsForPostgres(t *testing.T) {
	server := storetest.Start(t)
	if err := server.Stop(postgres.Fast); err != nil {
		t.Fatal(err)
	}
	r := start(t, environment{"OUTBOX_DATABASE_DSN": server.DSN(), "OUTBOX_NATS_URL": streamtest.Start(t).URL()})
	base := r.base()
	r.logged("the outbox's tables are not ready; trying until they are")
	if got := get(t, base+"/healthz"); got.code != http.StatusOK {
		t.Errorf("healthz = %d while Postgres is away, want 200", got.code)
	}
	var report admin.Report
	got := get(t, base+"/readyz")
	if err := json.Unmarshal([]byte(got.body), &report); err != nil || got.code != http.StatusServiceUnavailable || report.State != relay.Campaigning || !strings.Contains(report.Trouble, "connect") {
		t.Errorf("readyz = %d %s while Postgres is away, want 503 and why", got.code, got.body)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the relay is ready", func() bool { return get(t, base+"/readyz").code == http.StatusOK })
}

func TestWhatWaitingDoesNotMend(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	sql(t, dsn, `create table outbox (id bigserial primary key, payload text)`)
	for _, migrate := range []string{"true", "false"} {
		r := start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": streamtest.Start(t).URL(), "OUTBOX_MIGRATE": migrate})
		if code := r.wait(); code != 1 {
			t.Errorf("with migrate = %s: exit code %d for a foreign table, want 1", migrate, code)
		}
		expectText(t, "standard error", r.stderr.String(), "outbox-relay: ", "another shape")
	}
}

// A strict relay does without a stream rather than without a condition of exactly-once delivery.
func TestAStrictRelayRefusesAWeakStream(t *testing.T) {
	nats := streamtest.Start(t)
	_, err := nats.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	env := environment{"OUTBOX_DATABASE_DSN": storetest.NewDatabase(t), "OUTBOX_NATS_URL": nats.URL(), "OUTBOX_STRICT": "true"}
	r := start(t, env)
	if code := r.wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	lines := strings.Split(strings.TrimSpace(r.stderr.String()), "\n")
	expectText(t, "the last line", lines[len(lines)-1],
		`outbox-relay: relay: stream "OUTBOX": duplicate window of 1s is less than 22s`, "--dupe-window 22s", "strict is set")

	env["OUTBOX_STRICT"] = "false"
	warning := start(t, env).logged("a guarantee is weakened")
	expectText(t, "the warning", fmt.Sprint(warning["because"]), "duplicate window of 1s is less than 22s")
}

func TestTheEmbeddedServerIsQuietUnlessAllIsLogged(t *testing.T) {
	for level, want := range map[slog.Level]slog.Level{
		slog.LevelDebug: slog.LevelDebug, slog.LevelInfo: slog.LevelWarn, slog.LevelWarn: slog.LevelWarn, slog.LevelError: slog.LevelError,
	} {
		if got := natsLevel(level); got != want {
			t.Errorf("with level %v the server logs from %v, want %v", level, got, want)
		}
	}
}

func TestATakenAddress(t *testing.T) {
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:8080")
	if err == nil { // Otherwise another process has it, which is as good.
		defer taken.Close()
	}
	asked := start(t, environment{"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_HTTP_ADDR": "127.0.0.1:8080"})
	if code := asked.wait(); code != 1 {
		t.Errorf("exit code %d with an address that was asked for and is taken, want 1", code)
	}
	expectText(t, "standard error", asked.stderr.String(), "outbox-relay: serve HTTP: listen tcp 127.0.0.1:8080: ")

	byDefault := start(t, environment{"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_HTTP_ADDR": ""})
	warning := byDefault.logged("going on without health and metrics: the default address is taken; set OUTBOX_HTTP_ADDR to another, or to off")
	if warning["level"] != "WARN" {
		t.Errorf("level %v, want a warning", warning["level"])
	}
	byDefault.logged("the outbox's tables are not ready; trying until they are")
	byDefault.stop()
	if code := byDefault.wait(); code != 0 {
		t.Errorf("exit code %d after a stop, want 0", code)
	}
}

func TestABrokerThatCannotStart(t *testing.T) {
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r := start(t, environment{
		"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_NATS_URL": "embedded",
		"OUTBOX_NATS_LISTEN": taken.Addr().String(), "OUTBOX_NATS_STORE_DIR": t.TempDir(),
	})
	if code := r.wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	expectText(t, "standard error", r.stderr.String(), "outbox-relay: embedded NATS server", "address already in use")
}

func TestTheTextLogIsPlainWithoutATerminal(t *testing.T) {
	r := start(t, environment{"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_LOGGING_FORMAT": "text"})
	r.stderr.await(t, "the log", func(text string) bool { return strings.Contains(text, "the outbox's tables are not ready") })
	log := r.stderr.String()
	expectText(t, "the log", log, "INF starting version=", "config.database_dsn=\"postgres://app:xxxxx@127.0.0.1:1/shop", "WRN the outbox's tables are not ready")
	if strings.Contains(log, "\x1b") {
		t.Errorf("the log has colours:\n%q", log)
	}
	if strings.Contains(log, "s3cr3t") {
		t.Errorf("the log has the password:\n%s", log)
	}
}

// base waits until the relay serves HTTP and returns where.
func (r *running) base() string {
	r.t.Helper()
	return fmt.Sprintf("http://%v", r.logged("serving health and metrics")["addr"])
}

// client connects to a relay's own broker.
func client(t *testing.T, r *running) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(fmt.Sprint(r.logged("embedded NATS server is ready")["url"]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// next returns the first message of a stream, once both are there.
func next(t *testing.T, js jetstream.JetStream, name string) jetstream.Msg {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var consumer jetstream.Consumer
	eventually(t, "the stream "+name, func() bool {
		var err error
		consumer, err = js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{})
		return err == nil
	})
	message, err := consumer.Next(jetstream.FetchContext(ctx))
	if err != nil {
		t.Fatalf("no message in %s: %v", name, err)
	}
	return message
}

type answer struct {
	code int
	body string
}

func get(t *testing.T, url string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, string(body)}
}

func insert(t *testing.T, dsn, topic, aggregateType, aggregateID, eventType, data string) {
	t.Helper()
	sql(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data) values ($1, $2, $3, $4, $5)`,
		topic, aggregateType, aggregateID, eventType, []byte(data))
}

func sql(t *testing.T, dsn, statement string, args ...any) {
	t.Helper()
	conn := connect(t, dsn)
	defer func() { _ = conn.Close(t.Context()) }() // As in number.
	if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

func number(t *testing.T, dsn, query string) (n int) {
	t.Helper()
	conn := connect(t, dsn)
	defer func() { _ = conn.Close(t.Context()) }() // Now, not with the test: some ask again and again.
	if err := conn.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}
