package doctor_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/doctor"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// patience is how long a question to a broker may take that answers none.
const patience = 5 * time.Second

// diagnosis is what doctor says.
type diagnosis struct{ doctor.Report }

// diagnose has the doctor look, and sees that every finding has all that one has.
func diagnose(t *testing.T, c relay.Config) diagnosis {
	t.Helper()
	d := diagnosis{doctor.Run(t.Context(), c, doctor.Options{})}
	for _, f := range d.Findings {
		if f.Check == "" || f.Detail == "" || !slices.Contains([]doctor.Place{doctor.Configuration, doctor.Postgres, doctor.NATS}, f.Place) {
			t.Errorf("incomplete: %+v", f)
		}
		if f.Remedy != "" && (f.Severity == doctor.OK || !strings.Contains(f.Detail, strings.Split(f.Remedy, "; ")[0])) {
			t.Errorf("the remedy is no part of what is wrong: %+v", f)
		}
	}
	return d
}

// String lists the findings, one a line.
func (d *diagnosis) String() string {
	var b strings.Builder
	for _, f := range d.Findings {
		fmt.Fprintf(&b, "%s %s: %s\n", f.Severity, f.Check, f.Detail)
	}
	return b.String()
}

// expect wants findings as "severity check: a part of the detail". One that begins with "no " must not be there.
func (d *diagnosis) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		head, detail, _ := strings.Cut(w, ": ")
		unwanted, no := strings.CutPrefix(head, "no ")
		found := false
		for _, f := range d.Findings {
			if no {
				found = found || f.Check == unwanted
				continue
			}
			found = found || string(f.Severity)+" "+f.Check == head && strings.Contains(f.Detail, detail)
		}
		if found == no {
			t.Errorf("want %q, got:\n%s", w, d)
		}
	}
}

// remedy wants a finding of this check whose remedy has a part.
func (d *diagnosis) remedy(t *testing.T, check, part string) {
	t.Helper()
	for _, f := range d.Findings {
		if f.Check == check && f.Severity != doctor.OK && strings.Contains(f.Remedy, part) {
			return
		}
	}
	t.Errorf("want a remedy of %s with %q, got:\n%+v", check, part, d.Findings)
}

func (d *diagnosis) expectErr(t *testing.T, want bool) {
	t.Helper()
	if err := d.Err(); (err != nil) != want {
		t.Errorf("got the error %v, want one: %v\n%s", err, want, d)
	}
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

func sql(t *testing.T, dsn, statement string) {
	t.Helper()
	if _, err := connect(t, dsn).Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func migrate(t *testing.T, dsn string) {
	t.Helper()
	outbox, err := (relay.Config{Postgres: dsn}).Outbox()
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func insert(t *testing.T, dsn, topic, aggregateType, aggregateID, eventType, data string) {
	t.Helper()
	if _, err := connect(t, dsn).Exec(t.Context(), `select outbox_emit($1, $2, $3, $4, $5::text)`, topic, aggregateType, aggregateID, eventType, data); err != nil {
		t.Fatal(err)
	}
}

// eventually polls for a condition of another process.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not in time", what)
		}
	}
}

// denying starts a server whose user "me" may not publish to some subjects.
func denying(t *testing.T, subjects ...string) (url string, js jetstream.JetStream) {
	t.Helper()
	broker := streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "all", Password: "right"}, {Username: "me", Password: "right", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: subjects},
		}}}
	})
	return strings.Replace(broker.URL(), "://", "://me:right@", 1), broker.JetStream(t, nats.UserInfo("all", "right"))
}
