package admin_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/admin"
)

func TestIdentitiesAreCompared(t *testing.T) {
	own := admin.Identity{Table: "outbox", Container: "pid:[1]"}
	for _, test := range []struct {
		other admin.Identity
		want  string // Of the error; empty for none.
	}{
		{own, ""},
		{admin.Identity{}, ""},
		{admin.Identity{Table: "outbox"}, ""},
		{admin.Identity{Container: "pid:[1]"}, ""},
		{admin.Identity{Table: "shop.events", Container: "pid:[1]"}, `table "shop.events", not "outbox"`},
		{admin.Identity{Table: "outbox", Container: "pid:[2]"}, `another container ("pid:[2]", not "pid:[1]")`},
		{admin.Identity{Table: strings.Repeat("x", 1<<20)}, `xxx…"`},
	} {
		switch err := own.Check(test.other); {
		case test.want == "" && err != nil:
			t.Errorf("Check(%+v): %v, want nil", test.other, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 300):
			t.Errorf("Check(%.100v): %.400v, want a short error with %q", test.other, err, test.want)
		}
	}
	if err := (admin.Identity{}).Check(own); err != nil {
		t.Errorf("nothing is known of oneself: %v, want nil", err)
	}
	if err := admin.Self("outbox").Check(admin.Self("outbox")); err != nil {
		t.Errorf("one process: %v, want nil", err)
	}
}

func TestReportsSayWhoseTheyAre(t *testing.T) {
	self := admin.Identity{Table: "shop.events", Container: "pid:[1]"}
	handler := admin.NewHandler(self, func() relay.Status { return relay.Status{} }, http.NotFoundHandler())
	for _, path := range []string{"/healthz", "/readyz"} {
		var got admin.Report
		if err := json.Unmarshal(request(t, handler, http.MethodGet, path).Body.Bytes(), &got); err != nil || got.Identity != self {
			t.Errorf("GET %s is of %+v (%v), want %+v", path, got.Identity, err, self)
		}
	}
}
