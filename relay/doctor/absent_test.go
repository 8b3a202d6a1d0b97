package doctor_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/doctor"
	"github.com/go-outbox/go-outbox/store/storetest"
	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// limited starts a server with a configuration as operators write it, whose users are "relay" and "other".
func limited(t *testing.T, config string) *streamtest.Server {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	parsed, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}

	return streamtest.Start(t, func(o *server.Options) {
		o.Accounts, o.Users, o.JetStreamLimits, o.MaxPayload = parsed.Accounts, parsed.Users, parsed.JetStreamLimits, parsed.MaxPayload
		o.NoAuthUser = parsed.NoAuthUser
	})
}

// account is a configuration whose account has these limits.
func account(limits string) string {
	return `jetstream {}
no_auth_user: relay
accounts { SHOP { jetstream { ` + limits + ` }, users [ { user: relay, password: relay } ] } }`
}

// What limits forbid is told of a stream before anybody tries to create it, with the setting; and the relay is told the
// same by the server. With the setting the relay creates the stream.
func TestLimitsForbidTheStream(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	tests := map[string]struct {
		server string
		stream relay.Stream
		other  *jetstream.StreamConfig // Is there before.
		want   string
		remedy string
		code   int           // The server's.
		mended *relay.Stream // With which it works; nil if no setting of ours helps.
	}{
		"max_bytes is demanded": {
			server: account("max_file: 1G, max_bytes: true"), code: 10113,
			want: "the account demands that a stream says how much it keeps at most: set stream_max_bytes", remedy: "stream_max_bytes",
			mended: &relay.Stream{MaxBytes: 1 << 20},
		},
		"bytes of one stream": {
			server: account("max_file: 10G, store_max_stream_bytes: 1G"), stream: relay.Stream{MaxBytes: 2 * gib}, code: 10122,
			want: "stream_max_bytes (Setup.MaxBytes) is 2147483648, and the NATS account allows one stream 1000000000 bytes: set it to at most 1000000000", remedy: "stream_max_bytes",
			mended: &relay.Stream{MaxBytes: 1_000_000_000},
		},
		"bytes of one stream in memory": {
			server: account("max_mem: 10G, mem_max_stream_bytes: 1M"), stream: relay.Stream{Memory: true, MaxBytes: gib}, code: 10122,
			want: "the NATS account allows one stream 1000000 bytes", remedy: "stream_max_bytes",
			mended: &relay.Stream{Memory: true, MaxBytes: 1_000_000},
		},
		"bytes of the account": {
			server: account("max_file: 1000000"), stream: relay.Stream{MaxBytes: 700_000}, code: 10047,
			other:  &jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other.>"}, MaxBytes: 400_000},
			want:   "stream_max_bytes (Setup.MaxBytes) is 700000, for each of 1 replicas, and of the NATS account's 1000000 bytes (max_file) 400000 are reserved by other streams: set at most 600000",
			remedy: "stream_max_bytes", mended: &relay.Stream{MaxBytes: 600_000},
		},
		"all bytes of the account": {
			server: account("max_file: 1000000"), code: 10047,
			other:  &jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other.>"}, MaxBytes: 1_000_000},
			want:   "all of the NATS account's 1000000 bytes (max_file) are reserved by other streams",
			remedy: "nats stream report",
		},
		"no files": {
			server: account("max_mem: 1M, max_file: 0"), code: 10047,
			want: "the NATS account may keep nothing in files (max_file): set stream_storage (Setup.Memory) to memory", remedy: "stream_storage",
			mended: &relay.Stream{Memory: true},
		},
		"no memory": {
			server: account("max_mem: 0, max_file: 1M"), stream: relay.Stream{Memory: true}, code: 10028,
			want: "the NATS account may keep nothing in memory (max_mem): set stream_storage (Setup.Memory) to file", remedy: "stream_storage",
			mended: &relay.Stream{},
		},
		"streams": {
			server: account("max_file: 1G, max_streams: 1"), code: 10027,
			other:  &jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other.>"}},
			want:   "the NATS account has as many streams as it may (0 of 1000000000 bytes (max_file), 1 of 1 streams (max_streams)): raise its limit, or remove streams (`nats stream ls`)",
			remedy: "nats stream ls",
		},
		"duplicate window": {
			server: "jetstream { limits { duplicate_window: \"1m\" } }", code: 10052,
			want: "the server does not allow a duplicate window of 10m0s: set duplicate_window", remedy: "duplicate_window",
			mended: &relay.Stream{DuplicateWindow: time.Minute},
		},
		"messages": {
			server: "jetstream {}\nmax_payload: 100",
			want:   "the server takes messages of at most 100 bytes (max_payload), and the headers of the smallest event have ", remedy: "max_payload",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := limited(t, tt.server)
			js := broker.JetStream(t)
			if tt.other != nil {
				if _, err := js.CreateStream(t.Context(), *tt.other); err != nil {
					t.Fatal(err)
				}
			}
			c := relay.Config{Postgres: storetest.NewDatabase(t), NATS: broker.URL(), Stream: tt.stream}
			d := diagnose(t, c)
			d.expectErr(t, true)
			d.expect(t, `failure stream: "OUTBOX" does not exist and cannot be created: `, "failure stream: "+tt.want)
			d.remedy(t, doctor.CheckStream, tt.remedy)
			if n := d.Count(doctor.Failure); n != 1 {
				t.Errorf("got %d failures, want the one:\n%s", n, &d)
			}
			if _, err := js.Stream(t.Context(), "OUTBOX"); !errors.Is(err, jetstream.ErrStreamNotFound) {
				t.Fatalf("doctor has created the stream (%v)", err)
			}
			if tt.code > 0 {
				_, setup, err := c.Target()
				if err != nil {
					t.Fatal(err)
				}
				_, err = setup.Ensure(t.Context(), js)
				if fault, ok := errors.AsType[*stream.Error](err); !ok || fault.Code != tt.code {
					t.Errorf("the relay is told %v, want code %d", err, tt.code)
				}
			}
			if tt.mended == nil {
				return
			}
			c.Stream = *tt.mended
			d = diagnose(t, c)
			d.expectErr(t, false)
			_, setup, err := c.Target()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := setup.Ensure(t.Context(), js); err != nil {
				t.Errorf("the remedy does not help: %v", err)
			}
		})
	}
}

// What shows by the surroundings only is a warning: a leaf node may have JetStream from a cluster.
func TestReplicasWithoutACluster(t *testing.T) {
	t.Parallel()
	broker := streamtest.Start(t)
	d := diagnose(t, relay.Config{Postgres: storetest.NewDatabase(t), NATS: broker.URL(), Stream: relay.Stream{Replicas: 3}})
	d.expectErr(t, false)
	d.expect(t, "warning stream: the server is not in a cluster, so the stream cannot have 3 replicas: set stream_replicas = 1")
}

// An account with tiers has limits for some numbers of replicas only.
func TestTiersForbidTheStream(t *testing.T) {
	t.Parallel()
	broker := limited(t, account("max_file: 1G"))
	acc, err := broker.NATS().LookupAccount("SHOP")
	if err != nil {
		t.Fatal(err)
	}
	limits := server.JetStreamAccountLimits{MaxMemory: -1, MaxStore: 1 << 20, MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1}
	if err := acc.UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{"R3": limits}); err != nil {
		t.Fatal(err)
	}
	d := diagnose(t, relay.Config{Postgres: storetest.NewDatabase(t), NATS: broker.URL()})
	d.expectErr(t, true)
	d.expect(t, "failure stream: the NATS account has limits for other numbers of replicas than 1 (tiers), and none for this: set stream_replicas")
}

// What an account may not be asked is not held against it.
func TestAccountMayNotBeAsked(t *testing.T) {
	t.Parallel()
	url, js := denying(t, "$JS.API.INFO")
	d := diagnose(t, relay.Config{Postgres: storetest.NewDatabase(t), NATS: url})
	d.expectErr(t, false)
	d.expect(t, `ok stream: "OUTBOX" does not exist yet`)
	if _, err := js.Stream(t.Context(), "OUTBOX"); !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("doctor has created the stream (%v)", err)
	}
}
