//go:build unix

package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/config"
)

// A file that never ends, or that somebody else would have to write first, is not waited for.
func TestOnlyRegularFilesOfSomeSizeAreRead(t *testing.T) {
	dir := t.TempDir()
	fifo, large, right := filepath.Join(dir, "fifo"), filepath.Join(dir, "large"), filepath.Join(dir, "right")
	full := strings.Repeat("#", 1<<20)
	err := errors.Join(syscall.Mkfifo(fifo, 0o600), os.WriteFile(large, []byte(full+"#"), 0o600), os.WriteFile(right, []byte(full), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{fifo: "not a regular file", "/dev/zero": "not a regular file", dir: "not a regular file", large: "more than 1048576 bytes", right: ""} {
		done := make(chan []string, 1)
		go func() {
			src := sources(map[string]string{"OUTBOX_DATABASE_DSN": dsn, config.PathEnv: path}, nil)
			src.ReadFile = nil
			_, err := config.Load(src)
			done <- faults(t, err)
		}()
		select {
		case got := <-done:
			if want == "" {
				compare(t, got, nil)
				continue
			}
			compare(t, got, []string{`environment: CONFIG_PATH: got "` + path + `", want the path of a readable file (` + want + `)`})
		case <-time.After(10 * time.Second):
			t.Errorf("%s is still being read", path)
		}
	}
}
