// Producer is an HTTP service that writes users and their events to Postgres, and has the relay built in. Start several:
// each serves requests, and one of them, the leader, publishes the events of all.
//
//	curl --location '127.0.0.1:8080/users' --header 'Content-Type: application/json' --data-raw '{ "name":"john.doe", "email": "sample-user@gmail.de" }'
//	curl --location --request PATCH '127.0.0.1:8080/users/1/verify'
//
// It listens on HTTP_ADDR (:8080). The relay takes the settings of outbox-relay, OUTBOX_DATABASE_DSN first of all, except
// for OUTBOX_HTTP_ADDR: it has no HTTP address of its own here, and its metrics are at /metrics. "producer healthcheck" asks a running producer how it is.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/examples/internal/web"
	"github.com/go-outbox/go-outbox/examples/producer/users"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/metrics"
)

const (
	addrEnv     = "HTTP_ADDR"
	defaultAddr = ":8080"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], config.Sources{LookupEnv: os.LookupEnv, Environ: os.Environ}, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "producer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, settings config.Sources, logs io.Writer) error {
	addr, _ := settings.LookupEnv(addrEnv)
	if addr == "" {
		addr = defaultAddr
	}
	switch {
	case slices.Equal(args, []string{"healthcheck"}):
		return web.CheckHealth(ctx, addr)
	case len(args) > 0:
		return fmt.Errorf("arguments %q: want none, or healthcheck", args)
	}
	c, err := config.Load(settings)
	if err != nil {
		return err
	}
	log := newLogger(logs, c.Logging)

	pool, err := pgxpool.New(ctx, string(c.DatabaseDSN))
	if err != nil {
		return err
	}
	defer pool.Close()
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	relayed := c.RelayConfig()
	relayed.Connect.Name, relayed.Logger = "producer", log
	registry := prometheus.NewRegistry()
	labelled := prometheus.WrapRegistererWith(prometheus.Labels{"stream": c.Stream.Name, "table": c.Table.String()}, registry)
	if relayed.Hooks, err = metrics.New(labelled); err != nil {
		return err
	}
	relaying, err := relay.New(relayed)
	if err != nil {
		return err
	}
	gauge := relaying.Outbox().Gauge()
	defer gauge.Close(ctx)
	if err := errors.Join(metrics.State(labelled, relaying.Status), metrics.Tables(labelled, gauge), metrics.Build(labelled, "")); err != nil {
		return err
	}

	service := users.New(pool, db, relaying.Outbox().Table(), log)
	for _, prepare := range []func(context.Context) error{relaying.Prepare, service.CreateTable} {
		if err := prepare(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "serving", slog.String("addr", listener.Addr().String()))

	mux := http.NewServeMux()
	mux.Handle("/", service.Handler())
	mux.Handle("GET "+web.HealthPath, web.Health(pool.Ping))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	// The relay stops after the server, so that it still publishes what the last requests commit.
	group, serving := errgroup.WithContext(ctx)
	relayCtx, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { return relaying.Run(relayCtx) })
	group.Go(func() error {
		defer stopRelay()
		return web.Serve(serving, listener, mux)
	})
	err = group.Wait()
	log.InfoContext(ctx, "stopped")
	return err
}

func newLogger(w io.Writer, c config.Logging) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.Level}
	if c.Format == config.FormatJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
