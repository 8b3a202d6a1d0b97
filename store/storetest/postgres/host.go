package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// EnvDSN is the environment variable with the connection string of the server on which a [Host] makes its databases. Its
// role must be allowed to create databases.
const EnvDSN = "OUTBOX_TEST_DSN"

// dropTimeout bounds dropping a database.
const dropTimeout = 30 * time.Second

// Host has databases made: on the server that EnvDSN leads to or, without it, on one that the first database launches. The
// zero value is ready to use, and its methods may be called concurrently.
type Host struct {
	mu     sync.Mutex // protects the following
	server *Server
	err    error // why there is none; a launch that failed is not tried again
}

// Database creates an empty database and returns its connection string, and a function that drops it and ends the sessions
// which are still open in it. The first call may launch the server, which takes a second or two; its error is [ErrNotFound]
// if there is neither a server nor one to launch.
func (h *Host) Database(ctx context.Context) (dsn string, drop func() error, err error) {
	admin := os.Getenv(EnvDSN)
	if admin == "" {
		server, err := h.launched(ctx)
		if err != nil {
			return "", nil, err
		}
		admin = server.DSN()
	}
	if dsn, err = CreateDatabase(ctx, admin); err != nil {
		return "", nil, err
	}
	return dsn, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
		defer cancel()
		return DropDatabase(ctx, admin, dsn)
	}, nil
}

func (h *Host) launched(ctx context.Context) (*Server, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.server == nil && h.err == nil {
		// Whoever happens to be first may give up, the server is for all.
		h.server, h.err = Launch(context.WithoutCancel(ctx), Options{})
		if errors.Is(h.err, ErrNotFound) {
			h.err = fmt.Errorf("%w; or point %s to a running server", h.err, EnvDSN)
		}
	}
	return h.server, h.err
}

// Close ends the launched server, if there is one, and all its databases.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	server := h.server
	h.server, h.err = nil, errors.New("the host of the databases is closed")
	if server == nil {
		return nil
	}
	return server.Close()
}
