package config

import (
	"github.com/go-outbox/go-outbox/relay"
)

// RelayConfig returns the configuration in the words of package relay, for
// relay.New. What a configuration does not say is left to the program: Logger and
// Hooks, Name, BeforeConnect and, if NATS is [NATSEmbedded], the URL of the server
// that the program runs, without which relay.New refuses it.
func (c Config) RelayConfig() relay.Config {
	r := relay.Config{
		Postgres:     string(c.DatabaseDSN),
		PostgresFile: c.DatabaseDSNFile,
		PasswordFile: c.DatabasePasswordFile,
		NoMigrate:    !c.Migrate,
		Table:        c.Table,
		NATS:         string(c.NATS.URL),
		Stream: relay.Stream{
			Name:              c.Stream.Name,
			Subject:           c.Stream.Subject,
			Adopt:             c.Stream.Adopt,
			CloudEventsSource: c.Stream.CloudEventsSource,
			NoCreate:          !c.Stream.Create,
			DuplicateWindow:   c.Stream.DuplicateWindow,
			MaxAge:            c.Stream.MaxAge,
			MaxBytes:          c.Stream.MaxBytes,
			Replicas:          c.Stream.Replicas,
			Memory:            c.Stream.Storage == StorageMemory,
			Compress:          c.Stream.Compression == CompressionS2,
			PlacementTags:     c.Stream.Tags(),
		},
		Election:   relay.Election{Kind: c.Election.Kind, Lock: &c.AdvisoryLock, Key: c.Election.Key},
		Strict:     c.Strict,
		Retain:     c.Relay.Retain,
		DeadRetain: c.Relay.DeadRetain,
		HoldDead:   c.Relay.OnDead == OnDeadHold,

		AckTimeout:      c.Relay.AckTimeout,
		BatchSize:       c.Relay.BatchSize,
		BatchBytes:      c.Relay.BatchBytes,
		PollInterval:    c.Relay.PollInterval,
		MaxAttempts:     c.Relay.MaxAttempts,
		RetryBackoff:    c.Relay.RetryBackoff,
		RetryBackoffMax: c.Relay.RetryBackoffMax,
		ShutdownTimeout: c.Relay.ShutdownTimeout,
	}
	if c.DatabaseDSNFile != "" {
		r.Postgres = "" // It is read from there, each time.
	}
	if c.Relay.Retain == 0 {
		r.Retain = relay.NoArchive
	}
	if !c.NATS.Embedded() { // That is the program's own, and asks for no credentials.
		if c.NATS.URLFile != "" {
			r.NATS, r.Connect.URLFile = "", c.NATS.URLFile // As with Postgres.
		}
		r.Connect.CredsFile, r.Connect.NKeyFile = c.NATS.Creds, c.NATS.NKey
		r.Connect.TLSCA, r.Connect.TLSCert, r.Connect.TLSKey = c.NATS.TLSCA, c.NATS.TLSCert, c.NATS.TLSKey
		r.Connect.TLSFirst, r.Connect.InboxPrefix, r.Connect.Domain = c.NATS.TLSFirst, c.NATS.InboxPrefix, c.NATS.Domain
	}
	return r
}
