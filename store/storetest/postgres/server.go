package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// superuser is the role in every DSN of a launched server.
	superuser = "postgres"

	// startTimeout bounds one start, crash recovery included.
	startTimeout = time.Minute

	// stopTimeout bounds one stop. A fast stop writes a checkpoint.
	stopTimeout = time.Minute

	// Ports are taken from below the range from which the systems give ports to outgoing connections (from 32768 on
	// Linux, 49152 elsewhere). A client that keeps dialling the port of a stopped server in that range is given that very
	// port as its own sooner or later; it then talks to itself, and the server cannot start again.
	lowestPort, highestPort = 20_000, 32_000

	// portAttempts is how many ports are tried before the machine is declared full.
	portAttempts = 100
)

// Mode is a way to stop a server. The names are PostgreSQL's.
type Mode string

const (
	// Fast ends all sessions, writes a checkpoint and exits.
	Fast Mode = "fast"

	// Immediate exits without a checkpoint, which is a crash as far as the data are concerned: the next start recovers
	// from the write-ahead log.
	Immediate Mode = "immediate"
)

// Options of a server. The zero value is a server with PostgreSQL's own defaults and 200 connections.
type Options struct {
	// Binaries is the directory of initdb and postgres. Default: the directory of the initdb in PATH, else what
	// pg_config names, else the newest version in the places where distributions install it.
	Binaries string

	// Parent is the directory in which the server's own directory is made. When the program runs as root, user postgres
	// must be able to traverse it. Default: [os.TempDir].
	Parent string

	// Settings are configuration parameters, each as "name=value": "fsync=off", "max_connections=20". They win over
	// those of this package.
	Settings []string
}

// Server is a PostgreSQL server that belongs to this program. Its methods may be called concurrently.
type Server struct {
	binaries string
	dir      string
	settings []string
	port     int
	account  *account
	guard    *guard

	mu      sync.Mutex // held for the whole of a start or stop; protects running
	running *process   // the last postmaster that was started, nil before the first
}

// process is a postmaster. A goroutine waits for its end.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed once it has exited and was waited for
}

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Launch makes a fresh cluster and starts a server on it. ctx bounds the launch, not the life of the server: that ends
// with [Server.Close], or with this program.
func Launch(ctx context.Context, options Options) (*Server, error) {
	binaries := options.Binaries
	if binaries == "" {
		found, err := findBinaries(ctx)
		if err != nil {
			return nil, err
		}
		binaries = found
	}
	if !complete(binaries) {
		return nil, fmt.Errorf("launch postgres: %s does not hold initdb and postgres", binaries)
	}
	account, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(options.Parent, "outbox-postgres-")
	if err != nil {
		return nil, fmt.Errorf("launch postgres: %w", err)
	}
	guard, err := watch(ctx, dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := &Server{binaries: binaries, dir: dir, settings: options.Settings, account: account, guard: guard}
	if err := s.create(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// create runs initdb, then starts the server on a port that nobody else has taken.
func (s *Server) create(ctx context.Context) error {
	if err := s.account.own(s.dir); err != nil {
		return fmt.Errorf("launch postgres: %w", err)
	}
	initdb := s.command(ctx, "initdb", "--pgdata", s.data(), "--username", superuser, "--auth", "trust",
		"--encoding", "UTF8", "--no-locale", "--no-sync")
	out, err := initdb.CombinedOutput()
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("launch postgres: is %s reachable for all users? %w", s.dir, err)
	}
	if err != nil {
		return fmt.Errorf("initdb: %w%s", err, lastLines(out))
	}
	for range portAttempts {
		s.port = lowestPort + rand.IntN(highestPort-lowestPort)
		if !free(ctx, s.port) {
			continue
		}
		// Another program may bind the port between the look and the start.
		if err = s.Start(ctx); err == nil || free(ctx, s.port) {
			return err
		}
	}
	return errors.Join(fmt.Errorf("launch postgres: no free port from %d to %d", lowestPort, highestPort), err)
}

// free tells whether a server could listen on port now.
func free(ctx context.Context, port int) bool {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// command is one of PostgreSQL's programs, to be run in the server's directory, by the server's account, under the eyes
// of the guard, with messages in English.
func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.binaries, name), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = attributes(s.guard.pid(), s.account)
	return cmd
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// LogFile is the path of the server's log.
func (s *Server) LogFile() string { return filepath.Join(s.dir, "server.log") }

// DSN is the connection string of the superuser to database "postgres". It stays the same over stops and starts.
func (s *Server) DSN() string { return s.DSNFor("postgres") }

// DSNFor is [Server.DSN] with another database.
func (s *Server) DSNFor(database string) string {
	dsn := url.URL{
		Scheme:   "postgres",
		User:     url.User(superuser),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return dsn.String()
}

// Port is the TCP port on 127.0.0.1. It stays the same over stops and starts.
func (s *Server) Port() int { return s.port }

// Pid is the process id of the postmaster, 0 while the server is not running.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil || !s.running.alive() {
		return 0
	}
	return s.running.cmd.Process.Pid
}

// Start starts a stopped or crashed server on its old port and data, and returns once it accepts connections. The error
// of a failed start ends with the last lines of the server's log. ctx bounds the start, not the life of the server.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil && s.running.alive() {
		return errors.New("start postgres: it is running")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready after %v", startTimeout))
	defer cancel()

	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	defer log.Close() // the server has its own descriptor by then
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}

	settings := []string{
		"listen_addresses=127.0.0.1",
		"port=" + strconv.Itoa(s.port),
		"unix_socket_directories=" + s.dir,
		"max_connections=200",
		// In files of the data directory, which no crash leaves behind, and which no container keeps small.
		"dynamic_shared_memory_type=mmap",
	}
	args := []string{"-D", s.data()}
	for _, setting := range append(settings, s.settings...) {
		args = append(args, "-c", setting)
	}
	cmd := s.command(context.WithoutCancel(ctx), "postgres", args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(p.ended)
	}()
	s.running = p

	if err := s.awaitReady(ctx, p); err != nil {
		return errors.Join(fmt.Errorf("start postgres: %w%s", err, s.logSince(before)), p.stop(Immediate))
	}
	return nil
}

// awaitReady returns nil once the postmaster accepts connections. It looks where pg_ctl looks: on the eighth line of the
// pid file. A connection could be answered by another server.
func (s *Server) awaitReady(ctx context.Context, p *process) error {
	const pidLine, statusLine = 0, 7
	pid := strconv.Itoa(p.cmd.Process.Pid)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			file, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			lines := strings.Split(string(file), "\n")
			if len(lines) > statusLine && lines[pidLine] == pid {
				if status := strings.TrimSpace(lines[statusLine]); status == "ready" || status == "standby" {
					return nil
				}
			}
		case <-p.ended:
			return errors.New(p.cmd.ProcessState.String())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Stop stops the server and returns once its postmaster has exited. Stopping a stopped server does nothing. [Server.Start]
// starts it again.
func (s *Server) Stop(mode Mode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return nil
	}
	return s.running.stop(mode)
}

func (p *process) stop(mode Mode) error {
	signal := interrupt
	switch mode {
	case Fast:
	case Immediate:
		signal = quit
	default:
		return fmt.Errorf("stop postgres: mode %q is neither %q nor %q", mode, Fast, Immediate)
	}
	if !p.alive() {
		return nil
	}
	for _, sig := range []os.Signal{signal, resume} { // resume: a test may have left it frozen
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop postgres: %w", err)
		}
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTimeout):
		err := fmt.Errorf("stop postgres: still there %v after a %s stop, killed", stopTimeout, mode)
		return errors.Join(err, p.cmd.Process.Kill())
	}
}

// TerminateBackends ends every session of a client, except the one that it opens itself, and returns how many there were.
func (s *Server) TerminateBackends(ctx context.Context) (int, error) {
	conn, err := pgx.Connect(ctx, s.DSN())
	if err != nil {
		return 0, fmt.Errorf("terminate backends: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var n int
	err = conn.QueryRow(ctx, `
		select count(*) filter (where pg_terminate_backend(pid))
		from pg_stat_activity
		where backend_type = 'client backend' and pid <> pg_backend_pid()`).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("terminate backends: %w", err)
	}
	return n, nil
}

// Close stops the server for good and removes all of it. Closing it again does nothing.
func (s *Server) Close() error {
	return errors.Join(s.Stop(Fast), s.guard.dismiss())
}

// logSince returns the last lines that the server logged after an offset of its log.
func (s *Server) logSince(offset int64) string {
	log, err := os.ReadFile(s.LogFile())
	if err != nil {
		return ": " + err.Error()
	}
	return lastLines(log[min(offset, int64(len(log))):])
}

// lastLines returns the end of a program's output in a form to be appended to the error that it explains.
func lastLines(out []byte) string {
	const most = 10
	text := strings.TrimSpace(string(out))
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	if len(lines) > most {
		lines = lines[len(lines)-most:]
	}
	return ":\n\t" + strings.Join(lines, "\n\t")
}
