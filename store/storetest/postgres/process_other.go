//go:build !unix

package postgres

import (
	"syscall"
)

// Without users and process groups there is no server to launch. What follows only lets programs compile.

const (
	interrupt = syscall.SIGINT
	quit      = syscall.SIGQUIT
	resume    = syscall.SIGTERM
)

type account struct{}

func unprivileged() (*account, error) { return nil, ErrNotFound }

func (*account) own(string) error { return nil }

func attributes(int, *account) *syscall.SysProcAttr { return nil }
