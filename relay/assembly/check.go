package assembly

import (
	"strings"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// Check finds what [New] would find wrong with a configuration, by the settings that are to blame. It is meant for
// config.Sources.Check, so that all faults are told at once, each with its place.
func Check(c config.Config) []config.Finding {
	var o Options
	if c.NATS.Embedded() {
		o.NATSURL = embeddedURL
	}
	p, err := planOf(c, o)
	findings := foundBy(err, "", planKeys())
	findings = append(findings, CheckDatabase(c)...)
	_, err = stream.NewPublisher(p.publisher)
	findings = append(findings, foundBy(err, "", publisherKeys())...)
	outbox, _ := store.Open(p.dsn, p.store) // What is wrong with it is found already.
	_, err = p.elector(outbox)
	return append(findings, foundBy(err, "election.key", nil)...)
}

// CheckDatabase is Check for programs that do nothing but look at the database.
func CheckDatabase(c config.Config) []config.Finding {
	if c.DatabaseDSN == "" {
		return nil // Package config has said so.
	}
	p, _ := planOf(c, Options{}) // Which says what is wrong with the rest.
	_, err := store.Open(p.dsn, p.store)
	key := "database_dsn"
	if c.DatabaseDSNFile != "" {
		key = "database_dsn_file"
	}
	return foundBy(err, key, databaseKeys())
}

// key tells by how an error's text begins which setting it is of.
type key struct{ prefix, setting string }

// planKeys are of what planOf says,
func planKeys() []key {
	return []key{{"subject: ", "subject"}, {"nats_url: ", "nats_url"}, {"relay.retain: ", "relay.retain"}}
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
