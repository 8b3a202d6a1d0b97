package store

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/store/storetest"
)

// beforeSecond calls back before a connection's second SELECT.
type beforeSecond struct {
	selects int
	call    func()
}

// TraceQueryStart implements [pgx.QueryTracer].
func (b *beforeSecond) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(strings.TrimSpace(data.SQL), "select") {
		if b.selects++; b.selects == 2 {
			b.call()
		}
	}
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (*beforeSecond) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// One process looks for the tables while the other's migration ends: it has found no version yet, and then a table.
func TestMigrateWhileAnotherEnds(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	outbox, err := Open(dsn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	between := &beforeSecond{call: func() {
		if err := outbox.Migrate(t.Context()); err != nil {
			t.Error(err)
		}
	}}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	config.Tracer = between
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })

	if err := outbox.table.migrate(t.Context(), conn, outbox.log); err != nil {
		t.Errorf("the slower process: %v", err)
	}
	if between.selects < 2 {
		t.Error("the other process did not come between")
	}
	if err := outbox.Check(t.Context()); err != nil {
		t.Error(err)
	}
}
