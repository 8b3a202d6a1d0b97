// Consumer prints the events of one topic as they arrive in JetStream.
//
// It takes NATS_URL (nats://localhost:4222), NATS_STREAM (OUTBOX), NATS_TOPIC (users), and HEALTH_ADDR (127.0.0.1:8080),
// where it serves its health; "consumer healthcheck" asks there how a running consumer is.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/go-outbox/go-outbox/examples/consumer/inbox"
	"github.com/go-outbox/go-outbox/examples/internal/web"
	"github.com/go-outbox/go-outbox/stream"
)

// durable is the name under which the stream remembers what this consumer has acknowledged.
const durable = "sample-consumer"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "consumer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, logs io.Writer) error {
	var (
		natsURL    = cmp.Or(getenv("NATS_URL"), nats.DefaultURL)
		streamName = cmp.Or(getenv("NATS_STREAM"), stream.DefaultStream)
		topic      = cmp.Or(getenv("NATS_TOPIC"), "users")
		healthAddr = cmp.Or(getenv("HEALTH_ADDR"), "127.0.0.1:8080")
	)
	switch {
	case slices.Equal(args, []string{"healthcheck"}):
		return web.CheckHealth(ctx, healthAddr)
	case len(args) > 0:
		return fmt.Errorf("arguments %q: want none, or healthcheck", args)
	}
	log := slog.New(slog.NewTextHandler(logs, nil))

	conn, err := connect(ctx, natsURL, log)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	events := inbox.New(js, inbox.Options{
		Stream:  streamName,
		Filter:  "outbox." + stream.EncodeToken(topic) + ".>",
		Durable: durable,
		Handle: func(ctx context.Context, event stream.Event) error {
			log.InfoContext(ctx, "event",
				slog.String("type", event.EventType),
				slog.String("aggregate", event.AggregateType+"/"+event.AggregateID),
				slog.Int64("seq", event.Seq),
				slog.String("payload", string(event.Data)))
			return nil
		},
		Logger: log,
	})
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", healthAddr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+web.HealthPath, web.Health(events.Check))
	log.InfoContext(ctx, "serving health", slog.String("addr", listener.Addr().String()))

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return web.Serve(ctx, listener, mux) })
	group.Go(func() error { events.Run(ctx); return nil })
	err = group.Wait()
	log.InfoContext(ctx, "stopped")
	return err
}

// connect returns a connection that is made as soon as there is a server, and again whenever it was lost.
func connect(ctx context.Context, url string, log *slog.Logger) (*nats.Conn, error) {
	conn, err := nats.Connect(url,
		nats.Name(durable),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(500*time.Millisecond),
		nats.ConnectHandler(func(*nats.Conn) { log.InfoContext(ctx, "connected to NATS") }),
		nats.ReconnectHandler(func(*nats.Conn) { log.InfoContext(ctx, "connected to NATS again") }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // Not the one that was asked for.
				log.WarnContext(ctx, "connection to NATS lost", slog.Any("error", err))
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.WarnContext(ctx, "NATS", slog.Any("error", err))
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", stream.RedactURL(url), err)
	}
	return conn, nil
}
