package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// following is a tail that runs in this process.
type following struct {
	stdout, stderr *output
	stop           context.CancelFunc
	code           chan int
}

// follow starts a tail. It needs no Postgres, and gets one that is down.
func follow(t *testing.T, natsURL string, args ...string) *following {
	t.Helper()
	env := environment{"OUTBOX_DATABASE_DSN": nowhere, "OUTBOX_NATS_URL": natsURL}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	f := &following{newOutput(), newOutput(), cancel, make(chan int, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.code <- run(ctx, append([]string{"tail"}, args...), env.list(), f.stdout, f.stderr)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return f
}

// shows waits until the tail has written all of these.
func (f *following) shows(t *testing.T, where *output, want ...string) {
	t.Helper()
	where.await(t, strings.Join(want, ", "), func(text string) bool {
		for _, part := range want {
			if !strings.Contains(text, part) {
				return false
			}
		}
		return true
	})
}

func TestTail(t *testing.T) {
	dsn, server := storetest.NewDatabase(t), streamtest.Start(t)
	person := follow(t, server.URL())
	person.shows(t, person.stderr, "the stream does not exist; waiting until it does")
	relay := start(t, environment{"OUTBOX_DATABASE_DSN": dsn, "OUTBOX_NATS_URL": server.URL()})
	relay.logged("leading")
	person.shows(t, person.stderr, "waiting for messages in stream OUTBOX after sequence 0")
	program := follow(t, server.URL(), "--json", "--data")
	program.shows(t, program.stderr, "after sequence 0")
	selecting := follow(t, server.URL(), "--topic", "orders", "--type", "OrderPaid", "--data")
	selecting.shows(t, selecting.stderr, "after sequence 0")

	sql(t, dsn, `insert into outbox (topic, aggregate_type, aggregate_id, event_type, data, headers) values
('users', 'User', '17', E'User\x1bCreated', convert_to('s3cr3t', 'UTF8'), '{"tenant": "a", "evil": "\u001b[2J\u0085"}'),
('orders', 'Order', '1', 'OrderShipped', convert_to('shipped', 'UTF8'), null),
('orders', 'Order', '1', 'OrderPaid', convert_to(E'first\nsecond', 'UTF8'), null)`)
	person.shows(t, person.stdout, "outbox.users.User.17", "6 bytes", "    tenant: a\n", "    Outbox-Seq: 1\n", "OrderPaid", `\x1b`)
	if text := person.stdout.String(); strings.ContainsAny(text, "\x1b\u0085") || strings.Contains(text, "s3cr3t") || strings.Contains(text, "Nats-Msg-Size") {
		t.Errorf("tail shows a control character, a payload or a header of the server's:\n%q", text)
	}
	selecting.shows(t, selecting.stdout, "OrderPaid", "    | first\n    | second\n")
	if text := selecting.stdout.String(); strings.Contains(text, "OrderShipped") || strings.Contains(text, "User") {
		t.Errorf("tail --topic orders --type OrderPaid shows others:\n%s", text)
	}
	program.shows(t, program.stdout, "OrderPaid\"")
	var got tailed
	first, _, _ := strings.Cut(program.stdout.String(), "\n")
	if err := json.Unmarshal([]byte(first), &got); err != nil || got.Event == nil || got.Event.Seq != 1 || got.Event.EventType != "User\x1bCreated" ||
		got.Text == nil || *got.Text != "s3cr3t" || got.Stored == 0 || got.StoredAt.IsZero() || got.Headers.Get("tenant") != "a" {
		t.Errorf("tail --json: %v\n%s", err, first)
	}

	// It outlives an outage, and goes on where it was.
	server.Stop()
	person.shows(t, person.stderr, "waiting until it can be read")
	server.Restart()
	insert(t, dsn, "users", "User", "18", "UserVerified", "x")
	person.shows(t, person.stdout, "UserVerified")
	if n := strings.Count(person.stdout.String(), "outbox.users.User.17"); n != 1 {
		t.Errorf("an event was shown %d times, want once", n)
	}
	for _, f := range []*following{person, program, selecting} {
		f.stop()
		if code := <-f.code; code != 0 {
			t.Errorf("the exit code is %d, want 0:\n%s", code, f.stderr)
		}
	}
}

func TestTailWrongCommandLines(t *testing.T) {
	expectCode(t, execute(t, nil, "tail", "x"), 2)
	expectCode(t, execute(t, environment{"OUTBOX_STREAM_SUBJECT": "*"}, "tail"), 2)
}
