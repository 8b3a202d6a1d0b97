package publisher_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// withConfigFile makes a server with the accounts and limits of a configuration file, whose user is "relay".
func withConfigFile(t *testing.T, text string) func(*server.Options) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(o *server.Options) {
		conf, err := server.ProcessConfigFile(file) // Anew for each start.
		if err != nil {
			t.Fatal(err)
		}
		o.Accounts, o.Users, o.NoAuthUser, o.JetStreamLimits = conf.Accounts, conf.Users, conf.NoAuthUser, conf.JetStreamLimits
		if conf.JetStreamMaxStore > 0 {
			o.JetStreamMaxStore = conf.JetStreamMaxStore
		}
	}
}

// account is a configuration with one account, which has limits.
func account(limits string) string {
	return fmt.Sprintf(`jetstream {}
accounts { SHOP { jetstream { %s }, users [ { user: relay, password: relay } ] } }
no_auth_user: relay`, limits)
}

// Each limit is recognised, in words with figures and with what to do, and it is the set-up's fault unless it heals by
// itself.
func TestLimitsAreToldInWords(t *testing.T) {
	plain := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, AllowBatchPublish: true, Duplicates: time.Minute}
	with := func(change func(*jetstream.StreamConfig)) *jetstream.StreamConfig {
		config := plain
		change(&config)
		return &config
	}
	fill := func(ctx context.Context, p *publishertest.Publisher) error { // Until it is refused, as the relay does: and then opened anew.
		if _, err := p.FirstFence(ctx, "x", 1); err != nil {
			return err
		}
		var fault *stream.Error
		for seq := int64(1); seq <= 40 && fault == nil; seq++ {
			ev := of(seq, "1")
			ev.Data = make([]byte, 1000)
			if err := p.Publish(ev); err != nil {
				return err
			}
			for fault == nil {
				<-p.Outcomes()
				outcomes, _ := p.Collect(nil)
				if len(outcomes) > 0 {
					fault = outcomes[0].Err
					break
				}
			}
		}
		if fault == nil {
			return nil
		}
		if _, err := p.Open(ctx); err != nil {
			return err
		}
		ev := of(99, "1")
		ev.Data = make([]byte, 1000)
		if err := p.Publish(ev); err != nil {
			return err
		}
		<-p.Outcomes()
		outcomes, _ := p.Collect(nil)
		if outcomes[0].Err == nil {
			return nil
		}
		return outcomes[0].Err
	}
	fence := func(ctx context.Context, p *publishertest.Publisher) error {
		for range 10 {
			if _, err := p.Fence(ctx, "x", 1); err != nil {
				return err
			}
		}
		return nil
	}
	consumer := func(ctx context.Context, p *publishertest.Publisher) error {
		var last history.Fence
		for range 3 {
			var err error
			if last, err = p.Fence(ctx, "x", 1); err != nil {
				return err
			}
		}
		return p.History().Scan(ctx, 0, last, func(history.Found) error { return nil })
	}
	for name, tt := range map[string]struct {
		server string
		config *jetstream.StreamConfig // Nil to have it created.
		window time.Duration
		do     func(ctx context.Context, p *publishertest.Publisher) error // Nil to open only.
		fault  stream.Fault
		want   string
	}{
		"messages": {
			config: with(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 5, jetstream.DiscardNew }), do: fill, fault: stream.FaultSetup,
			want: `stream "OUTBOX" is full: it has 5 of 5 messages (max_msgs) and refuses new messages (discard new): it makes no room by itself, also not by consuming; run ` + "`nats stream edit OUTBOX --max-msgs=10`, or remove old messages with `nats stream purge OUTBOX --keep=2`",
		},
		"messages, fence": {
			config: with(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 5, jetstream.DiscardNew }), do: fence, fault: stream.FaultSetup,
			want: `stream "OUTBOX" is full: it has 5 of 5 messages`,
		},
		"messages with an age": {
			config: with(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard, c.MaxAge = 5, jetstream.DiscardNew, time.Hour }), do: fill, fault: stream.FaultWeather,
			want: "room comes when messages become older than 1h0m0s (max_age)",
		},
		"messages of a work queue": {
			config: with(func(c *jetstream.StreamConfig) {
				c.MaxMsgs, c.Discard, c.Retention = 5, jetstream.DiscardNew, jetstream.WorkQueuePolicy
			}), do: fill, fault: stream.FaultWeather,
			want: "consumers make room by acknowledging",
		},
		"bytes": {
			config: with(func(c *jetstream.StreamConfig) { c.MaxBytes, c.Discard = 10_000, jetstream.DiscardNew }), do: fill, fault: stream.FaultSetup,
			want: "10000 of 10000 bytes (max_bytes)",
		},
		"messages of a subject": {
			config: with(func(c *jetstream.StreamConfig) {
				c.MaxMsgsPerSubject, c.Discard, c.DiscardNewPerSubject = 5, jetstream.DiscardNew, true
			}), do: fill, fault: stream.FaultRow,
			want: `holds 5 messages of the event's subject (max_msgs_per_subject), and refuses new ones (discard_new_per_subject): run ` + "`nats stream edit OUTBOX --max-msgs-per-subject=10`",
		},
		"account's storage": {
			server: account("max_file: 20000, max_mem: 0"), config: &plain, do: fill, fault: stream.FaultSetup,
			want: " of 20000 bytes (max_file)): it makes no room by itself",
		},
		"account that demands max_bytes": {
			server: account("max_file: 1M, max_bytes: true"), fault: stream.FaultSetup,
			want: "set stream_max_bytes",
		},
		"consumers": {
			config: with(func(c *jetstream.StreamConfig) { c.MaxConsumers = 1 }), do: consumer, fault: stream.FaultSetup,
			want: "it has as many consumers as its own limit",
		},
		"duplicate window": {
			server: "jetstream { limits { duplicate_window: \"1m\" } }", window: time.Hour, fault: stream.FaultSetup,
			want: "the server does not allow a duplicate window of 1h0m0s: set duplicate_window",
		},
	} {
		t.Run(name, func(t *testing.T) {
			text := tt.server
			if text == "" {
				text = "jetstream {}"
			}
			srv := streamtest.Start(t, withConfigFile(t, text))
			if tt.config != nil {
				str, err := srv.JetStream(t).CreateStream(t.Context(), *tt.config)
				if err != nil {
					t.Fatal(err)
				}
				if tt.config.MaxConsumers > 0 {
					if _, err := str.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "somebody"}); err != nil {
						t.Fatal(err)
					}
				}
			}
			p, err := publisher.New(publisher.Options{
				Connect: stream.ConnectOptions{URL: srv.URL()},
				Setup:   stream.Setup{Create: true, DuplicateWindow: tt.window},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err = p.Open(ctx)
			if tt.do != nil {
				if err != nil {
					t.Fatal(err)
				}
				err = tt.do(ctx, &publishertest.Publisher{Publisher: p})
			}
			var fault *stream.Error
			if !errors.As(err, &fault) || !strings.Contains(err.Error(), tt.want) || fault.Fault != tt.fault || fault.Permanent {
				t.Errorf("got %v (%+v)\nwant a fault of the %v with %q", err, fault, tt.fault, tt.want)
			}
		})
	}
}

// If a limit is lowered below what the stream holds, the error has both figures once the stream was opened again.
func TestLoweredLimitIsTold(t *testing.T) {
	srv := streamtest.Start(t)
	p := publishertest.Open(t, srv)
	refused := func(seq int64) string {
		t.Helper()
		if err := p.Publish(publishertest.Event(seq)); err != nil {
			t.Fatal(err)
		}
		o := publishertest.Collect(t, p, 1)[seq]
		if o.Err == nil {
			t.Fatal("it is stored")
		}
		return o.Err.Error()
	}
	for seq := range int64(10) {
		if err := p.Publish(publishertest.Event(seq)); err != nil {
			t.Fatal(err)
		}
	}
	publishertest.Collect(t, p, 10)
	js := srv.JetStream(t)
	known, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	config := known.CachedInfo().Config
	config.MaxMsgs, config.Discard = 4, jetstream.DiscardNew
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if got, want := refused(10), `stream "OUTBOX" is full: it has got a limit (max_msgs), and refuses new messages`; !strings.Contains(got, want) {
		t.Errorf("at first: %s, want %s", got, want)
	}
	if _, err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := refused(10), `stream "OUTBOX" is full: it has 10 of 4 messages (max_msgs) and refuses new messages`; !strings.Contains(got, want) {
		t.Errorf("later: %s, want %s", got, want)
	}
}
