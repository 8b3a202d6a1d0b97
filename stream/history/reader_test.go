package history_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// dial connects a reader to the stream OUTBOX.
func dial(t *testing.T, options stream.ConnectOptions) *history.Reader {
	t.Helper()
	r, err := history.Dial(t.Context(), options, stream.Setup{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func TestFollow(t *testing.T) {
	srv := streamtest.Start(t)
	js := srv.JetStream(t)
	r := dial(t, stream.ConnectOptions{URL: srv.URL()})
	if _, err := r.Extent(t.Context()); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("the extent of a stream that is not there: %v", err)
	}
	str, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, Duplicates: stream.DefaultDuplicateWindow})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := r.Extent(t.Context()); err != nil || e.First != 1 && e.First != 0 || e.Last != 0 || e.Gaps || e.Consumed || e.Created.IsZero() {
		t.Errorf("the extent of an empty stream: %+v, %v", e, err)
	}
	for i := range 6 {
		msg := nats.NewMsg(fmt.Sprintf("outbox.t.A.%d", i%2))
		msg.Header.Set(stream.HeaderSeq, fmt.Sprint(i+1))
		msg.Header.Set(stream.HeaderMsgID, uuid.NewString())
		msg.Data = []byte("data")
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	for _, sequence := range []uint64{2, 6} {
		if err := str.DeleteMsg(t.Context(), sequence); err != nil {
			t.Fatal(err)
		}
	}
	enough := errors.New("enough")
	for name, c := range map[string]struct {
		stretch history.Stretch
		stop    uint64 // Visit returns enough here.
		want    []uint64
	}{
		"up to a message":                   {stretch: history.Stretch{Until: 4}, want: []uint64{1, 3, 4}},
		"after a message":                   {stretch: history.Stretch{Above: 3, Until: 5}, want: []uint64{4, 5}},
		"up to one that was removed":        {stretch: history.Stretch{Until: 2}, want: []uint64{1}},
		"up to the last, which was removed": {stretch: history.Stretch{Until: 6}, want: []uint64{1, 3, 4, 5}},
		"nothing to read":                   {stretch: history.Stretch{Above: 4, Until: 4}},
		"nothing left":                      {stretch: history.Stretch{Above: 5, Until: 6}},
		"a subject":                         {stretch: history.Stretch{Until: 5, Filter: "outbox.t.A.1"}, want: []uint64{4}},
		"with payloads":                     {stretch: history.Stretch{Until: 5, Data: true}, want: []uint64{1, 3, 4, 5}},
		"until visit has enough":            {stretch: history.Stretch{}, stop: 3, want: []uint64{1, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []uint64
			err := r.Follow(t.Context(), c.stretch, func(m *history.Message) error {
				got = append(got, m.Stored)
				if !m.Event || m.Seq != int64(m.Stored) || m.Size != 4 || m.Time().IsZero() || c.stretch.Data != (string(m.Msg.Data) == "data") {
					t.Errorf("message %d: %+v, data %q", m.Stored, m.Found, m.Msg.Data)
				}
				if m.Stored == c.stop {
					return enough
				}
				return nil
			})
			if c.stop > 0 != errors.Is(err, enough) || c.stop == 0 && err != nil || !slices.Equal(got, c.want) {
				t.Errorf("visited %v, %v, want %v", got, err, c.want)
			}
		})
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	err = r.Follow(ctx, history.Stretch{Above: 3}, func(m *history.Message) error {
		if m.Stored == 5 {
			cancel(enough)
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("after the end of its context: %v, want its cause", err)
	}
}

// A denied request is named, and not waited for.
func TestReaderIsDenied(t *testing.T) {
	srv := streamtest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "reader", Password: "x", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"$JS.API.STREAM.INFO.OUTBOX"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		}}, {Username: "admin", Password: "x"}}
	})
	js, err := jetstream.New(srv.Conn(t, nats.UserInfo("admin", "x")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "outbox.a", nil); err != nil {
		t.Fatal(err)
	}
	r := dial(t, stream.ConnectOptions{URL: strings.Replace(srv.URL(), "://", "://reader:x@", 1)})
	if _, err := r.Extent(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = r.Follow(t.Context(), history.Stretch{Until: 1}, func(*history.Message) error { return nil })
	fault, ok := errors.AsType[*stream.Error](err)
	if !ok || fault.Fault != stream.FaultSetup || !strings.Contains(err.Error(), "may not publish to $JS.API.CONSUMER.CREATE.OUTBOX.>") {
		t.Errorf("reading what is denied: %v, want the permission to give", err)
	}
}
