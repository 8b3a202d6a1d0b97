package relay

import (
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/go-outbox/go-outbox/election"
	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// Every setting reaches the package that it is for.
func TestPlan(t *testing.T) {
	table := store.Table{Schema: "shop", Name: "events"}
	template, err := stream.ParseTemplate("shop.{topic}")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	login := stream.ConnectOptions{
		Name: "shop", CredsFile: "creds", NKeyFile: "nkey", TLSCA: "ca", TLSCert: "cert", TLSKey: "key", TLSFirst: true, Domain: "hub", InboxPrefix: "_INBOX_relay",
	}
	got, err := planOf(Config{
		Postgres: "postgres://db/shop", PostgresFile: "dsn", PasswordFile: "password",
		Table: table, NoMigrate: true,
		NATS: "tls://nats", Connect: login,
		Stream: Stream{
			Name: "SHOP", Subject: "shop.{topic}", Adopt: true, CloudEventsSource: "/shop", NoCreate: true, DuplicateWindow: time.Minute, MaxAge: time.Hour,
			MaxBytes: 9, Replicas: 3, Memory: true, Compress: true, PlacementTags: []string{"ssd", "eu"},
		},
		Election: Election{Lock: new(int64(1 << 40))},
		Name:     "shop-1", Strict: true, Retain: time.Hour, HoldDead: true, DeadRetain: 9, AckTimeout: 7 * time.Second,
		PollInterval: 1, BatchSize: 2, BatchBytes: 3, MaxAttempts: 4, RetryBackoff: 5, RetryBackoffMax: 6, ShutdownTimeout: 8,
		Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.lock == nil || got.lock.Fatal == nil {
		t.Fatal("no elector, or one that waits out what does not heal")
	}
	got.lock.Fatal = nil // Functions cannot be compared.
	login.URL = "tls://nats"
	want := plan{
		dsn:   "postgres://db/shop",
		store: store.Options{Table: table, HoldDead: true, Retain: time.Hour, DeadRetain: 9, AdoptStream: true, DSNFile: "dsn", PasswordFile: "password", Logger: log},
		publisher: publisher.Options{
			Connect: login,
			Setup: stream.Setup{
				Stream: "SHOP", Template: template, DuplicateWindow: time.Minute, MaxAge: time.Hour, Replicas: 3,
				Memory: true, MaxBytes: 9, Compress: true, PlacementTags: []string{"ssd", "eu"}, Strict: true, MinWindow: 24 * time.Second,
			},
			Encoder:    stream.Encoder{CloudEventsSource: "/shop"},
			AckTimeout: 7 * time.Second,
		},
		lock: &election.AdvisoryLockOptions{Key: 1 << 40, Table: table.LockKey(), ResignChannel: table.ResignChannel(), Logger: log},
		relay: Options{
			NoMigrate: true, PollInterval: 1, BatchSize: 2, BatchBytes: 3, MaxAttempts: 4, RetryBackoff: 5, RetryBackoffMax: 6, ShutdownTimeout: 8,
			Name: "shop-1", Logger: log,
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("plan\n%+v\nwant\n%+v", got, want)
	}
}

// A relay that is told nothing has tables, a stream, an archive, a window that is checked and a lock of its own.
func TestPlanOfDefaults(t *testing.T) {
	got, err := planOf(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got.relay.NoMigrate || !got.publisher.Setup.Create || got.store.Retain != 5*time.Minute || got.publisher.Setup.MinWindow != 22*time.Second {
		t.Errorf("the plan is %+v", got)
	}
	if got.publisher.Connect.URL != "nats://localhost:4222" || got.publisher.Setup.Stream != "OUTBOX" {
		t.Errorf("it goes to %s, stream %s", got.publisher.Connect.URL, got.publisher.Setup.Stream)
	}
	if got.lock == nil || got.lock.Key != 42 || got.lock.Table != (store.Table{}).LockKey() || got.lock.ResignChannel == "" || got.lock.Fatal == nil {
		t.Errorf("the lock is %+v", got.lock)
	}
	// The zero is as good a number as others.
	if got, err := planOf(Config{Election: Election{Lock: new(int64)}, Retain: NoArchive}); err != nil || got.lock.Key != 0 || got.store.Retain != 0 {
		t.Errorf("with a lock of 0 and without an archive: %+v, %+v, %v", got.lock, got.store, err)
	}
}

func TestPlanWithoutAnElection(t *testing.T) {
	got, err := planOf(Config{Election: Election{Kind: ElectionNone}})
	if err != nil || got.lock != nil || got.keyValue != nil {
		t.Errorf("options of an election %+v, %+v, %v; want none", got.lock, got.keyValue, err)
	}
	if got, err := got.elector(&store.Outbox{}); err != nil || got != (election.Always{}) {
		t.Errorf("the elector is a %T, %v, want %T", got, err, election.Always{})
	}
}

func TestPlanWithAnElectionByJetStream(t *testing.T) {
	got, err := planOf(Config{
		Election: Election{Kind: ElectionJetStream, Key: "shop"}, Stream: Stream{Replicas: 3}, Connect: stream.ConnectOptions{Domain: "hub"}, Name: "shop-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := (election.KeyValueOptions{Key: "shop", Name: "shop-1", Replicas: 3, Domain: "hub"}); got.lock != nil || !reflect.DeepEqual(*got.keyValue, want) {
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

// What says where the servers are goes before what says who we are.
func TestPlanOfURLs(t *testing.T) {
	for _, test := range []struct{ nats, connect, want string }{
		{"nats://here", "nats://elsewhere", "nats://here"},
		{"", "nats://elsewhere", "nats://elsewhere"},
		{"", "", DefaultNATS},
	} {
		got, err := planOf(Config{NATS: test.nats, Connect: stream.ConnectOptions{URL: test.connect}})
		if err != nil || got.publisher.Connect.URL != test.want {
			t.Errorf("with NATS %q and Connect.URL %q: %s, %v; want %s", test.nats, test.connect, got.publisher.Connect.URL, err, test.want)
		}
	}
}
