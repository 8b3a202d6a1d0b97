package harness

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
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
	quiet    bool // Its output is not shown when the test has failed.

	mu     sync.Mutex    // Protects the following.
	lines  []string      // Each cut to longestLine.
	logged int           // Bytes, before the cut.
	update chan struct{} // Closed and replaced at each new line.
}

func launch(tb testing.TB, cmd *exec.Cmd) *Process {
	tb.Helper()
	p := &Process{TB: tb, cmd: cmd, ended: make(chan struct{}), update: make(chan struct{})}
	output, err := cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		p.listen(output)
		_ = cmd.Wait() // How it ended is in cmd.ProcessState.
		close(p.ended)
	}()
	tb.Cleanup(func() {
		p.Kill()
		if p.Said("WARNING: DATA RACE") || p.Said("panic:") {
			tb.Error("a data race, or a panic")
		}
		if tb.Failed() && !p.quiet {
			tb.Logf("output of process %d:\n%s", cmd.Process.Pid, p.tail(60))
		}
	})
	return p
}

// longestLine is how much is kept of a line of the log. Longer lines are read to their end nevertheless: a process stops when
// its output is not read.
const longestLine = 16 << 10

// listen reads the log until it ends.
func (p *Process) listen(output io.Reader) {
	reader := bufio.NewReaderSize(output, longestLine)
	for {
		line, size, err := readLine(reader)
		if size > 0 {
			p.mu.Lock()
			p.lines = append(p.lines, line)
			p.logged += size
			close(p.update)
			p.update = make(chan struct{})
			p.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// readLine returns the beginning of the next line, and how long the whole line is with its end.
func readLine(reader *bufio.Reader) (line string, size int, err error) {
	piece, err := reader.ReadSlice('\n')
	line, size = strings.TrimSuffix(string(piece), "\n"), len(piece)
	for errors.Is(err, bufio.ErrBufferFull) {
		piece, err = reader.ReadSlice('\n')
		size += len(piece)
	}
	return line, size, err
}

// Logged returns how many bytes the process has written to its log.
func (p *Process) Logged() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logged
}

// Tail returns the end of the log, so many bytes at most, with long lines cut.
func (p *Process) Tail(size int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var kept []string
	for _, line := range slices.Backward(p.lines) {
		line = cut(line)
		if size -= len(line) + 1; size < 0 {
			break
		}
		kept = append(kept, line)
	}
	slices.Reverse(kept)
	return strings.Join(kept, "\n")
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Alive reports whether the process runs.
func (p *Process) Alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Await waits until a line of the log matches pattern; it reports whether that came in time, and before the process ended.
func (p *Process) Await(within time.Duration, pattern *regexp.Regexp) bool {
	deadline := time.After(within)
	for seen := 0; ; {
		p.mu.Lock()
		lines, update := p.lines[seen:], p.update
		seen += len(lines)
		p.mu.Unlock()
		if slices.ContainsFunc(lines, pattern.MatchString) {
			return true
		}
		select {
		case <-update:
		case <-p.ended:
			return false
		case <-deadline:
			return false
		}
	}
}

// Count returns how many lines of the log match pattern.
func (p *Process) Count(pattern *regexp.Regexp) (lines int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		if pattern.MatchString(line) {
			lines++
		}
	}
	return lines
}

// Matches returns what the last group of pattern matches, anywhere in the log.
func (p *Process) Matches(pattern *regexp.Regexp) map[string]bool {
	p.mu.Lock()
	lines := p.lines // Lines are only ever added.
	p.mu.Unlock()
	matches := map[string]bool{}
	for _, line := range lines {
		for _, match := range pattern.FindAllStringSubmatch(line, -1) {
			matches[match[len(match)-1]] = true
		}
	}
	return matches
}

// Metric returns the value of a metric that has the labels of its outbox and no others, and whether the relay could be asked for it.
func (p *Process) Metric(name string) (value float64, ok bool) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.httpAddr+"/metrics", nil)
	if err != nil {
		p.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, false
	}
	defer response.Body.Close()
	for scanner := bufio.NewScanner(response.Body); scanner.Scan(); {
		if text, found := strings.CutPrefix(scanner.Text(), name+`{stream="OUTBOX",table="public.outbox"} `); found {
			value, err = strconv.ParseFloat(text, 64)
			return value, err == nil
		}
	}
	return 0, false
}

// Peak returns the most resident memory that a running process has had, in bytes, and 0 if it does not run.
func (p *Process) Peak() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if text, found := strings.CutPrefix(line, "VmHWM:"); found {
			kilobytes, _ := strconv.ParseInt(strings.Fields(text)[0], 10, 64) // The kernel writes a number.
			return kilobytes << 10
		}
	}
	return 0
}

func (p *Process) tail(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var kept []string
	for _, line := range p.lines[max(0, len(p.lines)-n):] {
		kept = append(kept, cut(line))
	}
	return strings.Join(kept, "\n")
}

// cut shortens a line for a test's report.
func cut(line string) string {
	const most = 1000
	if len(line) <= most {
		return line
	}
	return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(line[:most], ""), len(line))
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

// Freeze stops the process until Thaw, in the middle of whatever it does.
func (p *Process) Freeze() { p.signal(freeze) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { p.signal(thaw) }

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
	code, _ := p.ask(path)
	return code
}

// Body is Get, and returns the body.
func (p *Process) Body(path string) string {
	p.Helper()
	_, body := p.ask(path)
	return body
}

func (p *Process) ask(path string) (code int, body string) {
	p.Helper()
	request, err := http.NewRequestWithContext(p.Context(), http.MethodGet, "http://"+p.httpAddr+path, nil)
	if err != nil {
		p.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, ""
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, ""
	}
	return response.StatusCode, string(content)
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
