package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest/postgres"
)

const (
	accounts = 50     // In each database.
	opening  = 10_000 // What each account begins with.
	senders  = 4      // How many transfers are under way at once.

	// settled bounds the wait for the last effects, once nothing is killed any more.
	settled = 2 * time.Minute
	// retry is the pause before something is tried again.
	retry = 20 * time.Millisecond
)

// payment is an event's payload.
type payment struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

// play makes both services, moves money while processes are killed, and compares.
func play(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	server, err := postgres.Launch(ctx, postgres.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	orders, payments, err := databases(ctx, server)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "outbox-transfer-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	addr, err := freeAddress(ctx)
	if err != nil {
		return err
	}

	running, stop := context.WithCancel(ctx)
	children := &children{stderr: stderr}
	defer children.wait()
	defer stop()
	settings := childSettings{NATS: "nats://" + addr, Addr: addr, Dir: dir, Orders: orders, Payments: payments, Inbox: o.inbox}
	for _, role := range []role{natsServer, relays, relays, consumers, consumers} {
		if err := children.start(running, role, settings); err != nil {
			return err
		}
	}

	before, err := sums(ctx, orders, payments)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d transfers from %d accounts to %d, and %d kills\n", o.transfers, accounts, accounts, o.kills)
	began := time.Now()
	killed := &tally{}
	if err := storm(running, o, orders, server, children, killed); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "all committed after %v; killed: %s\n", time.Since(began).Round(time.Second/10), killed)

	after, err := settle(ctx, o, orders, payments)
	if err != nil {
		return err
	}
	return verdict(stdout, before, after)
}

// databases makes the two services' databases.
func databases(ctx context.Context, server *postgres.Server) (orders, payments string, err error) {
	const table = `create table account (id text primary key, balance bigint not null);
insert into account select n, %d from generate_series(1, %d) n;
create table transfer (id bigint generated always as identity primary key);`
	for _, dsn := range []*string{&orders, &payments} {
		if *dsn, err = postgres.CreateDatabase(ctx, server.DSN()); err != nil {
			return "", "", err
		}
		conn, err := pgx.Connect(ctx, *dsn)
		if err != nil {
			return "", "", err
		}
		_, err = conn.Exec(ctx, fmt.Sprintf(table, opening, accounts))
		if err = errors.Join(err, conn.Close(ctx)); err != nil {
			return "", "", err
		}
	}
	outbox, err := store.Open(orders, store.Options{})
	if err != nil {
		return "", "", err
	}
	return orders, payments, errors.Join(outbox.Migrate(ctx), outbox.Close(ctx))
}

// freeAddress returns an address of the loopback interface that nobody listens on, for a server that is restarted there.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// storm commits the transfers, and kills meanwhile: evenly over the transfers.
func storm(ctx context.Context, o options, orders string, server *postgres.Server, children *children, killed *tally) error {
	pool, err := pgxpool.New(ctx, orders)
	if err != nil {
		return err
	}
	defer pool.Close()

	var left, committed atomic.Int64
	left.Store(int64(o.transfers))
	var sending sync.WaitGroup
	for range senders {
		sending.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				send(ctx, pool)
				committed.Add(1)
			}
		})
	}
	for n := 1; n <= o.kills && ctx.Err() == nil; n++ {
		for at := int64(o.transfers * n / (o.kills + 1)); committed.Load() < at && ctx.Err() == nil; {
			pause(ctx, retry)
		}
		if err := kill(ctx, server, children, killed); err != nil {
			return err
		}
	}
	sending.Wait()
	return context.Cause(ctx)
}

// send makes one transfer, again and again until the commit is known to have taken place. If the answer to a commit was lost,
// there may be one transfer more than asked for: no money is lost or made by that.
func send(ctx context.Context, pool *pgxpool.Pool) {
	for ctx.Err() == nil {
		p := payment{Account: fmt.Sprint(1 + rand.IntN(accounts)), Amount: 1 + rand.Int64N(100)}
		data, err := json.Marshal(p)
		if err != nil {
			panic(err)
		}
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `update account set balance = balance - $1 where id = $2`, p.Amount, fmt.Sprint(1+rand.IntN(accounts))); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `insert into transfer default values`); err != nil {
				return err
			}
			return store.Insert(ctx, tx, store.Event{Topic: "payments", AggregateType: "Account", AggregateID: p.Account, EventType: "Paid", Data: data})
		})
		if err == nil {
			return
		}
		pause(ctx, retry)
	}
}

// tally counts what was killed.
type tally struct{ relays, consumers, nats, postgres int }

func (t *tally) String() string {
	return fmt.Sprintf("%d relays, %d consumers, nats-server %d times, Postgres %d times", t.relays, t.consumers, t.nats, t.postgres)
}

// kill kills something and starts it again.
func kill(ctx context.Context, server *postgres.Server, children *children, killed *tally) error {
	switch n := rand.IntN(10); {
	case n < 4:
		killed.consumers++
		return children.replace(ctx, consumers)
	case n < 7:
		killed.relays++
		return children.replace(ctx, relays)
	case n < 9:
		killed.nats++
		return children.replace(ctx, natsServer)
	}
	killed.postgres++
	return errors.Join(server.Stop(postgres.Immediate), server.Start(ctx))
}

// state is what both databases hold.
type state struct {
	orders, payments int64 // The sum of all balances.
	sent, received   int64 // Transfers.
}

func sums(ctx context.Context, orders, payments string) (s state, err error) {
	for _, side := range []struct {
		dsn            string
		sum, transfers *int64
	}{{orders, &s.orders, &s.sent}, {payments, &s.payments, &s.received}} {
		conn, err := pgx.Connect(ctx, side.dsn)
		if err != nil {
			return s, err
		}
		err = conn.QueryRow(ctx, `select (select sum(balance)::bigint from account), (select count(*) from transfer)`).Scan(side.sum, side.transfers)
		if err = errors.Join(err, conn.Close(ctx)); err != nil {
			return s, err
		}
	}
	return s, nil
}

// settle waits until as many transfers were received as sent, and a little longer, for some may come twice.
func settle(ctx context.Context, o options, orders, payments string) (s state, err error) {
	for deadline := time.Now().Add(settled); ; pause(ctx, 10*retry) {
		if s, err = sums(ctx, orders, payments); err == nil && s.received >= s.sent || time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
	}
	wait := time.Second
	if !o.inbox {
		wait = 2 * ackWait // Redeliveries come late.
	}
	pause(ctx, wait)
	return sums(ctx, orders, payments)
}

// pause waits for a time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// verdict prints what became of the money, and returns an error if the sum is not what it was.
func verdict(stdout io.Writer, before, after state) error {
	fmt.Fprintf(stdout, "\n%-10s %14s %14s %10s\n", "", "before", "after", "transfers")
	fmt.Fprintf(stdout, "%-10s %14d %14d %10d\n", "orders", before.orders, after.orders, after.sent)
	fmt.Fprintf(stdout, "%-10s %14d %14d %10d\n", "payments", before.payments, after.payments, after.received)
	fmt.Fprintf(stdout, "%-10s %14d %14d\n\n", "together", before.orders+before.payments, after.orders+after.payments)
	switch difference := after.orders + after.payments - before.orders - before.payments; {
	case difference != 0:
		return fmt.Errorf("the sum is %+d off: of %d transfers %d were received", difference, after.sent, after.received)
	case after.sent != after.received:
		return fmt.Errorf("%d transfers were sent and %d received", after.sent, after.received)
	}
	fmt.Fprintln(stdout, "Nothing is lost and nothing is made: every transfer has had its effect exactly once.")
	return nil
}
