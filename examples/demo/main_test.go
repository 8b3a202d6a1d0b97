package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test binary be one of the demo's relays, since the demo starts itself.
func TestMain(m *testing.M) {
	if beRelay() {
		return
	}
	os.Exit(m.Run())
}

func TestDemo(t *testing.T) {
	t.Setenv("TMPDIR", tempDir(t))
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-duration=2s", "-kills=1", "-v"}, &out, t.Output()); err != nil {
		t.Errorf("the demo ended with: %v", err)
	}
	t.Logf("%s", &out)
	for _, want := range []string{
		`201 {"id":1}`, "UserCreated", "UserVerified", "kill -9", "ms later",
		"Every committed event is in the stream, once and in order",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not shown: %s", want)
		}
	}
	checkEmpty(t, os.TempDir())
}

func TestInterruptLeavesNothingBehind(t *testing.T) {
	t.Setenv("TMPDIR", tempDir(t))
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := &trigger{text: "kill -9", pull: interrupt}
	if err := run(ctx, []string{"-kills=10"}, out, t.Output()); !errors.Is(err, context.Canceled) {
		t.Errorf("run = %v, want %v", err, context.Canceled)
	}
	checkEmpty(t, os.TempDir())
}

// trigger calls pull when the text is written to it.
type trigger struct {
	text string
	pull func()
}

func (w *trigger) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(w.text)) {
		w.pull()
	}
	return len(p), nil
}

// tempDir returns a directory for all that the demo makes.
func tempDir(t *testing.T) string {
	t.Helper()
	//nolint:usetesting // T.TempDir is too long for the path of a socket, and closed to the account that Postgres runs under.
	dir, err := os.MkdirTemp("", "demo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		t.Errorf("left behind: %s", entry)
	}
}

func TestARelayThatFailsIsNoticed(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	relays := newFleet("postgres://127.0.0.1:port/nowhere", "nats://127.0.0.1:1", t.Output())
	pid, err := relays.start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := relays.leader(ctx); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("leader: %v, want an error with the exit status", err)
	}
	relays.wait()
	if _, err := relays.kill(pid); err == nil {
		t.Error("kill of a relay that has ended: no error")
	}
}

func TestRefusesArguments(t *testing.T) {
	for _, args := range [][]string{{"now"}, {"-duration=soon"}} {
		if err := run(t.Context(), args, t.Output(), t.Output()); err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(args[0], "-duration=")) {
			t.Errorf("run %q: %v, want an error about it", args, err)
		}
	}
}
