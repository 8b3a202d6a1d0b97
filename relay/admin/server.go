package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Limits of a [Server]. Its answers are small, and its clients are near.
const (
	requestTimeout = 5 * time.Second
	answerTimeout  = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	// closeTimeout is how long a stop waits for answers under way.
	closeTimeout = time.Second
	// maxHeaderBytes is what the header of a request may take.
	maxHeaderBytes = 16 << 10
)

// Server serves a handler at one address. It has at most 64 connections open, and closes one that sends nothing for two
// minutes.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen listens at addr, host:port; it fails if another process does. Connections wait until [Server.Run]. Log receives what
// goes wrong with single connections; nil discards it.
func Listen(ctx context.Context, addr string, handler http.Handler, log *slog.Logger) (*Server, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve HTTP: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	open := &connections{limit: maxConnections}
	return &Server{
		listener: listener,
		http: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: requestTimeout,
			ReadTimeout:       requestTimeout,
			WriteTimeout:      answerTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			ConnState:         open.track,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
	}, nil
}

// Addr returns where the server listens, host:port. If port 0 was asked for, it has the port that the system chose.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx ends, and then waits at most a second for answers under way. It returns nil if it was stopped that
// way. Call it once: it frees the address.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	err := s.http.Shutdown(closing)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close() // A client that still reads might never end.
	}
	if failure := <-served; err == nil && !errors.Is(failure, http.ErrServerClosed) {
		err = failure
	}
	if err != nil {
		return fmt.Errorf("stop serving HTTP: %w", err)
	}
	return nil
}
