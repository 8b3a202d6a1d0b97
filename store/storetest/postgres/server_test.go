//go:build unix

package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

// envVictim makes the test binary a program that launches a server and is killed.
const envVictim = "OUTBOX_TEST_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(envVictim) != "" {
		victim()
		return
	}
	m.Run()
}

func TestCloseLeavesNothing(t *testing.T) {
	parent := reachableDir(t)
	server := launch(t, postgres.Options{Parent: parent})
	ping(t, server)
	pid := server.Pid()

	for range 2 {
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if exists(pid) {
		t.Errorf("process %d is still there", pid)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("still there: %v, %v", left, err)
	}
	if got := server.Pid(); got != 0 {
		t.Errorf("Pid() = %d after Close, want 0", got)
	}
}

func TestKilledProgramLeavesNothing(t *testing.T) {
	parent := reachableDir(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), envVictim+"="+parent)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })

	var pid int
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatal(err)
	}
	if !exists(pid) {
		t.Fatalf("no process %d", pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, fmt.Sprintf("process %d and what is in %s are gone", pid, parent), func() bool {
		left, err := os.ReadDir(parent)
		return !exists(pid) && err == nil && len(left) == 0
	})
}

// victim is the program that [TestKilledProgramLeavesNothing] kills.
func victim() {
	server, err := postgres.Launch(context.Background(), postgres.Options{Parent: os.Getenv(envVictim)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(server.Pid())
	select {}
}

func TestCrashKeepsWhatWasCommitted(t *testing.T) {
	server := launch(t, postgres.Options{})
	port := server.Port()
	conn := connect(t, server)
	for _, sql := range []string{
		"create table kept (n int)",
		"insert into kept values (1)",
		"begin",
		"insert into kept values (2)", // never committed
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}

	for _, mode := range []postgres.Mode{postgres.Immediate, postgres.Fast} {
		if err := server.Stop(mode); err != nil {
			t.Fatal(err)
		}
		if _, err := pgx.Connect(t.Context(), server.DSN()); err == nil {
			t.Fatalf("connected to a server after a %s stop", mode)
		}
		if got := server.Pid(); got != 0 {
			t.Errorf("Pid() = %d after a %s stop, want 0", got, mode)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := server.Port(); got != port {
			t.Errorf("port %d after a %s stop, want the old one, %d", got, mode, port)
		}
		rows, err := connect(t, server).Query(t.Context(), "select n from kept")
		if err != nil {
			t.Fatal(err)
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil || len(got) != 1 || got[0] != 1 {
			t.Errorf("after a %s stop: %v, %v, want [1]", mode, got, err)
		}
	}
}

func TestStartAfterKill(t *testing.T) {
	server := launch(t, postgres.Options{})
	if err := syscall.Kill(server.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Pid() = 0", func() bool { return server.Pid() == 0 })
	// The orphans of the killed postmaster take a moment to notice, and a new one refuses to start before they have.
	eventually(t, "the server starts again", func() bool { return server.Start(t.Context()) == nil })
	ping(t, server)
	if err := server.Start(t.Context()); err == nil {
		t.Error("Start of a running server succeeded")
	}
}

func TestStopOfAFrozenServer(t *testing.T) {
	server := launch(t, postgres.Options{})
	if err := syscall.Kill(server.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(postgres.Immediate); err != nil {
		t.Fatal(err)
	}
}

func TestTerminateBackends(t *testing.T) {
	server := launch(t, postgres.Options{})
	dsn, err := postgres.CreateDatabase(t.Context(), server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := server.TerminateBackends(t.Context()); n != 1 || err != nil {
		t.Errorf("TerminateBackends = %d, %v, want 1", n, err)
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the session is alive")
	}
}

func TestFailedStartQuotesTheLog(t *testing.T) {
	parent := reachableDir(t)
	_, err := postgres.Launch(t.Context(), postgres.Options{Parent: parent, Settings: []string{"no_such_setting=1"}})
	if err == nil || !strings.Contains(err.Error(), `"no_such_setting"`) {
		t.Errorf("error %v, want one that quotes the server", err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("still there: %v, %v", left, err)
	}
}

func TestLaunchWithoutBinaries(t *testing.T) {
	dir := t.TempDir()
	_, err := postgres.Launch(t.Context(), postgres.Options{Binaries: dir})
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v, want one that names %s", err, dir)
	}
}

func launch(t *testing.T, options postgres.Options) *postgres.Server {
	t.Helper()
	server, err := postgres.Launch(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// reachableDir is an empty directory like [testing.T.TempDir], which an unprivileged server can reach also when the test
// runs as root.
func reachableDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "outbox-postgres-test-") //nolint:usetesting // TempDir is closed to all but root
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func connect(t *testing.T, server *postgres.Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func ping(t *testing.T, server *postgres.Server) {
	t.Helper()
	if err := connect(t, server).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// exists tells whether a process is there. It may belong to another user.
func exists(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	const deadline, interval = 20 * time.Second, 20 * time.Millisecond
	for start := time.Now(); !condition(); time.Sleep(interval) {
		if time.Since(start) > deadline {
			t.Fatalf("not within %v: %s", deadline, what)
		}
	}
}
