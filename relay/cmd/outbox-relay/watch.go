package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// clearScreen moves a terminal's cursor to the top left, and clears what is below.
const clearScreen = "\x1b[H\x1b[J"

// watched is what status --watch remembers of what it has shown.
type watched struct {
	at          time.Time // Zero for nothing.
	pending     int64
	mostPending int64
	mostRate    float64
}

// watch shows the status again and again until ctx ends. On a terminal it redraws; otherwise one status follows the other.
func (p *process) watch(ctx context.Context, every time.Duration, asJSON bool, look func(context.Context) (*status, error)) error {
	var seen watched
	for {
		s, err := look(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // It was interrupted, as it was to be.
		}
		if err := p.draw(s, err, asJSON, &seen); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// draw shows one status, or why there is none or not all of it.
func (p *process) draw(s *status, failure error, asJSON bool, seen *watched) error {
	if asJSON && s != nil {
		if err := writeJSON(p.stdout, s); err != nil {
			return err
		}
	}
	if asJSON {
		if failure != nil {
			fmt.Fprintf(p.stderr, "outbox-relay: %v\n", failure)
		}
		return nil
	}
	var b bytes.Buffer
	if p.terminal() {
		b.WriteString(clearScreen)
	}
	fmt.Fprintf(&b, "%s\n\n", time.Now().Format(time.DateTime))
	if s != nil {
		if err := s.write(&b); err != nil {
			return err
		}
		b.WriteString("\n" + seen.bars(s, time.Now()))
	}
	if failure != nil {
		fmt.Fprintf(&b, "\n%v\n", failure)
	}
	if !p.terminal() {
		b.WriteString("\n")
	}
	return printf(p.stdout, "%s", b.String())
}

// bars shows pending events and the rate beside the most that was seen, and where the former are going.
func (w *watched) bars(s *status, now time.Time) string {
	var b strings.Builder
	if s.Pending != nil {
		w.mostPending = max(w.mostPending, s.Pending.Events)
		fmt.Fprintf(&b, "pending    %s  %v%s\n", bar(float64(s.Pending.Events), float64(w.mostPending)), s.Pending, w.trend(s.Pending.Events, now))
		w.at, w.pending = now, s.Pending.Events
	}
	if s.Rate != nil {
		w.mostRate = max(w.mostRate, *s.Rate)
		fmt.Fprintf(&b, "published  %s  %s\n", bar(*s.Rate, w.mostRate), rate(*s.Rate))
	}
	return b.String()
}

// trend says how the number of pending events has changed since it was last shown and, if it falls, how long it will take.
func (w *watched) trend(pending int64, now time.Time) string {
	passed := now.Sub(w.at).Seconds()
	if w.at.IsZero() || passed <= 0 {
		return ""
	}
	change := float64(pending-w.pending) / passed
	switch {
	case change >= 0.5:
		return fmt.Sprintf(", %.0f/s more", change)
	case change <= -0.5 && pending > 0:
		return fmt.Sprintf(", %.0f/s fewer: none in %s", -change, age(float64(pending)/-change))
	case change <= -0.5:
		return fmt.Sprintf(", %.0f/s fewer", -change)
	}
	return ", as before"
}

// barWidth is how many characters a bar has.
const barWidth = 40

// bar draws a number beside the largest one.
func bar(value, most float64) string {
	filled := 0
	if most > 0 {
		filled = int(value/most*barWidth + 0.5)
	}
	if value > 0 {
		filled = max(filled, 1)
	}
	filled = min(max(filled, 0), barWidth)
	return strings.Repeat("█", filled) + strings.Repeat("░", barWidth-filled)
}

// rate is a number of events a second for a person.
func rate(perSecond float64) string {
	switch {
	case perSecond == 0:
		return "0 events/s"
	case perSecond < 10:
		return fmt.Sprintf("%.2g events/s", perSecond)
	}
	return fmt.Sprintf("%.0f events/s", perSecond)
}

// terminal reports whether standard output is one.
func (p *process) terminal() bool {
	file, ok := p.stdout.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
