//go:build !unix

package harness

import "syscall"

// Without these signals no process can be frozen: sending them fails, and with it the test. What stands here only lets
// the tests compile.
const (
	freeze = syscall.Signal(-1)
	thaw   = syscall.Signal(-1)
)
