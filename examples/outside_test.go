package examples_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
)

// patience is how long anything here may take before the test fails.
const patience = time.Minute

// outsideMain is what is around README.md's lines in a program of somebody else's.
const outsideMain = `package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	do := run
	if len(os.Args) > 1 {
		do = produce
	}
	if err := do(ctx, os.Getenv("SHOP_POSTGRES"), os.Getenv("SHOP_NATS"), slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dsn, natsURL string, log *slog.Logger) error {
{{relay}}}

func produce(ctx context.Context, dsn, _ string, _ *slog.Logger) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
{{insert}}	return err
}
`

// README.md's lines, in a module outside of this one, run a relay that makes what it needs, and insert what it publishes.
func TestReadmeOutside(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted here")
	}
	snippets := blocks(read(t, "../README.md"), "go")
	if len(snippets) != 2 || !strings.Contains(snippets[0], "store.Insert(") || !strings.Contains(snippets[1], "relay.New(") {
		t.Fatalf("README.md has the snippets %q, want one that inserts and one that relays", snippets)
	}
	if lines := strings.Count(snippets[1], "\n"); lines > 10 {
		t.Errorf("a relay takes %d lines", lines)
	}
	program := buildOutside(t, strings.NewReplacer("{{relay}}", snippets[1], "{{insert}}", snippets[0]).Replace(outsideMain))

	dsn, err := box.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	execute(t.Context(), dsn, `create table orders (id bigint primary key, paid boolean not null default false)`)
	execute(t.Context(), dsn, `insert into orders (id) values (17)`)
	natsURL := newNATS()
	start := func(args ...string) (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Env = append(os.Environ(), "SHOP_POSTGRES="+dsn, "SHOP_NATS="+natsURL)
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, &output
	}

	relaying, log := start()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	awaitTables(ctx, t, dsn)
	producing, output := start("produce")
	if err := producing.Wait(); err != nil {
		t.Fatalf("inserting: %v\n%s", err, output)
	}
	if event := firstEvent(ctx, t, natsURL); event.EventType != "OrderPaid" || string(event.Data) != `{"id":17}` {
		t.Errorf("published was %+v", event)
	}
	if err := relaying.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := relaying.Wait(); err != nil {
		t.Errorf("relaying: %v\n%s", err, log)
	}
}

// buildOutside builds a program in a module of its own, which has this one for a dependency, and returns its path.
func buildOutside(t *testing.T, source string) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The versions are those of this module, so that all of them are there.
	_, needs, found := strings.Cut(read(t, "../go.mod"), "\nrequire ")
	if !found {
		t.Fatal("go.mod requires nothing")
	}
	needs, _, _ = strings.Cut("\nrequire "+needs, "\ntool ")
	for name, content := range map[string]string{
		"main.go": source,
		"go.mod": "module example.com/shop\n\ngo 1.26\n\nrequire github.com/go-outbox/go-outbox v0.0.0\n" +
			"replace github.com/go-outbox/go-outbox => " + root + "\n" + needs,
		"go.sum": read(t, "../go.sum"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	goTool := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
		output, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, output)
		}
		return string(output)
	}
	goTool("vet", ".")
	goTool("build", "-o", "shop", ".")
	for _, path := range []string{"pelletier/go-toml", "nats-server", "spf13/cobra", "prometheus"} {
		if strings.Contains(goTool("list", "-deps", "."), path) {
			t.Errorf("a program with a relay links %s", path)
		}
	}
	return filepath.Join(dir, "shop")
}

// awaitTables waits until the relay has made its tables.
func awaitTables(ctx context.Context, t *testing.T, dsn string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for there := false; !there; time.Sleep(10 * time.Millisecond) {
		if err := conn.QueryRow(ctx, `select count(*) = 1 from pg_class where relname = 'outbox_relay'`).Scan(&there); err != nil {
			t.Fatalf("waiting for the tables: %v", err)
		}
	}
}

// firstEvent waits for the first event of topic orders.
func firstEvent(ctx context.Context, t *testing.T, natsURL string) stream.Event {
	t.Helper()
	conn, err := nats.Connect(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for {
		message, err := last(ctx, js)
		if err == nil {
			event, err := stream.Decode(message.Header, message.Data)
			if err != nil {
				t.Fatal(err)
			}
			return event
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("waiting for the event: %v", err)
		}
	}
}

// last returns the latest message of topic orders, if there is one.
func last(ctx context.Context, js jetstream.JetStream) (*jetstream.RawStreamMsg, error) {
	s, err := js.Stream(ctx, stream.DefaultStream)
	if err != nil {
		return nil, err
	}
	return s.GetLastMsgForSubject(ctx, "outbox.orders.>")
}
