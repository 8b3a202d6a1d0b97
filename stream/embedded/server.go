package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
)

// Defaults of Options.
const (
	DefaultAddr         = "127.0.0.1:4222"
	DefaultReadyTimeout = 30 * time.Second
)

// Options of a server. Only StoreDir is needed.
type Options struct {
	// Addr is where to listen, host:port. Port 0 takes any free port. Default
	// DefaultAddr. The server knows no passwords: an address other than
	// loopback's is open to all who can reach it.
	Addr string

	// StoreDir is the directory of the streams, made if it is absent. Two
	// servers must not share one.
	StoreDir string

	// MaxPayload is the size of the largest message, in bytes with its
	// headers. Default: the server's, 1 MiB.
	MaxPayload int32

	// ReadyTimeout is how long the server may take to start, the recovery of
	// its streams included. Default DefaultReadyTimeout.
	ReadyTimeout time.Duration

	// Logger gets what the server has to say. Default: nobody does.
	Logger *slog.Logger
}

// closeTimeout bounds the wait for a start that failed.
const closeTimeout = 5 * time.Second

// A Server is a running nats-server.
type Server struct {
	log     *slog.Logger
	options server.Options // As of the first start: with the port that it got.
	timeout time.Duration
	lock    *flock.Flock
	url     string
	broken  chan breakage // Holds one token when the server does not write any more.
	stop    context.CancelFunc
	watched chan struct{} // Closed once nobody restarts the server any more.

	mu     sync.Mutex // Protects server.
	server *server.Server
}

// Start starts a server and waits until it is ready.
func Start(opts Options) (*Server, error) {
	natsOpts, err := opts.natsOptions()
	if err != nil {
		return nil, fmt.Errorf("embedded NATS server: %w", err)
	}
	lock, err := lockStore(opts.StoreDir)
	if err != nil {
		return nil, fmt.Errorf("embedded NATS server, store %s: %w", opts.StoreDir, err)
	}
	s := &Server{log: opts.Logger, options: *natsOpts, timeout: opts.ReadyTimeout, lock: lock, broken: make(chan breakage, 1), watched: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.timeout == 0 {
		s.timeout = DefaultReadyTimeout
	}
	if err := s.boot(); err != nil {
		_ = lock.Unlock()
		return nil, err
	}
	running := s.running()
	s.url = running.ClientURL()
	if addr, ok := running.Addr().(*net.TCPAddr); ok {
		s.options.Port = addr.Port
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.watch(ctx)
	return s, nil
}

func (s *Server) running() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server
}

// boot makes a server and starts it.
func (s *Server) boot() error {
	options := s.options // The server changes it.
	ns, err := server.NewServer(&options)
	if err != nil {
		return fmt.Errorf("embedded NATS server: %w", err)
	}
	log := &logger{fatal: make(chan struct{}), to: s.log, broken: s.broken}
	ns.SetLoggerV2(log, log.to.Enabled(context.Background(), slog.LevelDebug), false, false)
	started := make(chan struct{})
	if err := start(ns, log, s.timeout, started); err != nil {
		// It may be busy starting all the same: shut down meanwhile, it would start more behind the shutdown's back.
		select {
		case <-started:
		case <-time.After(closeTimeout):
		}
		shutDown(ns)
		return fmt.Errorf("embedded NATS server on %s, store %s: %w", net.JoinHostPort(s.options.Host, strconv.Itoa(s.options.Port)), s.options.StoreDir, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = ns
	return nil
}

// start runs a server until it is ready, out of time or broken. The
// server reports a failed start to its logger only. Started is closed when it
// does nothing more.
func start(ns *server.Server, log *logger, timeout time.Duration, started chan<- struct{}) error {
	ready := make(chan bool, 1)
	go func() {
		ns.Start()
		close(started)
		ready <- ns.ReadyForConnections(timeout)
	}()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()

	late := fmt.Errorf("not ready after %v", timeout)
	select {
	case <-log.fatal:
		return log.reason
	case <-deadline.C:
		return late
	case ok := <-ready:
		select {
		case <-log.fatal:
			return log.reason
		default:
		}
		if !ok {
			return late
		}
		return nil
	}
}

func shutDown(ns *server.Server) {
	ns.Shutdown()
	ns.WaitForShutdown()
}

func (o Options) natsOptions() (*server.Options, error) {
	addr := o.Addr
	if addr == "" {
		addr = DefaultAddr
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: want host:port", addr)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address %q: the port must be a number from 0 to 65535", addr)
	}
	if o.StoreDir == "" {
		return nil, errors.New("StoreDir: is empty")
	}
	if o.MaxPayload < 0 {
		return nil, fmt.Errorf("MaxPayload: %d is negative", o.MaxPayload)
	}
	if o.ReadyTimeout < 0 {
		return nil, fmt.Errorf("ReadyTimeout: %v is negative", o.ReadyTimeout)
	}
	natsPort := int(port)
	if natsPort == 0 {
		natsPort = server.RANDOM_PORT
	}
	return &server.Options{
		ServerName: "outbox-embedded",
		Host:       host,
		Port:       natsPort,
		JetStream:  true,
		StoreDir:   o.StoreDir,
		MaxPayload: o.MaxPayload,
		NoSigs:     true,
	}, nil
}

// ClientURL is where clients connect, such as "nats://127.0.0.1:4222".
func (s *Server) ClientURL() string { return s.url }

// Close stops the server and waits until it has stopped. A second call only
// waits.
func (s *Server) Close() {
	s.stop()
	<-s.watched
	shutDown(s.running())
	_ = s.lock.Unlock() // It ends with the process at the latest.
}

// lockFile is in the store directory. Two servers on one store would each write
// over what the other has acknowledged, and nats-server does not look.
const lockFile = "outbox-relay.lock"

func lockStore(dir string) (*flock.Flock, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("store directory: %w", err)
	}
	lock := flock.New(filepath.Join(dir, lockFile))
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("lock the store: %w", err)
	case !locked:
		return nil, errors.New("another process runs a server on this store: stop it, or choose another directory")
	}
	return lock, nil
}

// logger passes the server's log on. Its Fatalf does not end the process,
// unlike that of the server's own logger.
type logger struct {
	to     *slog.Logger
	broken chan<- breakage

	once   sync.Once
	fatal  chan struct{} // closed once reason is set
	reason error
}

func (l *logger) Noticef(format string, v ...any) { l.log(slog.LevelInfo, format, v) }
func (l *logger) Warnf(format string, v ...any)   { l.log(slog.LevelWarn, format, v) }
func (l *logger) Errorf(format string, v ...any) {
	l.log(slog.LevelError, format, v)
	l.notice(format, v)
}
func (l *logger) Debugf(format string, v ...any) { l.log(slog.LevelDebug, format, v) }
func (l *logger) Tracef(format string, v ...any) { l.log(slog.LevelDebug, format, v) }

func (l *logger) log(level slog.Level, format string, v []any) {
	l.to.Log(context.Background(), level, "embedded NATS server", "says", fmt.Sprintf(format, v...))
}

// Fatalf keeps why the server does not start, or no longer works.
func (l *logger) Fatalf(format string, v ...any) {
	l.once.Do(func() {
		l.reason = fmt.Errorf(format, v...)
		close(l.fatal)
	})
	l.log(slog.LevelError, format, v)
}
