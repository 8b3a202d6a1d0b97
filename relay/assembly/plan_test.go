package assembly

import (
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/config"
	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
)

// Every setting reaches the package that it is for.
func TestPlan(t *testing.T) {
	table := store.Table{Schema: "shop", Name: "events"}
	template, err := stream.ParseTemplate("shop.{topic}")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	got, err := planOf(config.Config{
		DatabaseDSN:  "postgres://db/shop",
		AdvisoryLock: 1 << 40,
		Table:        config.Table{Schema: "shop", Name: "events"},
		Strict:       true,
		NATS:         config.NATS{URL: "tls://nats", Creds: "creds", NKey: "nkey", TLSCA: "ca", TLSCert: "cert", TLSKey: "key", TLSFirst: true, Domain: "hub", InboxPrefix: "_INBOX_relay"},
		Stream: config.Stream{
			Name: "SHOP", Subject: "shop.{topic}", DuplicateWindow: time.Minute, Create: true, Replicas: 3, MaxAge: time.Hour,
			Storage: config.StorageMemory, CloudEventsSource: "/shop",
			MaxBytes: 9, Compression: config.CompressionS2, PlacementTags: "ssd, eu",
		},
		Election: config.Election{Kind: config.ElectionPostgres},
		Relay: config.Relay{
			PollInterval: 1, BatchSize: 2, BatchBytes: 3, MaxAttempts: 4, OnDead: config.OnDeadHold, RetryBackoff: 5, RetryBackoffMax: 6,
			AckTimeout: 7 * time.Second, ShutdownTimeout: 8, Retain: time.Hour,
		},
	}, Options{ClientName: "shop", Name: "shop-1", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	if got.lock == nil || got.lock.Fatal == nil {
		t.Fatal("no elector, or one that waits out what does not heal")
	}
	got.lock.Fatal = nil // Functions cannot be compared.
	want := plan{
		dsn:   "postgres://db/shop",
		store: store.Options{Table: table, HoldDead: true, Retain: time.Hour, Logger: log},
		publisher: stream.PublisherOptions{
			Connect: stream.ConnectOptions{
				URL: "tls://nats", Name: "shop", CredsFile: "creds", NKeyFile: "nkey", TLSCA: "ca", TLSCert: "cert", TLSKey: "key",
				TLSFirst: true, Domain: "hub", InboxPrefix: "_INBOX_relay",
			},
			Setup: stream.Setup{
				Stream: "SHOP", Template: template, Create: true, DuplicateWindow: time.Minute, MaxAge: time.Hour, Replicas: 3,
				Memory: true, MaxBytes: 9, Compress: true, PlacementTags: []string{"ssd", "eu"}, Strict: true, MinWindow: 24 * time.Second,
			},
			Encoder:    stream.Encoder{CloudEventsSource: "/shop"},
			AckTimeout: 7 * time.Second,
		},
		lock: &election.AdvisoryLockOptions{Key: 1 << 40, Table: table.LockKey(), ResignChannel: table.ResignChannel(), Logger: log},
		relay: relay.Options{
			PollInterval: 1, BatchSize: 2, BatchBytes: 3, MaxAttempts: 4, RetryBackoff: 5, RetryBackoffMax: 6, ShutdownTimeout: 8,
			Name: "shop-1", Logger: log,
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("plan\n%+v\nwant\n%+v", got, want)
	}
}

func TestPlanWithoutAnElection(t *testing.T) {
	c := config.Default()
	c.Election.Kind = config.ElectionNone
	got, err := planOf(c, Options{})
	if err != nil || got.lock != nil || got.keyValue != nil {
		t.Errorf("options of an election %+v, %+v, %v; want none", got.lock, got.keyValue, err)
	}
	if got, err := got.elector(&store.Outbox{}); err != nil || got != (election.Always{}) {
		t.Errorf("the elector is a %T, %v, want %T", got, err, election.Always{})
	}
}

func TestPlanWithAnElectionByJetStream(t *testing.T) {
	c := config.Default()
	c.Election = config.Election{Kind: config.ElectionJetStream, Key: "shop"}
	c.Stream.Replicas = 3
	got, err := planOf(c, Options{Name: "shop-1"})
	if err != nil {
		t.Fatal(err)
	}
	if want := (election.KeyValueOptions{Key: "shop", Name: "shop-1", Replicas: 3}); got.lock != nil || !reflect.DeepEqual(*got.keyValue, want) {
		t.Errorf("options of the election %+v, want %+v", got.keyValue, want)
	}
	outbox, err := store.Open("postgres://localhost/shop", store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if elector, err := got.elector(outbox); err != nil {
		t.Error(err)
	} else if _, ok := elector.(*election.KeyValue); !ok {
		t.Errorf("the elector is a %T", elector)
	}
}

func TestPlanOfAProgramWithItsOwnServer(t *testing.T) {
	c := config.Default()
	c.NATS.Creds = "creds"
	for url, want := range map[config.Secret]stream.ConnectOptions{
		"nats://elsewhere":  {URL: "nats://here", CredsFile: "creds"},
		config.NATSEmbedded: {URL: "nats://here"}, // It asks for none.
	} {
		c.NATS.URL = url
		got, err := planOf(c, Options{NATSURL: "nats://here"})
		if err != nil || !reflect.DeepEqual(got.publisher.Connect, want) {
			t.Errorf("with nats_url = %v: connect options %+v, %v; want %+v", url, got.publisher.Connect, err, want)
		}
	}
}

// What a relay does that was told nothing does not depend on whether it is put together by hand.
func TestTheConfigurationsDefaultsAreThoseOfThePackages(t *testing.T) {
	c := config.Default()
	for name, test := range map[string]struct{ config, library any }{
		"stream":            {c.Stream.Name, stream.DefaultStream},
		"subject":           {c.Stream.Subject, stream.DefaultTemplate},
		"duplicate_window":  {c.Stream.DuplicateWindow, stream.DefaultDuplicateWindow},
		"ack_timeout":       {c.Relay.AckTimeout, stream.DefaultAckTimeout},
		"batch_size":        {c.Relay.BatchSize, relay.DefaultBatchSize},
		"batch_bytes":       {c.Relay.BatchBytes, relay.DefaultBatchBytes},
		"poll_interval":     {c.Relay.PollInterval, relay.DefaultPollInterval},
		"max_attempts":      {c.Relay.MaxAttempts, relay.DefaultMaxAttempts},
		"retry_backoff":     {c.Relay.RetryBackoff, relay.DefaultRetryBackoff},
		"retry_backoff_max": {c.Relay.RetryBackoffMax, relay.DefaultRetryBackoffMax},
		"shutdown_timeout":  {c.Relay.ShutdownTimeout, relay.DefaultShutdownTimeout},
		"table":             {store.Table(c.Table), store.Table{Schema: store.DefaultSchema, Name: store.DefaultName}},
	} {
		if test.config != test.library {
			t.Errorf("%s: config has %v, the library %v", name, test.config, test.library)
		}
	}
}
