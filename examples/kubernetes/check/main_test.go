package check

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binary is the outbox-relay that TestMain built as the Dockerfile does: without cgo, and with the modules of the main go.mod
// rather than ours.
var binary string //nolint:gochecknoglobals // Built once for all tests.

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "outbox-relay-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "outbox-relay")
	build := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-o", binary, "./relay/cmd/outbox-relay")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build outbox-relay: %v\n%s", err, out)
		os.Exit(1)
	}
	code := runAndRemove(m, dir)
	os.Exit(code)
}

func runAndRemove(m *testing.M, dir string) int {
	defer os.RemoveAll(dir)
	return m.Run()
}
