package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-outbox/go-outbox/relay"
)

// relayDefaultURL is a URL that a relay takes.
const relayDefaultURL = relay.DefaultNATS

// askRelay reports what a relay would refuse, above all settings that do not go together. Settings that were reported
// already take no part.
func (l *loader) askRelay() {
	if l.Need == NeedValues || l.Need == NeedNothing {
		return
	}
	refused := l.refused(l.config)
	for i, fault := range refused {
		if slices.Contains(refused[:i], fault) || l.excused(fault) {
			continue
		}
		at := l.blame(fault)
		l.fault(&Error{Place: at[0].place, Setting: at[0].setting, Problem: fault, Hint: also(at[1:])})
	}
}

// refused returns what a relay finds wrong with a configuration, with the defaults in place of what was reported already.
func (l *loader) refused(c Config) []string {
	defaults := Default()
	for _, f := range l.fields {
		if l.faulty[f.Key] && f.Value(c) == f.Value(l.config) {
			f.kind.copy(&c, &defaults)
		}
	}
	if !l.realFiles {
		// The relay would look for them in the file system. What is in two of them is in c already.
		c.DatabaseDSNFile, c.NATS.URLFile, c.DatabasePasswordFile = "", "", ""
	}
	if c.DatabaseDSN == "" && c.DatabaseDSNFile == "" {
		c.DatabaseDSN = "host=localhost" // What is missing was reported.
	}
	if c.NATS.Embedded() {
		c.NATS.URL = relayDefaultURL // The program runs the server.
	}
	_, err := relay.New(c.RelayConfig())
	faults, ok := errors.AsType[*relay.ConfigError](err)
	switch {
	case !ok:
		return nil
	case l.Need == NeedDatabase:
		return leaves(faults.Store)
	default:
		return leaves(faults)
	}
}

// leaves returns the texts of the errors that were joined into err.
func leaves(err error) []string {
	var parts []error
	switch joined := err.(type) { //nolint:errorlint // Only what was joined outermost.
	case nil:
		return nil
	case interface{ Unwrap() []error }:
		parts = joined.Unwrap()
	case interface{ WrappedErrors() []error }: // Of go-multierror.
		parts = joined.WrappedErrors()
	default:
		return []string{err.Error()}
	}
	var texts []string
	for _, part := range parts {
		texts = append(texts, leaves(part)...)
	}
	return texts
}

// excused reports whether a fault may be due to a setting that was reported already: with another value of that setting,
// the relay does not find it.
func (l *loader) excused(fault string) bool {
	for _, f := range l.fields {
		if !l.faulty[f.Key] {
			continue
		}
		for _, text := range f.kind.samples {
			trial := l.config
			if err := f.kind.parse(&trial, text); err == nil && !slices.Contains(l.refused(trial), fault) {
				return true
			}
		}
	}
	return false
}

// blame returns where the settings were made that have a part in a fault: with the default of such a setting, the relay
// does not find it. The one to mend comes first: one whose default leaves fewer faults, rather than others, and of several
// the last one in the table of settings.
func (l *loader) blame(fault string) []origin {
	defaults, before := Default(), len(l.refused(l.config))
	var mended, changed []origin
	for _, f := range slices.Backward(l.fields) {
		at, set := l.origins[f.Key]
		if !set {
			continue
		}
		trial := l.config
		f.kind.copy(&trial, &defaults)
		switch after := l.refused(trial); {
		case slices.Contains(after, fault):
		case len(after) < before:
			mended = append(mended, at)
		default:
			changed = append(changed, at)
		}
	}
	if origins := append(mended, changed...); len(origins) > 0 {
		return origins
	}
	return []origin{{place: envPlace}} // One of libpq's variables, for instance.
}

// also names the other settings that have a part in a fault.
func also(others []origin) string {
	names := make([]string, len(others))
	for i, other := range others {
		names[i] = fmt.Sprintf("%s (%s)", other.setting, other.place)
	}
	if len(names) == 0 {
		return ""
	}
	return "see also " + strings.Join(names, ", ")
}
