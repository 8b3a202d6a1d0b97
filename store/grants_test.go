package store_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/store"
)

func TestGrantScript(t *testing.T) {
	f := newFixture(t, store.Options{Table: store.Table{Schema: "app", Name: "events"}})
	producer, producerDSN := f.role(t)
	relay, relayDSN := f.role(t)
	migrator, migratorDSN := f.role(t)
	f.exec(t, f.Table().GrantScript(store.Roles{Producer: producer, Relay: relay, Migrator: migrator}))

	if err := open(t, relayDSN, store.Options{Table: f.Table()}).Check(t.Context()); err != nil {
		t.Errorf("the relay: %v", err)
	}
	if _, err := connect(t, producerDSN).Exec(t.Context(), `select app.events_emit('t', 'A', '1', 'E', 'x')`); err != nil {
		t.Errorf("the producer: %v", err)
	}
	if err := open(t, migratorDSN, store.Options{Table: store.Table{Schema: "app", Name: "others"}}).Migrate(t.Context()); err != nil {
		t.Errorf("the migrator: %v", err)
	}
	findings, err := f.CheckGrants(t.Context())
	if err != nil || len(findings) != 0 {
		t.Errorf("found %v (%v) after the script", findings, err)
	}
}

func TestCheckGrants(t *testing.T) {
	const columns = `(id, topic, aggregate_type, aggregate_id, event_type, data, headers)`
	tests := []struct {
		name, grants string
		problems     []string
	}{
		{"whole rows", `grant insert on outbox to $role`, []string{"may insert whole rows, so also seq"}},
		{"a column of the relay", `grant insert ` + columns + `, insert (seq, attempts) on outbox to $role`, []string{"may insert into attempts, seq"}},
		{"too few", `grant insert (topic, aggregate_type, aggregate_id, event_type, data) on outbox to $role`, []string{"may not insert into id, headers"}},
		{"deletes", `grant insert ` + columns + `, delete on outbox to $role`, []string{"has DELETE on the table"}},
		{"updates", `grant insert ` + columns + `, update (retry_at) on outbox to $role`, []string{"may update retry_at"}},
		{"may not call", `grant insert ` + columns + ` on outbox to $role; revoke execute on all functions in schema public from public`, []string{"may not call outbox_emit"}},
		{"right", `grant insert ` + columns + ` on outbox to $role`, nil},
		{"reads", `grant insert ` + columns + `, select on outbox to $role`, nil},
		{"a relay", `grant select, insert, update, delete on outbox to $role`, nil},
		{"none", `grant select on outbox to $role`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, store.Options{})
			role, _ := f.role(t)
			f.exec(t, strings.ReplaceAll(tt.grants, "$role", role))
			findings, err := f.CheckGrants(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var problems []string
			for _, finding := range findings {
				if finding.Role != role {
					t.Errorf("found %+v, which is of another role", finding)
				}
				problems = append(problems, finding.Problem)
			}
			if !slices.EqualFunc(problems, tt.problems, strings.HasPrefix) {
				t.Fatalf("found %q, want %q", problems, tt.problems)
			}
			for _, finding := range findings { // What it says is what helps.
				f.exec(t, finding.Remedy)
			}
			if findings, err := f.CheckGrants(t.Context()); err != nil || len(findings) != 0 {
				t.Errorf("after the remedy: %v (%v)", findings, err)
			}
		})
	}
	t.Run("everybody", func(t *testing.T) {
		f := newFixture(t, store.Options{})
		f.exec(t, `grant insert on outbox to public`)
		findings, err := f.CheckGrants(t.Context())
		if err != nil || len(findings) != 1 || findings[0].Role != "public" {
			t.Errorf("found %v (%v), want one of public", findings, err)
		}
	})
}
