package store

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// Dead letters that have been kept long enough go, whatever their number, and no other row does.
func TestDeadRetain(t *testing.T) {
	var log bytes.Buffer
	dsn := storetest.NewDatabase(t)
	o, err := Open(dsn, Options{DeadRetain: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	if _, err := conn.Exec(t.Context(), `
insert into outbox_dead (seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at, attempts, last_error, died_at)
select n, gen_random_uuid(), 't', 'A', '1', 'E', '', now(), 3, 'refused', case when n <= 1500 then now() - interval '61 minutes' else now() - interval '59 minutes' end
  from generate_series(1, 1510) n`); err != nil {
		t.Fatal(err)
	}
	var due expired
	left := func() (n int) {
		if err := conn.QueryRow(t.Context(), `select count(*) from outbox_dead`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, want := range []int{510, 10, 10} {
		if o.expireDead(t.Context(), &due); left() != want {
			t.Fatalf("%d dead letters are left, want %d", left(), want)
		}
	}
	if due.next.IsZero() {
		t.Error("it looks again at once, although nothing is left to be removed")
	}
	if text := log.String(); strings.Count(text, "removed dead letters that were kept long enough") != 2 || !strings.Contains(text, "letters=1000") || !strings.Contains(text, "letters=500") {
		t.Errorf("the log says\n%s", text)
	}
	for _, options := range []Options{{DeadRetain: -1}, {DeadRetain: time.Hour, HoldDead: true}} {
		if _, err := Open(dsn, options); err == nil {
			t.Errorf("%+v is taken", options)
		}
	}
}
