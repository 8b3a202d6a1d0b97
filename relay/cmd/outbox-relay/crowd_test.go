//go:build unix

package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// Clients of health and metrics, many and silent, take the relay nothing that it needs to publish: nor to connect anew.
func TestACrowdDoesNotStarveTheRelay(t *testing.T) {
	dsn, nats := storetest.NewDatabase(t), streamtest.Start(t)
	stderr := newOutput()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `ulimit -n 256 && exec "$0"`, os.Args[0])
	cmd.Env = []string{
		asProgram + "=1", "OUTBOX_DATABASE_DSN=" + dsn, "OUTBOX_NATS_URL=" + nats.URL(),
		"OUTBOX_HTTP_ADDR=127.0.0.1:0", "OUTBOX_LOGGING_FORMAT=json",
	}
	cmd.Dir = t.TempDir()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the relay ended with %v:\n%s", err, stderr)
		}
	}()
	leads := func(terms int) {
		stderr.await(t, "the leadership", func(text string) bool { return strings.Count(text, `"msg":"leading"`) >= terms })
	}
	leads(1)

	addr := servedAt(t, stderr.String())
	for range 400 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	sql(t, dsn, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`)
	leads(2)
	insert(t, dsn, "users", "User", "17", "UserCreated", "x")
	eventually(t, "the event is published", func() bool {
		return strings.Contains(get(t, "http://"+addr+"/metrics").body, `outbox_relay_published_total{stream="OUTBOX",table="public.outbox"} 1`+"\n")
	})
	if got := get(t, "http://"+addr+"/readyz").code; got != http.StatusOK {
		t.Errorf("readyz = %d, want 200", got)
	}
}

// servedAt returns the address that a JSON log tells.
func servedAt(t *testing.T, log string) string {
	t.Helper()
	for line := range strings.Lines(log) {
		var record struct{ Msg, Addr string }
		if json.Unmarshal([]byte(line), &record) == nil && record.Msg == "serving health and metrics" {
			return record.Addr
		}
	}
	t.Fatalf("the relay serves no HTTP:\n%s", log)
	return ""
}
