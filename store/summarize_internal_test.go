package store

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// Whoever leads after a crash reads what was published lately, not the whole archive. Also a role that owns nothing keeps
// that so.
func TestArchiveIsReadFromAPlaceOn(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	owner, err := Open(dsn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Close(context.WithoutCancel(t.Context())) })
	if err := owner.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, dsn, `create role summarizer login; `+owner.Table().Grants("summarizer"))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(ctx, `drop owned by summarizer; drop role summarizer`); err != nil {
			t.Error(err)
		}
		_ = conn.Close(ctx)
	})
	o, err := Open(dsn+"&user=summarizer", Options{Retain: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(context.WithoutCancel(t.Context())) })
	term, err := o.Begin(t.Context(), "S", "me", 0)
	if err != nil {
		t.Fatal(err)
	}
	const events = 50_000
	execute(t, dsn, `insert into outbox_published (part, stream, after, seq, id, topic, aggregate_type, aggregate_id, event_type, data, created_at)
		select 0, 'S', i / 100, i, gen_random_uuid(), 't', 'A', '1', 'E', repeat('x', 100)::bytea, now() from generate_series(1, 50000) i`)
	term.unsummarized.Store(events)
	if err := term.summarize(t.Context()); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[uint64]int{0: events, events/100 - 1: 101} {
		got, err := term.Archive(t.Context(), from)
		if err != nil || len(got) != want {
			t.Errorf("from %d: got %d events, error %v; want %d", from, len(got), err, want)
		}
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	if _, err := conn.Exec(t.Context(), `set enable_seqscan = off`); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), `explain (analyze, costs off, timing off, summary off) `+o.archiveQuery(), pgx.QueryExecModeExec, "S", events/100-1)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range plan {
		if _, removed, ok := strings.Cut(line, "Rows Removed by Index Recheck: "); ok {
			if n, err := strconv.Atoi(removed); err != nil || n > events/10 {
				t.Errorf("%s rows are read that are not wanted", removed)
			}
		}
	}
	if text := strings.Join(plan, "\n"); !strings.Contains(text, "Bitmap Index Scan on outbox_after_0") {
		t.Errorf("the index is not used:\n%s", text)
	}
}
