// Package web is what the examples have in common as HTTP servers: a graceful stop, and a health check that needs
// neither shell nor curl in the image.
package web

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

const (
	// readHeaderTimeout bounds how long a client may take over the first lines of its request.
	readHeaderTimeout = 5 * time.Second

	// drainTimeout bounds how long requests that have begun may go on after a stop.
	drainTimeout = 5 * time.Second
)

// Serve answers requests until ctx ends, then finishes those that have begun. It returns nil after a stop.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: readHeaderTimeout}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	if err != nil {
		err = errors.Join(err, server.Close()) // Clients that are still connected have had their time.
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	if err != nil {
		return fmt.Errorf("stop serving HTTP on %s: %w", listener.Addr(), err)
	}
	return nil
}
