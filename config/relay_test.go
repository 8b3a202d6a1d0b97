package config_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// Every setting of the relay reaches it.
func TestRelayConfig(t *testing.T) {
	c := config.Config{
		DatabaseDSN: "postgres://db/shop", DatabasePasswordFile: "password",
		AdvisoryLock: 1 << 40,
		Table:        store.Table{Schema: "shop", Name: "events"},
		Migrate:      true, Strict: true,
		NATS: config.NATS{URL: "tls://nats", Creds: "creds", NKey: "nkey", TLSCA: "ca", TLSCert: "cert", TLSKey: "key", TLSFirst: true, Domain: "hub", InboxPrefix: "_INBOX_relay"},
		Stream: config.Stream{
			Name: "SHOP", Adopt: true, Subject: "shop.{topic}", DuplicateWindow: time.Minute, Create: true, Replicas: 3, MaxAge: time.Hour,
			Storage: config.StorageMemory, CloudEventsSource: "/shop",
			MaxBytes: 9, Compression: config.CompressionS2, PlacementTags: "ssd, eu",
		},
		Election: config.Election{Kind: relay.ElectionJetStream, Key: "key"},
		Relay: config.Relay{
			PollInterval: 1, BatchSize: 2, BatchBytes: 3, MaxAttempts: 4, OnDead: config.OnDeadHold, RetryBackoff: 5, RetryBackoffMax: 6,
			AckTimeout: 7, ShutdownTimeout: 8, Retain: time.Hour, DeadRetain: 9,
		},
	}
	want := relay.Config{
		Postgres: "postgres://db/shop", PasswordFile: "password",
		Table: store.Table{Schema: "shop", Name: "events"},
		NATS:  "tls://nats",
		Connect: stream.ConnectOptions{
			CredsFile: "creds", NKeyFile: "nkey", TLSCA: "ca", TLSCert: "cert", TLSKey: "key", TLSFirst: true, Domain: "hub", InboxPrefix: "_INBOX_relay",
		},
		Stream: relay.Stream{
			Name: "SHOP", Adopt: true, Subject: "shop.{topic}", DuplicateWindow: time.Minute, Replicas: 3, MaxAge: time.Hour,
			Memory: true, CloudEventsSource: "/shop", MaxBytes: 9, Compress: true, PlacementTags: []string{"ssd", "eu"},
		},
		Election: relay.Election{Kind: relay.ElectionJetStream, Lock: new(int64(1 << 40)), Key: "key"},
		Strict:   true, Retain: time.Hour, HoldDead: true, DeadRetain: 9,
		PollInterval: 1, BatchSize: 2, BatchBytes: 3, MaxAttempts: 4, RetryBackoff: 5, RetryBackoffMax: 6, AckTimeout: 7, ShutdownTimeout: 8,
	}
	if got := c.RelayConfig(); !reflect.DeepEqual(got, want) {
		t.Errorf("the relay gets\n%+v\nwant\n%+v", got, want)
	}

	c.NATS.URLFile = "url"
	want.NATS, want.Connect.URLFile = "", "url"
	if got := c.RelayConfig(); !reflect.DeepEqual(got, want) {
		t.Errorf("the relay gets\n%+v\nwant\n%+v", got, want)
	}

	// What the zero would not say.
	c.DatabaseDSNFile, c.Migrate, c.Stream.Create, c.Relay.Retain, c.AdvisoryLock, c.NATS.URL = "dsn", false, false, 0, 0, config.NATSEmbedded
	want.Postgres, want.PostgresFile, want.NoMigrate, want.Stream.NoCreate, want.Retain = "", "dsn", true, true, relay.NoArchive
	want.Election.Lock, want.NATS, want.Connect = new(int64), "embedded", stream.ConnectOptions{}
	if got := c.RelayConfig(); !reflect.DeepEqual(got, want) {
		t.Errorf("the relay gets\n%+v\nwant\n%+v", got, want)
	}
}

// What a relay does that was told nothing does not depend on who told it nothing.
func TestTheDefaultsAreThoseOfTheRelay(t *testing.T) {
	c := config.Default()
	for name, test := range map[string]struct{ config, library any }{
		"nats_url":          {string(c.NATS.URL), relay.DefaultNATS},
		"advisory_lock":     {c.AdvisoryLock, int64(relay.DefaultAdvisoryLock)},
		"election.kind":     {c.Election.Kind, relay.ElectionPostgres},
		"stream":            {c.Stream.Name, stream.DefaultStream},
		"subject":           {c.Stream.Subject, stream.DefaultTemplate},
		"duplicate_window":  {c.Stream.DuplicateWindow, stream.DefaultDuplicateWindow},
		"retain":            {c.Relay.Retain, relay.DefaultRetain},
		"ack_timeout":       {c.Relay.AckTimeout, publisher.DefaultAckTimeout},
		"batch_size":        {c.Relay.BatchSize, relay.DefaultBatchSize},
		"batch_bytes":       {c.Relay.BatchBytes, relay.DefaultBatchBytes},
		"poll_interval":     {c.Relay.PollInterval, relay.DefaultPollInterval},
		"max_attempts":      {c.Relay.MaxAttempts, relay.DefaultMaxAttempts},
		"retry_backoff":     {c.Relay.RetryBackoff, relay.DefaultRetryBackoff},
		"retry_backoff_max": {c.Relay.RetryBackoffMax, relay.DefaultRetryBackoffMax},
		"shutdown_timeout":  {c.Relay.ShutdownTimeout, relay.DefaultShutdownTimeout},
		"table":             {c.Table, store.Table{Schema: store.DefaultSchema, Name: store.DefaultName}},
	} {
		if test.config != test.library {
			t.Errorf("%s: config has %v, the library %v", name, test.config, test.library)
		}
	}
	// Whatever has no number: as on the other side's zero.
	r := c.RelayConfig()
	if r.NoMigrate || r.Stream.NoCreate || r.Stream.Memory || r.Stream.Compress || r.HoldDead || r.Strict || r.Stream.Adopt || r.Stream.MaxAge != 0 || r.Stream.MaxBytes != 0 || r.Stream.Replicas != 1 {
		t.Errorf("the defaults are %+v", r)
	}
}
