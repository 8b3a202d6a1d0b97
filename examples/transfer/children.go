package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/consumer"
	"github.com/go-outbox/go-outbox/stream/embedded"
)

// role is what a child process is.
type role string

const (
	natsServer role = "nats-server"
	relays     role = "relay"
	consumers  role = "consumer"
)

const (
	// The environment of a child.
	childRole   = "OUTBOX_TRANSFER_ROLE"
	childConfig = "OUTBOX_TRANSFER_SETTINGS"

	// ackWait is after how long a durable consumer is sent again what it has not acknowledged.
	ackWait = 3 * time.Second
	// stopTimeout is how long a child may take to stop before it is killed.
	stopTimeout = 5 * time.Second
)

// childSettings are what the children need to know.
type childSettings struct {
	NATS, Addr, Dir  string // Where NATS is to be found, where it listens, and where it stores.
	Orders, Payments string // The databases.
	Inbox            bool
}

// beChild makes this process what it was started as. It returns whether it was started as something.
func beChild() bool {
	what := role(os.Getenv(childRole))
	if what == "" {
		return false
	}
	signal.Ignore(os.Interrupt) // A terminal's Ctrl-C goes to the children, too; the parent decides.
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		// Standard input ends when the parent closes it, and whenever the parent itself ends.
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("role", string(what), "pid", os.Getpid())
	var s childSettings
	err := json.Unmarshal([]byte(os.Getenv(childConfig)), &s)
	if err == nil {
		switch what {
		case natsServer:
			err = runNATS(ctx, s)
		case relays:
			err = runRelay(ctx, s, log)
		case consumers:
			err = runConsumer(ctx, s, log)
		}
	}
	if err != nil {
		log.Error("failed", slog.Any("error", err))
		os.Exit(1)
	}
	return true
}

func runNATS(ctx context.Context, s childSettings) error {
	server, err := embedded.Start(embedded.Options{Addr: s.Addr, StoreDir: s.Dir}) //nolint:contextcheck // The start of a server takes none.
	if err != nil {
		return err
	}
	<-ctx.Done()
	server.Close()
	return nil
}

func runRelay(ctx context.Context, s childSettings, log *slog.Logger) error {
	r, err := relay.New(relay.Config{Postgres: s.Orders, NATS: s.NATS, Logger: log})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

func runConsumer(ctx context.Context, s childSettings, log *slog.Logger) error {
	conn, err := nats.Connect(s.NATS, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, s.Payments)
	if err != nil {
		return err
	}
	defer pool.Close()
	if !s.Inbox {
		return consumeWithoutInbox(ctx, js, pool)
	}
	c, err := consumer.New(consumer.Config{
		Name: "payments", Pool: pool, JetStream: js, Subjects: []string{"outbox.payments.>"}, Logger: log,
		Handle: func(ctx context.Context, tx pgx.Tx, event consumer.Event) error { return receive(ctx, tx, event.Event) },
	})
	if err != nil {
		return err
	}
	return c.Run(ctx)
}

// receive adds the amount to the account.
func receive(ctx context.Context, tx pgx.Tx, event stream.Event) error {
	var p payment
	if err := json.Unmarshal(event.Data, &p); err != nil {
		return consumer.Permanent(err)
	}
	if _, err := tx.Exec(ctx, `insert into transfer default values`); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `update account set balance = balance + $1 where id = $2`, p.Amount, p.Account)
	return err
}

// consumeWithoutInbox is what one writes in an afternoon: commit, then acknowledge.
func consumeWithoutInbox(ctx context.Context, js jetstream.JetStream, pool *pgxpool.Pool) error {
	for ; ctx.Err() == nil; pause(ctx, retry) {
		durable, err := js.CreateOrUpdateConsumer(ctx, stream.DefaultStream, jetstream.ConsumerConfig{
			Durable: "payments", FilterSubject: "outbox.payments.>", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait,
		})
		if err != nil {
			continue
		}
		messages, err := durable.Messages(jetstream.PullHeartbeat(time.Second))
		if err != nil {
			continue
		}
		for {
			msg, err := messages.Next(jetstream.NextContext(ctx))
			if err != nil {
				break
			}
			event, err := stream.Decode(msg.Headers(), msg.Data())
			if err != nil {
				continue
			}
			for ctx.Err() == nil {
				if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return receive(ctx, tx, event) }); err == nil {
					break
				}
				pause(ctx, retry)
			}
			_ = msg.Ack()
		}
		messages.Stop()
	}
	return nil
}

// children are the processes, each of which may be killed.
type children struct {
	stderr io.Writer

	running []child
	ending  sync.WaitGroup
}

type child struct {
	role     role
	settings childSettings
	process  *os.Process
	ended    chan struct{}
}

// start starts a child, which stops when ctx ends.
func (c *children) start(ctx context.Context, what role, settings childSettings) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	doc, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childRole+"="+string(what), childConfig+"="+string(doc))
	cmd.Stderr = c.stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Cancel, cmd.WaitDelay = stdin.Close, stopTimeout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a %s: %w", what, err)
	}
	ended := make(chan struct{})
	c.ending.Go(func() {
		_ = cmd.Wait() // It was killed, or told to stop.
		close(ended)
	})
	c.running = append(c.running, child{what, settings, cmd.Process, ended})
	return nil
}

// replace kills one of the children of a role, as a crash would, and starts another.
func (c *children) replace(ctx context.Context, what role) error {
	var candidates []int
	for i := range c.running {
		if c.running[i].role == what {
			candidates = append(candidates, i)
		}
	}
	i := candidates[rand.IntN(len(candidates))]
	victim := c.running[i]
	c.running = append(c.running[:i], c.running[i+1:]...)
	if err := victim.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-victim.ended // Whoever comes next needs its port or its files.
	return c.start(ctx, what, victim.settings)
}

// wait returns when all have ended.
func (c *children) wait() { c.ending.Wait() }
