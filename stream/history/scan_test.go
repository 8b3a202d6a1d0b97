package history_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestScan(t *testing.T) {
	server := streamtest.Start(t)
	p := publishertest.Open(t, server)
	first := publishertest.Fence(t, p, 1)
	for seq := range int64(3000) {
		publishertest.SendOrdered(t, p, publishertest.Event(seq+1))
		if (seq+1)%1000 == 0 {
			p.Finish()
			publishertest.Collect(t, p, 1000)
		}
	}
	second := publishertest.Fence(t, p, 1)
	publishertest.SendOrdered(t, p, publishertest.Event(3001))
	p.Finish()
	publishertest.Collect(t, p, 1)

	got := publishertest.Scan(t, p, 0, second)
	if len(got) != 3000 || !slices.IsSorted(got) || got[0] != 1 || got[2999] != 3000 {
		t.Errorf("scanned %d events, want 1 to 3000 in order", len(got))
	}
	if got := publishertest.Scan(t, p, second.Sequence-11, second); len(got) != 10 || got[0] != 2991 {
		t.Errorf("from the middle: %v, want 2991 to 3000", got)
	}
	if got := publishertest.Scan(t, p, 0, first); len(got) != 0 {
		t.Errorf("before the first fence: %v, want nothing", got)
	}
	if got := publishertest.Scan(t, p, second.Sequence, second); len(got) != 0 {
		t.Errorf("from the fence on: %v, want nothing", got)
	}
	stop := errors.New("stop")
	if err := p.History().Scan(t.Context(), 0, second, func(history.Found) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Scan returned %v, want the error of visit", err)
	}
	// A fence that is not there any more does not hold it up for longer than its context allows.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	beyond := history.Fence{Sequence: second.Sequence + 100}
	var fault *stream.Error
	if err := p.History().Scan(ctx, 0, beyond, func(history.Found) error { return nil }); !errors.As(err, &fault) || fault.Fault != stream.FaultWeather {
		t.Errorf("to a fence that is not there: %v, want weather", err)
	}
}

// Verify tells whatever the stream may have lost.
func TestVerify(t *testing.T) {
	publish := func(t *testing.T, p *publishertest.Publisher, seqs ...int64) {
		t.Helper()
		for _, seq := range seqs {
			if err := p.Publish(publishertest.Event(seq)); err != nil {
				t.Fatal(err)
			}
		}
		publishertest.Collect(t, p, len(seqs))
	}
	nothing := func(*testing.T, jetstream.JetStream, *publishertest.Publisher) {}
	for _, test := range []struct {
		name   string
		change func(t *testing.T, js jetstream.JetStream, p *publishertest.Publisher)
		acked  uint64
		want   string // In the error; empty for none.
	}{
		{name: "nothing happened", change: nothing},
		{name: "more was published", acked: 4, change: func(t *testing.T, _ jetstream.JetStream, p *publishertest.Publisher) {
			t.Helper()
			publish(t, p, 4)
		}},
		{name: "created anew", want: "was created anew", change: func(t *testing.T, js jetstream.JetStream, p *publishertest.Publisher) {
			t.Helper()
			if err := js.DeleteStream(t.Context(), "OUTBOX"); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			publish(t, p, 1, 2, 3)
		}},
		{name: "less was stored than acknowledged", acked: 9, want: "although it acknowledged 9", change: nothing},
		{name: "purged", change: func(t *testing.T, js jetstream.JetStream, _ *publishertest.Publisher) {
			t.Helper()
			str, err := js.Stream(t.Context(), "OUTBOX")
			if err != nil {
				t.Fatal(err)
			}
			if err := str.Purge(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := streamtest.Start(t)
			p := publishertest.Open(t, server)
			publish(t, p, 1, 2, 3)
			before, err := p.Verify(t.Context(), history.State{}, 3)
			if err != nil || before.Last != 3 {
				t.Fatalf("the first look: %+v, %v", before, err)
			}
			test.change(t, server.JetStream(t), p)
			_, err = p.Verify(t.Context(), before, test.acked)
			var lost *stream.LostError
			switch {
			case test.want == "" && err != nil:
				t.Errorf("got %v, want nothing to complain of", err)
			case test.want != "" && (!errors.As(err, &lost) || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want a LostError with %q", err, test.want)
			}
		})
	}
}
