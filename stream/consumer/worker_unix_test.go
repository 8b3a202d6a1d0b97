//go:build unix

package consumer_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/consumer"
)

// Processes that are killed, frozen and started again leave each effect once and in order.
func TestKilledAndFrozen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const (
		events, aggregates = 6000, 40
		processes          = 3
	)
	workers := make([]*exec.Cmd, processes)
	launch := func(i int) {
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
		cmd.Env = append(os.Environ(), workerDSN+"="+w.dsn, workerNATS+"="+w.nats.URL())
		cmd.Stdout, cmd.Stderr = w.Output(), w.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		workers[i] = cmd
	}
	kill := func(i int) {
		_ = workers[i].Process.Kill()
		_ = workers[i].Wait()
	}
	for i := range workers {
		launch(i)
	}
	t.Cleanup(func() {
		for i := range workers {
			kill(i)
		}
	})

	var publishing sync.WaitGroup
	publishing.Go(func() {
		for from := int64(1); from <= events; from += 100 {
			w.publish(from, from+99, aggregates)
			time.Sleep(200 * time.Millisecond) // Not a wait: the rate.
		}
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	done := make(chan struct{})
	go func() { publishing.Wait(); close(done) }()
	for kills := 0; ; kills++ {
		select {
		case <-done:
		case <-time.After(time.Duration(500+random.IntN(1500)) * time.Millisecond):
			i := random.IntN(processes)
			if kills%2 == 0 {
				kill(i)
				launch(i)
			} else if err := workers[i].Process.Signal(syscall.SIGSTOP); err == nil {
				process := workers[i].Process
				time.AfterFunc(time.Duration(random.IntN(8000))*time.Millisecond, func() { _ = process.Signal(syscall.SIGCONT) })
			}
			continue
		}
		break
	}
	w.await(events)
	w.audit(events)
}

// work is a process that consumes until it is killed.
func work(dsn, url string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	pool, err := pgxpool.New(context.Background(), dsn)
	fail(err)
	conn, err := nats.Connect(url, nats.MaxReconnects(-1))
	fail(err)
	js, err := jetstream.New(conn)
	fail(err)
	c, err := consumer.New(consumer.Config{
		Name: "test", Pool: pool, JetStream: js, Handle: journal, Lanes: 8, HandlerTimeout: time.Second,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	fail(err)
	fail(c.Run(context.Background()))
}
