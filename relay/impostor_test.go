package relay_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/store/storetest/impostor"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// A whole relay, its election included, calls nothing that others have put on its role's search_path.
func TestARelayCallsNoImpostors(t *testing.T) {
	recorder := &impostor.Recorder{}
	recorded := func(dsn string) relay.Config {
		c := configure(dsn, streamtest.Start(t).URL())
		c.BeforeConnect = recorder.Hook
		return c
	}
	relayOne := func(dsn, superuser string) {
		t.Helper()
		a := assemble(t, recorded(dsn))
		r := run(t, a)
		r.await("it publishes", publishing)
		standby := run(t, assemble(t, recorded(dsn)))
		standby.await("the other stands by", func(s relay.Status) bool { return s.Standby })
		err := pgx.BeginFunc(t.Context(), connect(t, superuser), func(tx pgx.Tx) error {
			return store.Insert(t.Context(), tx, store.Event{Topic: "t", AggregateType: "A", AggregateID: "1", EventType: "E"})
		})
		if err != nil {
			t.Fatal(err)
		}
		if s := r.await("the event is published", func(s relay.Status) bool { return s.Published == 1 }); s.Trouble != "" {
			t.Errorf("there was trouble: %s", s.Trouble)
		}
		r.stop()
		if err := r.end(); err != nil {
			t.Error(err)
		}
		standby.stop()
		if err := standby.end(); err != nil {
			t.Error(err)
		}
	}
	first := storetest.NewDatabase(t)
	relayOne(first, first)

	dsn := storetest.NewDatabase(t)
	admin := connect(t, dsn)
	role := fmt.Sprintf("relay_%d", time.Now().UnixNano())
	t.Cleanup(func() {
		if _, err := admin.Exec(context.WithoutCancel(t.Context()), `drop owned by `+role+` cascade; drop role `+role); err != nil {
			t.Error(err)
		}
	})
	exec(t, dsn, `create role `+role+` login; grant all on schema public to `+role)
	planted := impostor.Plant(t, admin, role, recorder.Statements())
	for _, want := range []string{"function pg_try_advisory_lock", "function pg_advisory_unlock_all", "function pg_notify", "function set_config"} {
		if !slices.Contains(planted, want) {
			t.Errorf("no %s was planted", want)
		}
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	relayOne(u.String(), dsn)
}
