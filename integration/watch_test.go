package integration_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// A leader that is inside a statement for longer than a lease keeps leading as long as its server process lives, and no
// longer. No other relay is elected meanwhile.
func TestALongStatementCostsNoTerm(t *testing.T) {
	t.Parallel()
	dsn := storetest.NewDatabase(t)
	candidate := func() (*store.Outbox, *election.AdvisoryLock) {
		outbox, err := store.Open(dsn, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = outbox.Close(context.WithoutCancel(t.Context())) })
		return outbox, election.NewAdvisoryLock(outbox.Session(), election.AdvisoryLockOptions{
			Key: 1, Table: outbox.Table().LockKey(), ResignChannel: outbox.Table().ResignChannel(),
		})
	}
	outbox, elector := candidate()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	statement := func(ctx context.Context, sql string) error {
		return outbox.Session().DoPatiently(ctx, 4*time.Second, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, sql)
			return err
		})
	}

	elected := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- elector.Run(ctx, func(ctx context.Context, lease *election.Lease) error {
			defer cancel() // There is one term.
			watching, stop := context.WithCancel(ctx)
			watched := make(chan struct{})
			defer func() { stop(); <-watched }()
			go func() {
				defer close(watched)
				outbox.Watch(watching, func(store.Finding) {})
			}()
			close(elected)
			if err := statement(ctx, `select pg_sleep(12)`); err != nil || !lease.Valid() || ctx.Err() != nil {
				t.Errorf("after 12 s inside a statement: %v, the lease is valid: %v, the term's context: %v", err, lease.Valid(), context.Cause(ctx))
			}
			err := statement(ctx, `select pg_terminate_backend(pg_backend_pid())`)
			if err == nil {
				t.Error("the session has outlived its end")
			}
			<-ctx.Done()
			if cause := context.Cause(ctx); !errors.Is(cause, election.ErrLeaseLost) || lease.Valid() {
				t.Errorf("after the session's end: %v, the lease is valid: %v", cause, lease.Valid())
			}
			return nil
		})
	}()
	<-elected
	_, rival := candidate()
	started := time.Now()
	err := rival.Run(t.Context(), func(context.Context, *election.Lease) error {
		if led := time.Since(started); led < 11*time.Second {
			t.Errorf("another was elected after %v", led)
		}
		return errDone
	})
	if !errors.Is(err, errDone) {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

var errDone = errors.New("done")
