package publisher_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// withoutPermission makes a server whose user "relay" may not publish to some subjects, nor subscribe to others.
func withoutPermission(publish, subscribe []string) func(*server.Options) {
	return func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "admin", Password: "admin"},
			{Username: "relay", Password: "relay", Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Deny: publish},
				Subscribe: &server.SubjectPermission{Deny: subscribe},
			}},
		}
		o.NoAuthUser = "admin"
	}
}

func restricted(t *testing.T, srv *streamtest.Server, create bool) *publishertest.Publisher {
	t.Helper()
	p, err := publisher.New(publisher.Options{
		Connect: stream.ConnectOptions{URL: strings.Replace(srv.URL(), "://", "://relay:relay@", 1)},
		Setup:   stream.Setup{Create: create},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return &publishertest.Publisher{Publisher: p}
}

// of makes an event of an aggregate, whose subject is outbox.t.A.<aggregate>.
func of(seq int64, aggregate string) *stream.Event {
	ev := publishertest.Event(seq)
	ev.AggregateID = aggregate
	return ev
}

func createStream(t *testing.T, srv *streamtest.Server) {
	t.Helper()
	if _, err := srv.JetStream(t).CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "OUTBOX", Subjects: []string{"outbox.>", "_outbox.OUTBOX.*"}, AllowBatchPublish: true, Duplicates: time.Minute,
	}); err != nil {
		t.Fatal(err)
	}
}

// A violation refuses the event whose subject it names, at whatever place, and no other one; what it stops of an ordered
// batch can be sent again at once.
func TestAnEventsSubjectIsDenied(t *testing.T) {
	for _, denied := range [][]int64{{1}, {4}, {6}, {1, 2}, {3, 5}, {1, 2, 3, 4, 5, 6}} {
		for way, ordered := range map[string]bool{"by itself": false, "in an ordered batch": true} {
			t.Run(fmt.Sprintf("%s %v", way, denied), func(t *testing.T) {
				srv := streamtest.Start(t, withoutPermission([]string{"outbox.t.A.denied"}, nil))
				createStream(t, srv)
				p := restricted(t, srv, false)
				if _, err := p.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
				if _, err := p.Fence(t.Context(), "x", 1); err != nil {
					t.Fatal(err)
				}
				send := p.Publish
				if ordered {
					send = p.PublishOrdered
				}
				start := time.Now()
				var want []string
				for seq := int64(1); seq <= 6; seq++ {
					aggregate := "allowed"
					if slices.Contains(denied, seq) {
						aggregate = "denied"
					} else if !ordered || seq < denied[0] {
						want = append(want, fmt.Sprint(seq))
					}
					if err := send(of(seq, aggregate)); err != nil {
						t.Fatal(err)
					}
				}
				p.Finish()
				for seq, o := range publishertest.Collect(t, p, 6) {
					var permission *stream.PermissionError
					first := seq == denied[0] || !ordered && slices.Contains(denied, seq)
					switch {
					case ordered && seq > denied[0]:
						if o.Err == nil || !o.Retry || o.Err.Ambiguous() {
							t.Errorf("event %d, after the denied one: %+v, want that it can be sent again at once", seq, o)
						}
					case first && (!errors.As(o.Err, &permission) || permission.Subject != "outbox.t.A.denied" || o.Err.Fault != stream.FaultRow || o.Err.Permanent || o.Err.Ambiguous()):
						t.Errorf("the denied event %d: %+v", seq, o)
					case !first && o.Err != nil:
						t.Errorf("event %d: %v", seq, o.Err)
					}
				}
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("it took %v", took)
				}
				if _, trouble := p.Collect(nil); trouble != nil {
					t.Errorf("trouble for all: %v", trouble)
				}
				if got := publishertest.Payloads(t, srv); !slices.Equal(got, want) {
					t.Errorf("the stream holds %q, want %q", got, want)
				}
				if p.BatchWindow() != 0 {
					t.Error("the next events would go in an ordered batch")
				}
			})
		}
	}
}

// What a request is denied is its error, at once, with the permission to give.
func TestARequestIsDenied(t *testing.T) {
	open := func(ctx context.Context, p *publishertest.Publisher) error {
		_, err := p.Open(ctx)
		return err
	}
	after := func(next func(ctx context.Context, p *publishertest.Publisher) error) func(ctx context.Context, p *publishertest.Publisher) error {
		return func(ctx context.Context, p *publishertest.Publisher) error {
			if err := open(ctx, p); err != nil {
				return fmt.Errorf("open: %w", err)
			}
			return next(ctx, p)
		}
	}
	fence := func(ctx context.Context, p *publishertest.Publisher) error {
		_, err := p.Fence(ctx, "x", 1)
		return err
	}
	scan := func(ctx context.Context, p *publishertest.Publisher) error {
		if err := fence(ctx, p); err != nil {
			return fmt.Errorf("fence: %w", err)
		}
		if err := fence(ctx, p); err != nil {
			return fmt.Errorf("fence: %w", err)
		}
		f, err := p.Fence(ctx, "x", 1)
		if err != nil {
			return fmt.Errorf("fence: %w", err)
		}
		return p.History().Scan(ctx, 0, f, func(history.Found) error { return nil })
	}
	for name, tt := range map[string]struct {
		publish, subscribe string
		absent             bool
		ask                func(ctx context.Context, p *publishertest.Publisher) error
		want               string
	}{
		"info":     {"$JS.API.STREAM.INFO.OUTBOX", "", false, open, "publish to $JS.API.STREAM.INFO.OUTBOX: permit it"},
		"create":   {"$JS.API.STREAM.CREATE.*", "", true, open, "publish to $JS.API.STREAM.CREATE.OUTBOX: permit it"},
		"inbox":    {"", "_INBOX.>", false, open, "subscribe to _INBOX.>"},
		"look":     {"$JS.API.STREAM.MSG.GET.>", "", false, after(fence), "publish to $JS.API.STREAM.MSG.GET.OUTBOX: permit it"},
		"fence":    {"_outbox.>", "", false, after(fence), "publish to _outbox.OUTBOX.*: permit it"},
		"consumer": {"$JS.API.CONSUMER.CREATE.>", "", false, after(scan), "publish to $JS.API.CONSUMER.CREATE.OUTBOX.>: permit it"},
		"next":     {"$JS.API.CONSUMER.MSG.NEXT.>", "", false, after(scan), "publish to $JS.API.CONSUMER.MSG.NEXT.OUTBOX.>: permit it"},
	} {
		t.Run(name, func(t *testing.T) {
			var publish, subscribe []string
			if tt.publish != "" {
				publish = []string{tt.publish}
			}
			if tt.subscribe != "" {
				subscribe = []string{tt.subscribe}
			}
			srv := streamtest.Start(t, withoutPermission(publish, subscribe))
			if !tt.absent {
				createStream(t, srv)
			}
			p := restricted(t, srv, true)
			for range 2 { // It is said each time.
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				start := time.Now()
				err := tt.ask(ctx, p)
				cancel()
				if err == nil || !strings.Contains(err.Error(), tt.want) || stream.Classify(err).Fault != stream.FaultSetup {
					t.Errorf("got %v, want a fault of the set-up with %q", err, tt.want)
				}
				if took := time.Since(start); took > 3*time.Second {
					t.Errorf("it took %v", took)
				}
			}
		})
	}
}
