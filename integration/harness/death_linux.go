package harness

import "syscall"

// attributes let no process outlive the test, even one that is killed.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
