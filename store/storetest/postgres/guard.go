package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"sync"
)

// vigil is what the guard does. It blocks in read until the pipe on its standard input is closed. Then it ends its whole
// process group, of which it is the leader and which initdb and postgres have joined, and removes the directory $1. The
// postmaster may write a last file while rm is at work, hence the loop.
const vigil = `
PATH=$PATH:/usr/bin:/bin
trap '' HUP INT QUIT TERM
read -r _
kill -QUIT 0
kill -CONT 0
for _ in 1 2 3 4 5 6 7 8 9 10; do
	rm -rf "$1" 2>/dev/null && exit
	sleep 0.5
done
`

// guard is the process that outlives this program if it has to, and cleans up after it.
type guard struct {
	dir     string
	shell   *exec.Cmd
	pipe    io.Closer // our end of its standard input
	dismiss func() error
}

// watch starts the guard of a directory. It watches on when ctx is cancelled.
func watch(ctx context.Context, dir string) (*guard, error) {
	shell := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", "-c", vigil, "guard", dir)
	shell.SysProcAttr = attributes(0, nil)
	pipe, err := shell.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("guard of %s: %w", dir, err)
	}
	if err := shell.Start(); err != nil {
		return nil, fmt.Errorf("guard of %s: %w", dir, err)
	}
	g := &guard{dir: dir, shell: shell, pipe: pipe}
	g.dismiss = sync.OnceValue(g.end)
	return g, nil
}

// pid is the guard's process id and the id of the process group that it guards.
func (g *guard) pid() int { return g.shell.Process.Pid }

// end has the guard do its work now, and waits for it.
func (g *guard) end() error {
	err := errors.Join(g.pipe.Close(), g.shell.Wait())
	if _, statErr := os.Stat(g.dir); !errors.Is(statErr, fs.ErrNotExist) {
		return fmt.Errorf("guard of %s: %w", g.dir, errors.Join(errors.New("the directory is still there"), err))
	}
	return nil
}
