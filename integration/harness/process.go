package harness

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program under test.
type Process struct {
	testing.TB

	cmd      *exec.Cmd
	ended    chan struct{}
	httpAddr string

	mu     sync.Mutex // Protects lines.
	lines  []string
	update chan struct{} // Closed and replaced at each new line.
}

func launch(tb testing.TB, cmd *exec.Cmd) *Process {
	tb.Helper()
	p := &Process{TB: tb, cmd: cmd, ended: make(chan struct{}), update: make(chan struct{})}
	output, err := cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		for scanner := bufio.NewScanner(output); scanner.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, scanner.Text())
			close(p.update)
			p.update = make(chan struct{})
			p.mu.Unlock()
		}
		_ = cmd.Wait() // How it ended is in cmd.ProcessState.
		close(p.ended)
	}()
	tb.Cleanup(func() {
		p.Kill()
		if p.Said("WARNING: DATA RACE") || p.Said("panic:") {
			tb.Error("a data race, or a panic")
		}
		if tb.Failed() {
			tb.Logf("output of process %d:\n%s", cmd.Process.Pid, p.tail(60))
		}
	})
	return p
}

func (p *Process) tail(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines[max(0, len(p.lines)-n):], "\n")
}

// WaitFor returns the first submatch of pattern in a line that contains all of words.
func (p *Process) WaitFor(pattern *regexp.Regexp, words ...string) string {
	p.Helper()
	deadline := time.After(20 * time.Second)
	for seen := 0; ; {
		p.mu.Lock()
		lines, update := p.lines[seen:], p.update
		seen += len(lines)
		p.mu.Unlock()
		for _, line := range lines {
			all := true
			for _, word := range words {
				all = all && strings.Contains(line, word)
			}
			if match := pattern.FindStringSubmatch(line); all && match != nil {
				return match[len(match)-1]
			}
		}
		select {
		case <-update:
		case <-p.ended:
			p.Fatalf("it ended (%v) before it said %q:\n%s", p.cmd.ProcessState, words, p.tail(60))
		case <-deadline:
			p.Fatalf("it did not say %q:\n%s", words, p.tail(60))
		}
	}
}

// Leads waits until the relay says that it leads.
func (p *Process) Leads() {
	p.Helper()
	p.WaitFor(regexp.MustCompile(`leading.*term=(\d+)`))
}

// Kill ends the process without its consent.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // It may have ended.
	<-p.ended
}

// Freeze stops the process in its tracks until Thaw.
func (p *Process) Freeze() { p.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { p.signal(syscall.SIGCONT) }

func (p *Process) signal(signal syscall.Signal) {
	p.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		p.Fatal(err)
	}
}

// Said reports whether the process has said all of words in one line.
func (p *Process) Said(words ...string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, word)
		}
		if all {
			return true
		}
	}
	return false
}

// Stop asks the process to end and returns its exit code.
func (p *Process) Stop() int {
	p.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.Errorf("still there 20 s after SIGTERM")
		p.Kill()
	}
	return p.cmd.ProcessState.ExitCode()
}

// Ends waits until the process has ended by itself and returns its exit code.
func (p *Process) Ends() int {
	p.Helper()
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.Fatalf("it goes on:\n%s", p.tail(100))
	}
	return p.cmd.ProcessState.ExitCode()
}

// Get asks the relay's HTTP endpoints and returns the status code.
func (p *Process) Get(path string) int {
	p.Helper()
	request, err := http.NewRequestWithContext(p.Context(), http.MethodGet, "http://"+p.httpAddr+path, nil)
	if err != nil {
		p.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// Usage returns the processor time that a running process has used, and its resident memory in bytes, from /proc.
func (p *Process) Usage() (cpu time.Duration, resident float64) {
	p.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.Fatal(err)
	}
	// The second field, the program's name in brackets, may hold spaces: what follows it begins with the third.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const userTime, systemTime, pages, ticksPerSecond = 11, 12, 21, 100
	number := func(field int) float64 {
		n, err := strconv.ParseFloat(fields[field], 64)
		if err != nil {
			p.Fatal(err)
		}
		return n
	}
	return time.Duration((number(userTime) + number(systemTime)) / ticksPerSecond * float64(time.Second)), number(pages) * float64(os.Getpagesize())
}
