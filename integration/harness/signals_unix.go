//go:build unix

package harness

import "syscall"

// What Freeze and Thaw send.
const (
	freeze = syscall.SIGSTOP
	thaw   = syscall.SIGCONT
)
