package main

import (
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/admin"
)

func TestHealthcheckFollowsTheRelay(t *testing.T) {
	for name, test := range map[string]struct {
		status       relay.Status
		alive, ready int
		says         string
	}{
		"stopped":    {relay.Status{State: relay.Stopped}, 1, 1, "stopped"},
		"standby":    {relay.Status{State: relay.Campaigning, Standby: true, Fit: true}, 0, 0, "standing by, another relay leads"},
		"no broker":  {relay.Status{State: relay.Leading, Term: 3, Trouble: "not connected"}, 0, 1, "leading, term 3: not connected"},
		"publishing": {relay.Status{State: relay.Leading, Term: 3, Publishing: true}, 0, 0, "leading, term 3"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(admin.NewHandler(admin.Identity{}, func() relay.Status { return test.status }, http.NotFoundHandler()))
			defer server.Close()
			env := environment{"OUTBOX_HTTP_ADDR": server.Listener.Addr().String(), "http_proxy": "http://127.0.0.1:1"}
			for _, check := range []struct {
				args []string
				want int
			}{{[]string{"healthcheck"}, test.alive}, {[]string{"healthcheck", "--ready"}, test.ready}} {
				got := execute(t, env, check.args...)
				expectCode(t, got, check.want)
				want, said := "healthy: "+test.says+"\n", got.stdout
				if check.want != 0 {
					want, said = "outbox-relay: unhealthy: "+test.says+"\n", got.stderr
				}
				if said != want {
					t.Errorf("%v says %q, want %q", check.args, said, want)
				}
			}
		})
	}
}

func TestHealthcheckOfAllAddresses(t *testing.T) {
	server := httptest.NewServer(admin.NewHandler(admin.Identity{}, func() relay.Status { return relay.Status{State: relay.Leading} }, http.NotFoundHandler()))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"", "0.0.0.0", "127.0.0.1", "localhost"} {
		expectCode(t, execute(t, environment{"OUTBOX_HTTP_ADDR": host + ":" + port}, "healthcheck"), 0)
	}
}

func TestHealthcheckWithNobodyToAsk(t *testing.T) {
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	defer stranger.Close()
	for addr, want := range map[string]string{
		"off":                             "http_addr is off",
		"127.0.0.1:0":                     "only the relay knows which free port it got",
		"127.0.0.1:1":                     "connection refused",
		stranger.Listener.Addr().String(): "is no relay",
		"nonsense":                        "OUTBOX_HTTP_ADDR",
	} {
		got := execute(t, environment{"OUTBOX_HTTP_ADDR": addr}, "healthcheck")
		expectCode(t, got, 1) // Docker reserves 2.
		expectText(t, "standard error of "+addr, got.stderr, want)
		if !strings.HasPrefix(got.stderr, "outbox-relay: ") || got.stdout != "" {
			t.Errorf("standard error %q, standard output %q", got.stderr, got.stdout)
		}
	}
}

// With host networking a neighbour may have the address.
func TestHealthcheckTakesNoAnswerOfANeighbour(t *testing.T) {
	self := admin.Self("shop.events")
	neighbour := self
	neighbour.Container = "pid:[1]"
	for name, test := range map[string]struct {
		answers admin.Identity
		env     environment
		code    int
		says    string
	}{
		"itself":            {self, environment{"OUTBOX_TABLE": "shop.events"}, 0, "healthy: leading, term 7"},
		"an earlier one":    {admin.Identity{}, environment{"OUTBOX_TABLE": "shop.events"}, 0, "healthy: leading, term 7"},
		"another table":     {self, nil, 1, `it relays the table "shop.events", not "public.outbox"`},
		"another container": {neighbour, environment{"OUTBOX_TABLE": "shop.events"}, 1, "it runs in another container"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "another container" && self.Container == "" {
				t.Skip("this system has no names for containers")
			}
			leading := func() relay.Status { return relay.Status{State: relay.Leading, Term: 7} }
			server := httptest.NewServer(admin.NewHandler(test.answers, leading, http.NotFoundHandler()))
			defer server.Close()
			env := environment{"OUTBOX_HTTP_ADDR": server.Listener.Addr().String()}
			maps.Copy(env, test.env)
			got := execute(t, env, "healthcheck")
			expectCode(t, got, test.code)
			expectText(t, "the answer", got.stdout+got.stderr, test.says)
			if test.code != 0 {
				expectText(t, "standard error", got.stderr, "unhealthy: another relay answers on ", "OUTBOX_HTTP_ADDR")
			}
		})
	}
}
