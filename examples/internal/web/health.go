package web

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// HealthPath is where Health is to be served, and where CheckHealth looks.
const HealthPath = "/healthz"

// healthTimeout bounds one check.
const healthTimeout = time.Second

// Health answers 200 as long as check returns nil, and 503 with the reason otherwise.
func Health(check func(context.Context) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
		defer cancel()
		if err := check(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n") // If it fails, the client has gone.
	})
}

// CheckHealth asks the program that serves addr on this machine how it is.
func CheckHealth(ctx context.Context, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*healthTimeout)
	defer cancel()
	url := "http://" + net.JoinHostPort("127.0.0.1", port) + HealthPath
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		reason, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10)) // A part of it is better than nothing.
		return fmt.Errorf("health check: %s: %s", response.Status, strings.TrimSpace(string(reason)))
	}
	return nil
}
