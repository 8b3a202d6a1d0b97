//go:build !linux

package harness

import "syscall"

// attributes are none: only Linux ends a process when the test is killed.
func attributes() *syscall.SysProcAttr { return nil }
