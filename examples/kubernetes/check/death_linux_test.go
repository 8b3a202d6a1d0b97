package check

import "syscall"

// attributes lets a process end with the test, even with one that was killed.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
