// Package sandbox gives the demo and the examples something to run on: PostgreSQL databases and NATS servers of their own,
// with nothing to install but PostgreSQL, and nothing left behind.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/go-outbox/go-outbox/store/storetest/postgres"
	"github.com/go-outbox/go-outbox/stream/embedded"
)

// Sandbox is what was made so far. The zero value is an empty one. It is for one goroutine.
type Sandbox struct {
	host postgres.Host
	undo []func() error // In the order in which it was made.
}

// Database makes an empty database and returns its connection string, as [postgres.Host.Database] does.
func (s *Sandbox) Database(ctx context.Context) (string, error) {
	dsn, drop, err := s.host.Database(ctx)
	if err != nil {
		return "", err
	}
	s.undo = append(s.undo, drop)
	return dsn, nil
}

// NATS starts a nats-server with JetStream in this process and returns its URL.
func (s *Sandbox) NATS() (string, error) {
	dir, err := os.MkdirTemp("", "outbox-nats-")
	if err != nil {
		return "", fmt.Errorf("start NATS: %w", err)
	}
	s.undo = append(s.undo, func() error { return os.RemoveAll(dir) })
	server, err := embedded.Start(embedded.Options{Addr: "127.0.0.1:0", StoreDir: dir})
	if err != nil {
		return "", err
	}
	s.undo = append(s.undo, func() error { server.Close(); return nil })
	return server.ClientURL(), nil
}

// Close removes all that was made, the newest first. Nothing can be made afterwards.
func (s *Sandbox) Close() error {
	var faults []error
	for _, undo := range slices.Backward(s.undo) {
		faults = append(faults, undo())
	}
	s.undo = nil
	return errors.Join(append(faults, s.host.Close())...)
}
