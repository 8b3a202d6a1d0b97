package admin_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/admin"
)

func TestHealthAndReadinessFollowTheStatus(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		status         relay.Status
		healthy, ready int
		report         admin.Report
	}{
		"stopped": {
			relay.Status{State: relay.Stopped, Since: since},
			503, 503,
			admin.Report{State: "stopped", Since: since},
		},
		"campaigning without Postgres": {
			relay.Status{State: relay.Campaigning, Since: since},
			200, 503,
			admin.Report{State: "campaigning", Since: since},
		},
		"standing by": {
			relay.Status{State: relay.Campaigning, Since: since, Standby: true, Fit: true},
			200, 200,
			admin.Report{Ready: true, State: "campaigning", Since: since, Standby: true, Fit: true},
		},
		"standing by without a broker": {
			relay.Status{State: relay.Campaigning, Since: since, Standby: true, Trouble: "no servers available"},
			200, 503,
			admin.Report{State: "campaigning", Since: since, Standby: true, Trouble: "no servers available"},
		},
		"hanging": {
			relay.Status{State: relay.Leading, Since: since, Publishing: true, Stalled: 11 * time.Second, Trouble: "its loop has not turned for 11s"},
			503, 503,
			admin.Report{State: "leading", Since: since, Publishing: true, Trouble: "its loop has not turned for 11s"},
		},
		"leading without a broker": {
			relay.Status{State: relay.Leading, Since: since, Term: 3, Trouble: "not connected", Published: 4},
			200, 503,
			admin.Report{State: "leading", Since: since, Term: 3, Trouble: "not connected", Published: 4},
		},
		"publishing": {
			relay.Status{State: relay.Leading, Since: since, Term: 3, Publishing: true, Published: 5},
			200, 200,
			admin.Report{Ready: true, State: "leading", Since: since, Term: 3, Publishing: true, Published: 5},
		},
	} {
		t.Run(name, func(t *testing.T) {
			handler := admin.NewHandler(admin.Identity{}, func() relay.Status { return test.status }, http.NotFoundHandler())
			for path, want := range map[string]int{"/healthz": test.healthy, "/readyz": test.ready} {
				answer := request(t, handler, http.MethodGet, path)
				if answer.Code != want {
					t.Errorf("GET %s = %d, want %d", path, answer.Code, want)
				}
				if got := answer.Header().Get("Content-Type"); got != "application/json" {
					t.Errorf("GET %s is %q, want application/json", path, got)
				}
				var got admin.Report
				if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil {
					t.Fatalf("GET %s: %v in %q", path, err, answer.Body)
				}
				if got != test.report {
					t.Errorf("GET %s = %+v, want %+v", path, got, test.report)
				}
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "outbox_relay_leader 1\n") })
	handler := admin.NewHandler(admin.Identity{}, func() relay.Status { return relay.Status{State: relay.Leading} }, metrics)
	for _, test := range []struct {
		method, path string
		code         int
		body         string
	}{
		{http.MethodGet, "/", 200, "/readyz"},
		{http.MethodGet, "/metrics", 200, "outbox_relay_leader 1"},
		{http.MethodHead, "/healthz", 200, ""},
		{http.MethodPost, "/healthz", 405, ""},
		{http.MethodDelete, "/readyz", 405, ""},
		{http.MethodPost, "/metrics", 405, ""},
		{http.MethodPut, "/", 405, ""},
		{http.MethodGet, "/healthz/", 404, ""},
		{http.MethodGet, "/nothing", 404, ""},
	} {
		answer := request(t, handler, test.method, test.path)
		if answer.Code != test.code || !strings.Contains(answer.Body.String(), test.body) {
			t.Errorf("%s %s = %d %q, want %d with %q", test.method, test.path, answer.Code, answer.Body, test.code, test.body)
		}
	}
}

func TestServerReportsItsAddressAndStops(t *testing.T) {
	handler := admin.NewHandler(admin.Identity{}, func() relay.Status { return relay.Status{State: relay.Leading} }, http.NotFoundHandler())
	server, err := admin.Listen(t.Context(), "127.0.0.1:0", handler, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, port, err := net.SplitHostPort(server.Addr()); err != nil || port == "0" {
		t.Fatalf("Addr = %q, want the port it got", server.Addr())
	}
	if _, err := admin.Listen(t.Context(), server.Addr(), handler, nil); err == nil {
		t.Error("a second server got the same address")
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stopped := make(chan error, 1)
	go func() { stopped <- server.Run(ctx) }()
	if code := get(t, "http://"+server.Addr()+"/healthz"); code != http.StatusOK {
		t.Errorf("GET /healthz = %d, want 200", code)
	}
	stop()
	if err := within(t, stopped); err != nil {
		t.Errorf("Run: %v, want nil after a stop", err)
	}
	again, err := admin.Listen(t.Context(), server.Addr(), handler, nil)
	if err != nil {
		t.Fatalf("the address is not free after the stop: %v", err)
	}
	stop()
	if err := again.Run(ctx); err != nil {
		t.Errorf("Run with a context that has ended: %v, want nil", err)
	}
}

func TestServerDoesNotWaitForAReaderThatNeverEnds(t *testing.T) {
	begun := make(chan struct{})
	stuck := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	})
	server, err := admin.Listen(t.Context(), "127.0.0.1:0", admin.NewHandler(admin.Identity{}, func() relay.Status { return relay.Status{} }, stuck), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stopped := make(chan error, 1)
	go func() { stopped <- server.Run(ctx) }()

	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	within(t, begun)
	stop()
	if err := within(t, stopped); err != nil {
		t.Errorf("Run: %v, want nil after a stop", err)
	}
}

func request(t *testing.T, handler http.Handler, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	return recorder
}

func get(t *testing.T, url string) (code int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// within returns what comes within a time that no healthy machine needs.
func within[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case got := <-from:
		return got
	case <-time.After(10 * time.Second):
		t.Fatal("nothing happened within 10 s")
		panic("not reached")
	}
}
