package main

import (
	"errors"
	"strings"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay"
)

// check finds what a relay would find wrong with a configuration, by the settings that are to blame. It is meant for
// config.Sources.Check, so that all faults are told at once, each with its place.
func check(c config.Config) []config.Finding {
	faults := faultsOf(c)
	findings := foundBy(faults.Config, "", planKeys())
	findings = append(findings, databaseFindings(c, faults)...)
	findings = append(findings, foundBy(faults.Publisher, "", publisherKeys())...)
	return append(findings, foundBy(faults.Elector, "election.key", nil)...)
}

// checkDatabase is check for commands that do nothing but look at the database.
func checkDatabase(c config.Config) []config.Finding { return databaseFindings(c, faultsOf(c)) }

// faultsOf returns what a relay would find wrong.
func faultsOf(c config.Config) relay.ConfigError {
	_, err := relay.New(relayConfig(c, unstarted))
	if faults, ok := errors.AsType[*relay.ConfigError](err); ok {
		return *faults
	}
	return relay.ConfigError{}
}

// unstarted stands for the URL of an embedded server that does not run yet.
const unstarted = "nats://embedded"

// relayConfig returns the relay's part of a configuration, with the URL of the embedded server if it asks for one.
func relayConfig(c config.Config, embeddedURL string) relay.Config {
	r := c.RelayConfig()
	if c.NATS.Embedded() {
		r.NATS = embeddedURL
	}
	return r
}

func databaseFindings(c config.Config, faults relay.ConfigError) []config.Finding {
	if c.DatabaseDSN == "" {
		return nil // Package config has said so.
	}
	key := "database_dsn"
	if c.DatabaseDSNFile != "" {
		key = "database_dsn_file"
	}
	return foundBy(faults.Store, key, databaseKeys())
}

// key tells by how an error's text begins which setting it is of.
type key struct{ prefix, setting string }

// planKeys are of what package relay says itself,
func planKeys() []key {
	return []key{{"Stream.Subject: ", "subject"}, {"NATS: ", "nats_url"}, {"option Retain: ", "relay.retain"}}
}

// databaseKeys of what store.Open says,
func databaseKeys() []key {
	return []key{
		{"database DSN: ", ""},
		{"database DSN in the file ", "database_dsn_file"},
		{"database password in the file ", "database_password_file"},
		{"table name ", "table"},
		{"schema name ", "table"},
	}
}

// and publisherKeys of what stream.NewPublisher says.
func publisherKeys() []key {
	return []key{
		{"URL in the file ", "nats_url_file"},
		{"URL", "nats_url"},
		{"Stream: ", "stream"},
		{"DuplicateWindow: ", "duplicate_window"},
		{"Domain: ", "nats_domain"},
		{"InboxPrefix: ", "nats_inbox_prefix"},
		{"TLSFirst: ", "nats_tls_first"},
		{"MaxAge: ", "stream_max_age"},
		{"MaxBytes: ", "stream_max_bytes"},
		{"PlacementTags: ", "stream_placement_tags"},
		{"Replicas: ", "stream_replicas"},
		{"CloudEvents source ", "cloudevents_source"},
		{"AckTimeout: ", "relay.ack_timeout"},
	}
}

// foundBy takes an error apart. What none of the keys begins is of the setting named other.
func foundBy(err error, other string, keys []key) []config.Finding {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { // Only what was joined outermost.
		var findings []config.Finding
		for _, err := range joined.Unwrap() {
			findings = append(findings, foundBy(err, other, keys)...)
		}
		return findings
	}
	text := err.Error()
	for _, k := range keys {
		if rest, ok := strings.CutPrefix(text, k.prefix); ok {
			if k.setting == "" {
				return []config.Finding{{Key: other, Problem: rest}}
			}
			if strings.HasSuffix(k.prefix, ": ") {
				text = rest
			}
			return []config.Finding{{Key: k.setting, Problem: text}}
		}
	}
	return []config.Finding{{Key: other, Problem: text}}
}
