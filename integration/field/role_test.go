package field_test

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/integration/harness"
)

// role creates a role for the relay, which may create tables, and returns its name. The relay and the commands run as that
// role from now on.
func (s *scene) role() string {
	s.Helper()
	name := "relay_" + s.conn.Config().Database
	quoted := pgx.Identifier{name}.Sanitize()
	s.Exec(s.conn, `create role `+quoted+` login`)
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.Context()), 20*time.Second)
		defer cancel()
		for _, sql := range []string{
			`alter role ` + quoted + ` connection limit 0`,
			`select pg_terminate_backend(pid) from pg_stat_activity where usename = '` + name + `'`,
			`drop owned by ` + quoted + ` cascade`,
			`drop role ` + quoted,
		} {
			if _, err := s.conn.Exec(ctx, sql); err != nil {
				s.Logf("%s: %v", sql, err)
			}
		}
	})
	s.Exec(s.conn, `grant usage, create on schema public to `+quoted)
	s.use(s.as(name, ""))
	return quoted
}

// as returns the connection string of another role.
func (s *scene) as(role, password string) string {
	s.Helper()
	dsn, err := url.Parse(s.DSN)
	if err != nil {
		s.Fatal(err)
	}
	dsn.User = url.User(role)
	if password != "" {
		dsn.User = url.UserPassword(role, password)
	}
	return dsn.String()
}

// use makes the relay and the commands use a connection string.
func (s *scene) use(dsn string) {
	s.settings = append(slices.DeleteFunc(s.settings, func(setting string) bool { return strings.HasPrefix(setting, "OUTBOX_DATABASE_DSN=") }),
		"OUTBOX_DATABASE_DSN="+dsn)
}

// ordinary shows that a relay does its whole work: it publishes, gives up, puts back, stops and starts.
func (s *scene) ordinary() {
	s.Helper()
	s.relay = s.Relay(s.settings...)
	if !s.relay.Await(20*time.Second, leading) {
		s.problem("the relay does not lead within 20 s")
		s.verdict()
		return
	}
	s.traffic = s.NewTraffic()
	for deadline := time.Now().Add(10 * time.Second); s.traffic.Arrived() < 20 && time.Now().Before(deadline); {
		harness.Pause(s.Context(), 20*time.Millisecond)
	}
	if s.traffic.Arrived() < 20 {
		s.problem("nothing is published within 10 s")
		s.verdict()
		return
	}
	s.mark()
	s.daily()
	s.verdict()
}

// daily does what happens every day, and one takeover.
func (s *scene) daily() {
	s.Helper()
	refused, err := harness.ParseHostileRow("headers=msg-id")
	if err != nil {
		s.Fatal(err)
	}
	written, err := refused.Write(s.Context(), s.conn, 77, 1)
	if err != nil {
		s.Fatal(err)
	}
	harness.Pause(s.Context(), 2*time.Second)
	s.check("at first")
	s.checkCommands()
	letters, _ := s.letters() // A failure is a problem already.
	if !slices.ContainsFunc(letters, func(l letter) bool { return l.ID == written[0].ID }) {
		s.problem("a refused row is no dead letter")
	} else {
		s.Exec(s.conn, `update outbox_dead set headers = null`)
		if result := s.Try(20*time.Second, s.settings, "dead", "requeue", "--all"); result.Code != 0 {
			s.problem("requeue: exit code %d: %s", result.Code, shortened(result.Stderr))
		}
		for deadline := time.Now().Add(5 * time.Second); s.traffic.Stored(written[0].ID) == 0; harness.Pause(s.Context(), 50*time.Millisecond) {
			if time.Now().After(deadline) {
				s.problem("a requeued row is not stored")
				break
			}
		}
	}
	s.takeover(func() {})
	harness.Pause(s.Context(), time.Second)
	s.check("at the next relay")
	for _, fault := range s.traffic.Audit(20 * time.Second) {
		s.problem("%s", fault)
	}
}
