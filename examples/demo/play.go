package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/go-outbox/go-outbox/examples/consumer/inbox"
	"github.com/go-outbox/go-outbox/examples/internal/web"
	"github.com/go-outbox/go-outbox/examples/producer/users"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// patience is how long anything here may take before the demo has failed.
const patience = 10 * time.Second

// demo is one run of the demo.
type demo struct {
	options options
	out     io.Writer

	pool    *pgxpool.Pool
	js      jetstream.JetStream
	url     string // Of the HTTP service.
	fleet   *fleet
	journal *journal

	leader int // The process ID of the relay that was elected last.
}

// play runs the demo with a database and a NATS server that run already, and stops everything that it started.
func play(ctx context.Context, o options, dsn, natsURL string, out, stderr io.Writer) error {
	log := slog.New(slog.DiscardHandler)
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	service := users.New(pool, db, store.Table{}, log)
	if err := errors.Join(service.CreateTable(ctx), createAccounts(ctx, pool)); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	conn, err := nats.Connect(natsURL)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	d := &demo{
		options: o, out: out,
		pool: pool, js: js, url: "http://" + listener.Addr().String(),
		fleet: newFleet(dsn, natsURL, stderr), journal: newJournal(),
	}
	events := inbox.New(js, inbox.Options{Stream: stream.DefaultStream, Filter: "outbox.>", Durable: "demo", Handle: d.journal.arrive, Logger: log})

	group, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	group.Go(func() error { return web.Serve(ctx, listener, service.Handler()) })
	group.Go(func() error { events.Run(ctx); return nil })
	err = d.acts(ctx, listener.Addr(), conn)
	stop()
	d.fleet.wait()
	return errors.Join(err, group.Wait())
}

func (d *demo) acts(ctx context.Context, service net.Addr, conn *nats.Conn) error {
	d.printf("\nGo Outbox: what an application commits is in JetStream, once and in order.\n\n")
	if err := d.cast(ctx, service, conn); err != nil {
		return err
	}
	if err := d.oneUser(ctx); err != nil {
		return err
	}
	takeovers, err := d.storm(ctx)
	if err != nil {
		return err
	}
	return d.judge(ctx, takeovers)
}

func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

// cast starts the relays, and says who is who.
func (d *demo) cast(ctx context.Context, service net.Addr, conn *nats.Conn) error {
	var version string
	if err := d.pool.QueryRow(ctx, `select split_part(current_setting('server_version'), ' ', 1)`).Scan(&version); err != nil {
		return err
	}
	if _, err := d.fleet.start(ctx); err != nil {
		return err
	}
	leader, err := d.awaitLeader(ctx)
	if err != nil {
		return err
	}
	standby, err := d.fleet.start(ctx)
	if err != nil {
		return err
	}
	postgres := d.pool.Config().ConnConfig
	d.printf("  Postgres %-12s %s:%d, thrown away afterwards\n", version, postgres.Host, postgres.Port)
	d.printf("  nats-server %-9s %s, in this process\n", conn.ConnectedServerVersion(), conn.ConnectedAddr())
	d.printf("  HTTP service          %s, in this process\n", service)
	d.printf("  relays                pid %d leads, pid %d stands by\n", leader.pid, standby)
	return nil
}

// awaitLeader waits for the next election.
func (d *demo) awaitLeader(ctx context.Context) (event, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("none within %v", patience))
	defer cancel()
	elected, err := d.fleet.leader(ctx)
	d.leader = elected.pid
	return elected, err
}

// oneUser follows one user from the HTTP service to the consumer.
func (d *demo) oneUser(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	d.printf("\nOne user, through the HTTP service\n\n")
	client := &visitor{url: d.url, journal: d.journal}
	id, answer, err := client.create(ctx, "john.doe", "sample-user@gmail.de")
	if err != nil {
		return err
	}
	d.printf("  POST  /users             %s\n", answer)
	answer, err = client.verify(ctx, id)
	if err != nil {
		return err
	}
	d.printf("  PATCH /users/%d/verify    %s\n", id, answer)
	if err := d.journal.await(ctx, 2); err != nil {
		return err
	}
	d.printf("\n  and at the consumer\n\n")
	for _, a := range d.journal.arrivedSince(0) {
		d.printf("  seq %d   %s/%s   %-12s   %s\n", a.Seq, a.AggregateType, a.AggregateID, a.EventType, a.Data)
	}
	return nil
}

// storm has all producers work at once, and kills the leading relay again and again.
func (d *demo) storm(ctx context.Context) ([]takeover, error) {
	o := d.options
	d.printf("\nA storm of %v: %d writers on %d accounts, rolling back every tenth change; %d clients of the HTTP service\n\n",
		o.duration, writers, accounts, visitors)
	producers, working := errgroup.WithContext(ctx)
	over := make(chan struct{})
	for i := range writers {
		w := &writer{pool: d.pool, journal: d.journal, number: i + 1}
		producers.Go(func() error { return repeat(working, over, w.write) })
	}
	for range visitors {
		v := &visitor{url: d.url, journal: d.journal}
		producers.Go(func() error { return repeat(working, over, v.visit) })
	}
	takeovers, err := d.direct(ctx, working.Done())
	close(over)
	return takeovers, errors.Join(err, producers.Wait())
}

// repeat does work at the producers' pace until over is closed.
func repeat(ctx context.Context, over <-chan struct{}, work func(context.Context) error) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if err := work(ctx); err != nil {
				return err
			}
		}
	}
}

// direct kills leaders, starts new relays, and prints what happens, until the storm is over or failed.
func (d *demo) direct(ctx context.Context, failed <-chan struct{}) ([]takeover, error) {
	const lines = 8
	var takeovers []takeover
	start := time.Now()
	_, _, shown := d.journal.counts()
	line := time.NewTicker(d.options.duration / lines)
	defer line.Stop()
	kill := time.NewTicker(d.options.duration / time.Duration(d.options.kills+1))
	defer kill.Stop()

	d.printf("     time   committed   rolled back   arrived   the versions of account 1, as they arrive\n")
	for printed := 0; printed < lines; {
		select {
		case <-line.C:
			shown = d.line(time.Since(start), shown)
			printed++
		case <-kill.C:
			if len(takeovers) == d.options.kills {
				continue
			}
			t, err := d.killLeader(ctx, start)
			if err != nil {
				return nil, err
			}
			takeovers = append(takeovers, t)
		case e := <-d.fleet.elections: // Without a kill: say, this machine stood still for a while.
			d.leader = e.pid
			d.printf("  %5.1f s   %d leads\n", e.at.Sub(start).Seconds(), e.pid)
		case err := <-d.fleet.lost:
			return nil, err
		case <-failed:
			return takeovers, nil
		}
	}
	return takeovers, nil
}

// killLeader kills the leading relay, waits for another to lead, and starts a new one to stand by.
func (d *demo) killLeader(ctx context.Context, start time.Time) (takeover, error) {
	killed, err := d.fleet.kill(d.leader)
	if err != nil {
		return takeover{}, err
	}
	d.printf("  %5.1f s   kill -9 %d, the leader\n", killed.at.Sub(start).Seconds(), killed.pid)
	elected, err := d.awaitLeader(ctx)
	if err != nil {
		return takeover{}, err
	}
	d.printf("  %5.1f s   %d leads, %d ms later\n", elected.at.Sub(start).Seconds(), elected.pid, elected.at.Sub(killed.at).Milliseconds())
	_, err = d.fleet.start(ctx)
	return takeover{killed.at, elected.at}, err
}

// line prints where things stand, with the arrivals after those already shown, and returns how many are shown now.
func (d *demo) line(since time.Duration, shown int) int {
	committed, rolledBack, _ := d.journal.counts()
	fresh := d.journal.arrivedSince(shown)
	var versions strings.Builder
	for _, a := range fresh {
		var change struct{ Account, Version int }
		if err := json.Unmarshal(a.Data, &change); err == nil && change.Account == 1 {
			fmt.Fprintf(&versions, "%d ", change.Version)
		}
	}
	shown += len(fresh)
	d.printf("  %5.1f s   %9d   %11d   %7d   %s\n", since.Seconds(), committed, rolledBack, shown, versions.String())
	return shown
}

// errVerdict says that what the stream holds is not what was committed.
var errVerdict = errors.New("the stream does not hold exactly what was committed, in order")

// judge waits for what is still on its way, and compares the stream with the producers' notes.
func (d *demo) judge(ctx context.Context, takeovers []takeover) error {
	committed, _, _ := d.journal.counts()
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := d.journal.await(patient, committed); err != nil && ctx.Err() != nil {
		return err
	}
	// If patience has run out, the verdict tells what is missing.
	stored, err := readStream(ctx, d.js)
	if err != nil {
		return err
	}
	v := d.journal.judge(stored)
	d.printf("\nThe verdict, by the producers' notes and a reading of the whole stream\n\n")
	for _, count := range []struct {
		name string
		n    int
	}{
		{"committed", v.committed},
		{"stored", v.stored},
		{"duplicates", v.duplicates},
		{"missing", v.missing},
		{"out of order", v.outOfOrder},
		{"never committed", v.uncommitted},
	} {
		d.printf("  %-18s %6d\n", count.name, count.n)
	}
	led, leaderless := d.journal.latencies(takeovers)
	d.printf("\n  COMMIT sent → consumer: p50 %s, p99 %s\n", milliseconds(led.quantile(.5)), milliseconds(led.quantile(.99)))
	if len(leaderless) > 0 {
		d.printf("  and %d that were committed while no relay led waited %s at most\n", len(leaderless), milliseconds(leaderless.quantile(1)))
	}
	if !v.good() {
		d.printf("\n  FAILED: %v.\n\n", errVerdict)
		return errVerdict
	}
	d.printf("\n  Every committed event is in the stream, once and in order; nothing else is.\n\n")
	return nil
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }

// readStream returns all events of the stream, in its order.
func readStream(ctx context.Context, js jetstream.JetStream) ([]message, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	consumer, err := js.OrderedConsumer(ctx, stream.DefaultStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{"outbox.>"}})
	if err != nil {
		return nil, fmt.Errorf("read the stream: %w", err)
	}
	iterator, err := consumer.Messages()
	if err != nil {
		return nil, fmt.Errorf("read the stream: %w", err)
	}
	defer iterator.Stop()
	var messages []message
	for {
		msg, err := iterator.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("read the stream: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return nil, fmt.Errorf("read the stream: %w", err)
		}
		messages = append(messages, message{msg.Subject(), string(msg.Data())})
		if meta.NumPending == 0 {
			return messages, nil
		}
	}
}
