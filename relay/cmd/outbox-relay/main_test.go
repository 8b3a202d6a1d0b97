package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// asProgram makes this test binary the program itself, for tests of what only a process has: signals.
const asProgram = "TEST_AS_OUTBOX_RELAY"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	storetest.Main(m)
}

// patience is how long anything may take that no healthy machine needs as long for.
const patience = 20 * time.Second

// result is what became of a command.
type result struct {
	code           int
	stdout, stderr string
}

// execute runs a command to its end.
func execute(t *testing.T, env environment, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, env.list(), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// environment is the environment of one program.
type environment map[string]string

func (e environment) list() []string {
	list := make([]string, 0, len(e))
	for name, value := range e {
		list = append(list, name+"="+value)
	}
	return list
}

// running is a relay that runs in this process.
type running struct {
	t      *testing.T
	stderr *output
	stop   context.CancelFunc
	code   chan int
}

// start starts a relay, which logs JSON and, unless the environment says otherwise, serves HTTP on a free port. It is
// stopped at the end of the test, if not before.
func start(t *testing.T, env environment) *running {
	t.Helper()
	all := environment{"OUTBOX_LOGGING_FORMAT": "json", "OUTBOX_HTTP_ADDR": "127.0.0.1:0"}
	maps.Copy(all, env)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &running{t: t, stderr: newOutput(), stop: cancel, code: make(chan int, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.code <- run(ctx, nil, all.list(), r.stderr, r.stderr)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Logf("the relay's output:\n%s", r.stderr)
		}
	})
	return r
}

// wait returns the exit code.
func (r *running) wait() int {
	r.t.Helper()
	select {
	case code := <-r.code:
		return code
	case <-time.After(patience):
		r.t.Fatal("the relay has not ended")
		return -1
	}
}

// logged waits for a record with this message and returns it.
func (r *running) logged(message string) map[string]any {
	r.t.Helper()
	var found map[string]any
	r.stderr.await(r.t, fmt.Sprintf("the record %q", message), func(text string) bool {
		for line := range strings.Lines(text) {
			var record map[string]any
			if json.Unmarshal([]byte(line), &record) == nil && record["msg"] == message {
				found = record
				return true
			}
		}
		return false
	})
	return found
}

// output is what a program has written so far.
type output struct {
	mu      sync.Mutex // Protects what follows.
	text    bytes.Buffer
	changed chan struct{} // Closed by the next write.
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(p)
}

func (o *output) String() string {
	text, _ := o.snapshot()
	return text
}

func (o *output) snapshot() (text string, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String(), o.changed
}

// await returns when the output is such that enough returns true.
func (o *output) await(t *testing.T, what string, enough func(text string) bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		text, changed := o.snapshot()
		if enough(text) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s did not come within %v:\n%s", what, patience, text)
		}
	}
}

// eventually polls for a condition of another process.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func expectCode(t *testing.T, got result, want int) {
	t.Helper()
	if got.code != want {
		t.Errorf("exit code %d, want %d; standard error:\n%s", got.code, want, got.stderr)
	}
}

func expectText(t *testing.T, where, got string, want ...string) {
	t.Helper()
	for _, text := range want {
		if !strings.Contains(got, text) {
			t.Errorf("%s lacks %q:\n%s", where, text, got)
		}
	}
}

// nowhere is a server that refuses connections.
const nowhere = "postgres://app:s3cr3t@127.0.0.1:1/shop?sslmode=disable"

func TestASignalStopsGracefully(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(signal.String(), func(t *testing.T) {
			stderr := newOutput()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = []string{asProgram + "=1", "OUTBOX_DATABASE_DSN=" + nowhere, "OUTBOX_HTTP_ADDR=off"}
			cmd.Dir = t.TempDir()
			cmd.Stderr = stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stderr.await(t, "the relay's start", func(text string) bool { return strings.Contains(text, "the outbox's tables are not ready") })
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the relay ended with %v, want exit code 0:\n%s", err, stderr)
			}
			expectText(t, "the log", stderr.String(), "stopping", signal.String(), "stopped")
		})
	}
}

func TestASecondSignalKills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		ctx, stop := context.WithCancelCause(t.Context())
		killed := make(chan struct{})
		go obey(signals, stop, func() { close(killed) })
		isKilled := func() bool {
			synctest.Wait()
			select {
			case <-killed:
				return true
			default:
				return false
			}
		}

		signals <- syscall.SIGTERM
		<-ctx.Done()
		if cause := context.Cause(ctx).Error(); !strings.Contains(cause, "terminated") {
			t.Errorf("the cause of the stop is %q, want it to name the signal", cause)
		}
		if isKilled() {
			t.Fatal("the first signal killed")
		}
		time.Sleep(sameSignal - time.Nanosecond)
		if signals <- syscall.SIGTERM; isKilled() {
			t.Fatal("the same signal, twice, killed")
		}
		time.Sleep(time.Nanosecond)
		if signals <- os.Interrupt; !isKilled() {
			t.Error("the second signal did not kill")
		}
	})
}
