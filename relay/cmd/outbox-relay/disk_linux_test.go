package main

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// A disk that is really full is named in the log, by status and by doctor alike, with what to do.
func TestDiskIsFull(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("outbox-test", disk, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("only root mounts a small disk: %v", err)
	}
	t.Cleanup(func() { // After the server has gone.
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	srv := natsServer(t, `jetstream { max_file_store: 1G, max_memory_store: 64M }`, disk)
	dsn := storetest.NewDatabase(t)
	env := environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": srv.ClientURL()}
	relay := start(t, env)
	relay.logged("leading")
	for range 100 {
		insert(t, dsn, "users", "User", "17", "UserCreated", strings.Repeat("x", 100_000))
	}
	// The server answers nothing more, or that it has no space, according to where in its store it came to the end.
	named := func(text string) bool {
		return strings.Contains(text, "OUTBOX") && (strings.Contains(text, "make room on it, then restart the NATS server") ||
			strings.Contains(text, "its disk may be, or have been, full") && strings.Contains(text, "takes nothing for it before a restart"))
	}
	relay.stderr.await(t, "the full disk", named)
	eventually(t, "status says so", func() bool { return named(execute(t, env, "status").stdout) })
	d := diagnose(t, env)
	expectCode(t, d.result, 1)
	if said := d.failures("the leader has not been able to for "); len(said) != 1 || !named(said[0]) {
		t.Errorf("doctor does not name it:\n%s", execute(t, env, "doctor").stdout)
	}
	if entries, err := os.ReadDir(disk); err != nil || len(entries) == 0 {
		t.Errorf("the server's store is not on the small disk: %v, %v", entries, err)
	}
}
