//go:build unix

package postgres

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// The signals of the postmaster.
const (
	interrupt = syscall.SIGINT  // fast
	quit      = syscall.SIGQUIT // immediate
	resume    = syscall.SIGCONT
)

// account is the user as whom the server runs, nil for the user of this program.
type account struct{ uid, gid uint32 }

// unprivileged returns the account for a server: PostgreSQL refuses to be root.
func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	found, err := user.Lookup("postgres")
	if err != nil {
		found, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("launch postgres: it cannot run as root, and there is no user postgres or nobody: %w", err)
	}
	uid, err := strconv.ParseUint(found.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("launch postgres: user %s: %w", found.Username, err)
	}
	gid, err := strconv.ParseUint(found.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("launch postgres: user %s: %w", found.Username, err)
	}
	return &account{uid: uint32(uid), gid: uint32(gid)}, nil
}

// own gives the server's directory to the account.
func (a *account) own(dir string) error {
	if a == nil {
		return nil
	}
	return os.Chown(dir, int(a.uid), int(a.gid))
}

// attributes of a process that runs by the account and in the process group of the guard. Group 0 is a new one, which the
// process leads.
func attributes(group int, a *account) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Pgid: group}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}
