package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"

	"github.com/go-outbox/go-outbox/relay"
)

const (
	// The environment of a child: it makes this program a relay between the two.
	relayDSN  = "OUTBOX_DEMO_RELAY_DSN"
	relayNATS = "OUTBOX_DEMO_RELAY_NATS"

	// elected is the line that a child prints when it leads.
	elected = "elected"

	// stopTimeout is how long a relay may take to stop before it is killed.
	stopTimeout = 5 * time.Second
)

// beRelay makes this process a relay if it was started as one. It returns whether it was, after the relay has stopped.
func beRelay() bool {
	dsn, natsURL := os.Getenv(relayDSN), os.Getenv(relayNATS)
	if dsn == "" {
		return false
	}
	signal.Ignore(os.Interrupt) // A terminal's Ctrl-C goes to the children, too; the demo decides.
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		// Standard input ends when the demo closes it, and whenever the demo itself ends.
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid())
	if err := runRelay(ctx, dsn, natsURL, os.Stdout, log); err != nil {
		log.Error("relay failed", slog.Any("error", err))
		os.Exit(1)
	}
	return true
}

// runRelay relays until ctx ends, and prints a line whenever it is elected.
func runRelay(ctx context.Context, dsn, natsURL string, stdout io.Writer, log *slog.Logger) error {
	relaying, err := relay.New(relay.Config{
		Postgres: dsn,
		NATS:     natsURL,
		Logger:   log,
		Hooks:    relay.Hooks{Elected: func(int64) { fmt.Fprintln(stdout, elected) }},
	})
	if err != nil {
		return err
	}
	return relaying.Run(ctx)
}

// fleet is the relays of the demo, each in a process of its own.
type fleet struct {
	dsn, natsURL string
	stderr       io.Writer

	elections chan event // Buffered for more elections than there will be.
	lost      chan error // Holds why a relay ended that should not have.

	mu      sync.Mutex // Protects what follows.
	members map[int]*member

	watching sync.WaitGroup
}

// event is something that happened to a relay.
type event struct {
	pid int
	at  time.Time
}

type member struct {
	process *os.Process
	killed  bool
}

func newFleet(dsn, natsURL string, stderr io.Writer) *fleet {
	return &fleet{
		dsn: dsn, natsURL: natsURL, stderr: stderr,
		elections: make(chan event, 1000),
		lost:      make(chan error, 1),
		members:   make(map[int]*member),
	}
}

// start starts a relay, which stops when ctx ends, and returns its process ID.
func (f *fleet) start(ctx context.Context) (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("start a relay: %w", err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), relayDSN+"="+f.dsn, relayNATS+"="+f.natsURL)
	cmd.Stderr = f.stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, fmt.Errorf("start a relay: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, fmt.Errorf("start a relay: %w", err)
	}
	cmd.Cancel, cmd.WaitDelay = stdin.Close, stopTimeout
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start a relay: %w", err)
	}

	m := &member{process: cmd.Process}
	f.mu.Lock()
	f.members[cmd.Process.Pid] = m
	f.mu.Unlock()
	f.watching.Go(func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if lines.Text() == elected {
				f.elections <- event{cmd.Process.Pid, time.Now()}
			}
		}
		_ = cmd.Wait() // How it ended is in cmd.ProcessState.
		f.mu.Lock()
		expected := m.killed || ctx.Err() != nil
		delete(f.members, cmd.Process.Pid)
		f.mu.Unlock()
		if !expected {
			select {
			case f.lost <- fmt.Errorf("relay %d ended by itself, %v; -v shows its log", cmd.Process.Pid, cmd.ProcessState):
			default: // One is enough.
			}
		}
	})
	return cmd.Process.Pid, nil
}

// leader waits for the next election.
func (f *fleet) leader(ctx context.Context) (event, error) {
	select {
	case e := <-f.elections:
		return e, nil
	case err := <-f.lost:
		return event{}, err
	case <-ctx.Done():
		return event{}, fmt.Errorf("wait for a relay to lead: %w", context.Cause(ctx))
	}
}

// kill ends a relay as a crash would, without a chance to finish or record anything.
func (f *fleet) kill(pid int) (event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[pid]
	if m == nil {
		return event{}, fmt.Errorf("kill relay %d: it is not running", pid)
	}
	m.killed = true
	e := event{pid, time.Now()}
	if err := m.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return event{}, fmt.Errorf("kill relay %d: %w", pid, err)
	}
	return e, nil
}

// wait returns when all relays have ended.
func (f *fleet) wait() { f.watching.Wait() }
