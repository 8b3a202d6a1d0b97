package web_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/examples/internal/web"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func TestServeFinishesWhatHasBegun(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	begun := make(chan struct{})
	listener := listen(t)
	served := make(chan error, 1)
	go func() {
		served <- web.Serve(ctx, listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(begun)
			<-ctx.Done()
			fmt.Fprint(w, "done")
		}))
	}()
	go func() {
		<-begun
		stop()
	}()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("a request that had begun: %v", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("a request that had begun: %s, want 200", response.Status)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeReturnsWhatFailed(t *testing.T) {
	listener := listen(t)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := web.Serve(t.Context(), listener, http.NotFoundHandler()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener: %v, want %v", err, net.ErrClosed)
	}
}

func TestHealth(t *testing.T) {
	for _, state := range []error{nil, errors.New("a headache")} {
		ctx, stop := context.WithCancel(t.Context())
		listener := listen(t)
		mux := http.NewServeMux()
		mux.Handle("GET "+web.HealthPath, web.Health(func(context.Context) error { return state }))
		served := make(chan error, 1)
		go func() { served <- web.Serve(ctx, listener, mux) }()

		err := web.CheckHealth(t.Context(), listener.Addr().String())
		switch {
		case state == nil && err != nil:
			t.Errorf("CheckHealth of a healthy program: %v", err)
		case state != nil && (err == nil || !strings.Contains(err.Error(), state.Error())):
			t.Errorf("CheckHealth of one with %v: %v", state, err)
		}
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}
