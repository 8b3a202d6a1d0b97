//go:build !linux

package check

import "syscall"

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
