package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/admin"
	"github.com/go-outbox/go-outbox/relay/audit"
	"github.com/go-outbox/go-outbox/relay/metrics"
	"github.com/go-outbox/go-outbox/stream/embedded"
)

func newRunCommand(p *process) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Relay events until SIGTERM or SIGINT; the default",
		Long: `Relay events until SIGTERM or SIGINT, then finish what is in flight and exit. The relay starts whether
or not Postgres and NATS are there, and says what it waits for.

Settings come from a file and the environment; outbox-relay help config lists them.`,
		Args: usage(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), p) },
	}
}

// serve runs a service until ctx ends.
func serve(ctx context.Context, p *process) error {
	c, err := p.config(config.NeedRelay)
	if err != nil {
		return err
	}
	s, err := newService(c, p)
	if err != nil {
		return err
	}
	relaxCollector(c, p)
	s.log.InfoContext(ctx, "starting", slog.String("version", currentVersion()), slog.Any("config", differences(c)))

	var announcing sync.WaitGroup
	done := make(chan struct{})
	announcing.Go(func() {
		select {
		case <-ctx.Done():
			s.log.InfoContext(ctx, "stopping", slog.Any("cause", context.Cause(ctx)))
		case <-done:
		}
	})
	err = s.run(ctx)
	close(done)
	announcing.Wait()
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "stopped")
	return nil
}

// differences are the settings that do not have their default, by their file keys and without passwords.
func differences(c config.Config) slog.Value {
	var attrs []slog.Attr
	for _, f := range config.Fields() {
		if value := f.Value(c); value != f.Default {
			attrs = append(attrs, slog.String(f.Key, value))
		}
	}
	return slog.GroupValue(attrs...)
}

// service is a relay with all that belongs to it.
type service struct {
	config     config.Config
	hooks      relay.Hooks
	log        *slog.Logger
	natsLog    *slog.Logger
	registerer prometheus.Registerer // Of metrics with this outbox's labels.
	audits     audit.Hooks
	metrics    http.Handler
	started    time.Time
	lookupEnv  func(name string) (value string, ok bool)

	relay atomic.Pointer[relay.Relay] // Nil until the embedded server runs.
}

// newService connects to nothing: it fails for faults of the configuration only.
func newService(c config.Config, p *process) (*service, error) {
	if _, err := relay.New(relayConfig(c, unstarted)); err != nil {
		return nil, wrongConfig(err)
	}
	registry := prometheus.NewRegistry()
	// Several outboxes may be scraped by one Prometheus.
	labelled := prometheus.WrapRegistererWith(prometheus.Labels{"stream": c.Stream.Name, "table": c.Table.String()}, registry)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	hooks, err := metrics.New(labelled)
	if err != nil {
		return nil, err
	}
	log := p.logger(c.Logging.Format, c.Logging.Level)
	s := &service{
		config:     c,
		hooks:      hooks,
		log:        log,
		natsLog:    p.logger(c.Logging.Format, natsLevel(c.Logging.Level)),
		registerer: labelled,
		metrics:    promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
		started:    time.Now(),
		lookupEnv:  p.lookupEnv,
	}
	if c.Relay.AuditInterval > 0 {
		if s.audits, err = metrics.Audit(labelled); err != nil {
			return nil, err
		}
	}
	if err := metrics.State(labelled, s.status); err != nil {
		return nil, err
	}
	if err := metrics.Build(labelled, currentVersion()); err != nil {
		return nil, err
	}
	return s, nil
}

// natsLevel leaves out the embedded server's banner unless everything is logged.
func natsLevel(level slog.Level) slog.Level {
	if level <= slog.LevelDebug {
		return level
	}
	return max(level, slog.LevelWarn)
}

// run serves until ctx ends, and then nil, or until something fails for good. What it started has ended when it
// returns.
func (s *service) run(ctx context.Context) (err error) {
	ctx, abort := context.WithCancel(ctx)
	defer abort()
	closeHTTP, err := s.listen(ctx, abort)
	if err != nil {
		return err
	}
	defer func() {
		if failure := closeHTTP(); err == nil {
			err = failure
		}
	}()

	var embeddedURL string
	if s.config.NATS.Embedded() {
		broker, err := s.startBroker(ctx)
		if err != nil {
			return err
		}
		defer broker.Close()
		embeddedURL = broker.ClientURL()
	}
	stopTracing, err := s.startTracing(ctx)
	if err != nil {
		return err
	}
	defer stopTracing()
	c := relayConfig(s.config, embeddedURL)
	c.Logger, c.Hooks = s.log, s.hooks
	r, err := relay.New(c)
	if err != nil {
		return wrongConfig(err)
	}
	gauge := r.Outbox().Gauge()
	defer gauge.Close(ctx)
	if err := metrics.Tables(s.registerer, gauge); err != nil {
		return err
	}
	s.relay.Store(r)
	if interval := s.config.Relay.AuditInterval; interval > 0 {
		var auditing sync.WaitGroup
		auditing.Go(func() { s.audit(ctx, r.Outbox(), c) })
		defer auditing.Wait()
		defer abort()
	}
	return r.Run(ctx)
}

func (s *service) startBroker(ctx context.Context) (*embedded.Server, error) {
	broker, err := embedded.Start(embedded.Options{ //nolint:contextcheck // It takes none: it has a deadline of its own.
		Addr:     s.config.NATS.Listen,
		StoreDir: s.config.NATS.StoreDir,
		Logger:   s.natsLog,
	})
	if err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "embedded NATS server is ready", slog.String("url", broker.ClientURL()), slog.String("store_dir", s.config.NATS.StoreDir))
	s.warnOfBroker(ctx)
	return broker, nil
}

// warnOfBroker says what the embedded server is not meant for.
func (s *service) warnOfBroker(ctx context.Context) {
	if addr := s.config.NATS.Listen; !isLoopback(addr) {
		s.log.WarnContext(ctx, "the embedded NATS server asks for no credentials: every client that reaches it may read, publish and delete; keep its port from others, or run a NATS server with users", slog.String("listen", addr))
	}
	if s.config.Election.Kind != relay.ElectionNone {
		s.log.WarnContext(ctx, "the embedded NATS server is for one relay: a second relay with an embedded server publishes to a stream of its own, and its consumers get other events; run one relay, or a NATS server for all of them")
	}
}

// isLoopback reports whether only this host reaches addr, host:port.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// listen serves health and metrics until stop is called, which returns what went wrong meanwhile. A server that
// breaks calls abort.
func (s *service) listen(ctx context.Context, abort func()) (stop func() error, err error) {
	nothing := func() error { return nil }
	if s.config.HTTPAddr == config.HTTPOff {
		return nothing, nil
	}
	server, err := admin.Listen(ctx, s.config.HTTPAddr, admin.NewHandler(admin.Self(s.config.Table.String()), s.status, s.metrics), s.log)
	switch {
	case err != nil && s.config.HTTPAddrSet:
		return nil, fmt.Errorf("%w; set OUTBOX_HTTP_ADDR to another address, or to off", err)
	case err != nil:
		s.log.WarnContext(ctx, "going on without health and metrics: the default address is taken; set OUTBOX_HTTP_ADDR to another, or to off", slog.Any("error", err))
		return nothing, nil
	}
	s.log.InfoContext(ctx, "serving health and metrics", slog.String("addr", server.Addr()))

	// The server goes on while the relay stops, so that this can be watched.
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var failure error
	var running sync.WaitGroup
	running.Go(func() {
		if failure = server.Run(serving); failure != nil {
			abort()
		}
	})
	return func() error {
		cancel()
		running.Wait()
		return failure
	}, nil
}

// status is the relay's. While the embedded server starts there is no relay yet: then it says that.
func (s *service) status() relay.Status {
	if r := s.relay.Load(); r != nil {
		return r.Status()
	}
	return relay.Status{State: relay.Campaigning, Since: s.started, Trouble: "starting"}
}
