// Package logtest lets a test wait for what a program logs: what it has come to, and on which port it listens.
package logtest

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long Await waits before the test fails.
const patience = 20 * time.Second

// Log is an io.Writer for a program's log. The zero value is empty.
type Log struct {
	mu      sync.Mutex // Protects what follows.
	text    []byte
	changed chan struct{} // Closed at the next write, if somebody waits for it.
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return len(p), nil
}

// String returns all that was logged.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// Await returns the first complete line with that text, be it logged already or later.
func (l *Log) Await(tb testing.TB, text string) string {
	tb.Helper()
	deadline := time.After(patience)
	for {
		line, changed := l.find(text)
		if line != "" {
			return line
		}
		select {
		case <-changed:
		case <-deadline:
			tb.Fatalf("not logged within %v: %q. The log:\n%s", patience, text, l)
		}
	}
}

func (l *Log) find(text string) (line string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for candidate := range bytes.Lines(l.text) {
		if bytes.HasSuffix(candidate, []byte("\n")) && bytes.Contains(candidate, []byte(text)) {
			return string(bytes.TrimSpace(candidate)), nil
		}
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return "", l.changed
}

// Value returns what follows "key=" in a line of slog's text format, up to the next blank.
func Value(line, key string) string {
	_, after, _ := strings.Cut(line, " "+key+"=")
	value, _, _ := strings.Cut(after, " ")
	return value
}
