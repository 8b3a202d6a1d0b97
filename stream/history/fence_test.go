package history_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/history"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// last returns the stream's last sequence.
func last(t *testing.T, js jetstream.JetStream) uint64 {
	t.Helper()
	str, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	return str.CachedInfo().State.LastSeq
}

// What a leader of an earlier term has yet to begin is refused as a whole, whether or not it had a fence of its own.
func TestFenceRefusesEarlierTerms(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T, p *publishertest.Publisher) error{
		"fenced": func(t *testing.T, p *publishertest.Publisher) error {
			t.Helper()
			_, err := p.Fence(t.Context(), publishertest.Outbox, 1)
			return err
		},
		"first": func(t *testing.T, p *publishertest.Publisher) error {
			t.Helper()
			f, err := p.FirstFence(t.Context(), publishertest.Outbox, 1)
			if err == nil && f.Sequence != 0 {
				err = fmt.Errorf("it stands at %d, want the end of an empty stream", f.Sequence)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := streamtest.Start(t)
			former, latter := publishertest.Connect(t, server), publishertest.Connect(t, server)
			if err := begin(t, former); err != nil {
				t.Fatal(err)
			}
			publishertest.SendOrdered(t, former, publishertest.Event(1), publishertest.Event(2))
			former.Finish()
			publishertest.Collect(t, former, 2)

			begun := publishertest.Fence(t, latter, 2)
			if got := last(t, server.JetStream(t)); begun.Sequence != got {
				t.Errorf("the fence stands at %d, the stream ends at %d", begun.Sequence, got)
			}
			publishertest.SendOrdered(t, former, publishertest.Event(3), publishertest.Event(4))
			former.Finish()
			for seq, o := range publishertest.Collect(t, former, 2) {
				if o.Err == nil {
					t.Errorf("event %d of the former term is stored", seq)
				}
			}
			publishertest.SendOrdered(t, latter, publishertest.Event(3))
			latter.Finish()
			if o := publishertest.Collect(t, latter, 1)[3]; o.Err != nil {
				t.Errorf("event 3 of the latter term: %v", o.Err)
			}
			if got, want := publishertest.Payloads(t, server), publishertest.Numbers(3); !slices.Equal(got, want) {
				t.Errorf("the stream holds %q, want %q", got, want)
			}

			var deposed *history.DeposedError
			if _, err := former.Fence(t.Context(), publishertest.Outbox, 1); !errors.As(err, &deposed) || deposed.Term != 2 || deposed.Ours != 1 {
				t.Errorf("the former term's next fence: %v, want a DeposedError of terms 2 and 1", err)
			}
		})
	}
}

// The first term of an outbox writes nothing but events; and it sees if it is not the first.
func TestFirstFence(t *testing.T) {
	server := streamtest.Start(t)
	p := publishertest.Connect(t, server)
	if _, err := p.FirstFence(t.Context(), publishertest.Outbox, 1); err != nil {
		t.Fatal(err)
	}
	if got := last(t, server.JetStream(t)); got != 0 {
		t.Errorf("the stream ends at %d, want nothing in it", got)
	}
	publishertest.Fence(t, p, 5)
	if f, err := p.FirstFence(t.Context(), publishertest.Outbox, 6); err != nil || f.Sequence != 2 {
		t.Errorf("after a fence: %+v, %v, want another one, at 2", f, err)
	}
	var deposed *history.DeposedError
	if _, err := p.FirstFence(t.Context(), publishertest.Outbox, 1); !errors.As(err, &deposed) {
		t.Errorf("after a later term's: %v, want a DeposedError", err)
	}
}

// Where the control messages go depends on what the stream takes: apart from the events if possible.
func TestControlSubject(t *testing.T) {
	for _, test := range []struct {
		name     string
		subjects []string
		want     string
	}{
		{"the relay's own stream", nil, "_outbox.OUTBOX." + publishertest.Outbox},
		{"one that takes events only", []string{"outbox.>"}, "outbox.%fence.%fence.%fence-" + publishertest.Outbox},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := streamtest.Start(t)
			js := server.JetStream(t)
			if test.subjects != nil {
				config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: test.subjects, AllowBatchPublish: true}
				if _, err := js.CreateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
			}
			p := publishertest.Connect(t, server)
			f := publishertest.Fence(t, p, 1)
			str, err := js.Stream(t.Context(), "OUTBOX")
			if err != nil {
				t.Fatal(err)
			}
			msg, err := str.GetMsg(t.Context(), f.Sequence)
			if err != nil || msg.Subject != test.want || msg.Header.Get(history.HeaderTerm) != "1" {
				t.Fatalf("message %d is %+v, %v, want term 1 on %s", f.Sequence, msg, err, test.want)
			}
			if _, err := stream.Decode(msg.Header, msg.Data); !errors.Is(err, stream.ErrNoEvent) {
				t.Errorf("Decode: %v, want ErrNoEvent", err)
			}
			publishertest.SendOrdered(t, p, publishertest.Event(1))
			p.Finish()
			publishertest.Collect(t, p, 1)
			if got := publishertest.Scan(t, p, 0, publishertest.Fence(t, p, 2)); fmt.Sprint(got) != "[1]" {
				t.Errorf("scanned %v, want event 1", got)
			}
		})
	}
}

// Two publishers that put up fences at the same time both get one, or learn that they are late.
func TestFencesAtATime(t *testing.T) {
	server := streamtest.Start(t)
	results := make(chan error, 10)
	for term := range cap(results) {
		p := publishertest.Connect(t, server)
		go func() {
			_, err := p.Fence(t.Context(), publishertest.Outbox, int64(term+1))
			results <- err
		}()
	}
	stored := uint64(0)
	for range cap(results) {
		var deposed *history.DeposedError
		switch err := <-results; {
		case err == nil:
			stored++
		case !errors.As(err, &deposed):
			t.Error(err)
		}
	}
	if got := last(t, server.JetStream(t)); stored == 0 || got != stored {
		t.Errorf("%d fences are said to be stored, the stream ends at %d", stored, got)
	}
}

// Messages on the control subject that are not the relay's are skipped, and named: the fences before them count.
func TestForeignMessagesOnTheControlSubject(t *testing.T) {
	subject := "_outbox.OUTBOX." + publishertest.Outbox
	for name, term := range map[string]string{
		"no term": "", "text": "x", "zero": "0", "negative": "-5", "absurd": "9223372036854775807", "more than a bigint": "99999999999999999999",
	} {
		t.Run(name, func(t *testing.T) {
			server := streamtest.Start(t)
			js := server.JetStream(t)
			disturb := func() {
				t.Helper()
				msg := nats.NewMsg(subject)
				msg.Header.Set("X", "\"hello\"")
				if term != "" {
					msg.Header.Set(history.HeaderTerm, term)
				}
				if _, err := js.PublishMsg(t.Context(), msg); err != nil {
					t.Fatal(err)
				}
			}
			p := publishertest.Connect(t, server)
			disturb()
			f, err := p.FirstFence(t.Context(), publishertest.Outbox, 1)
			if err != nil || f.Sequence != 2 || f.Former != 0 || !strings.Contains(f.Warning, "`nats stream rmm OUTBOX 1`") {
				t.Fatalf("after a foreign message: %+v, %v, want a fence at 2 and a warning", f, err)
			}
			if f := publishertest.Fence(t, p, 1); f.Warning != "" || f.Former != 2 {
				t.Errorf("after a fence: %+v, want no warning", f)
			}
			disturb()
			publishertest.SendOrdered(t, p, publishertest.Event(1))
			p.Finish()
			if o := publishertest.Collect(t, p, 1)[1]; o.Err == nil {
				t.Error("a batch begins, although the last message on the control subject is not our fence")
			}
			if f := publishertest.Fence(t, p, 1); f.Former != 3 || f.Warning == "" {
				t.Errorf("after another one: %+v, want the former fence at 3 and a warning", f)
			}
			disturb()
			disturb()
			later := publishertest.Connect(t, server)
			if f := publishertest.Fence(t, later, 7); f.Former != 5 {
				t.Errorf("another term: %+v, want the former fence at 5", f)
			}
			disturb()
			var deposed *history.DeposedError
			if _, err := p.Fence(t.Context(), publishertest.Outbox, 1); !errors.As(err, &deposed) || deposed.Term != 7 {
				t.Errorf("the former term: %v, want that it is deposed by term 7", err)
			}
			if _, err := publishertest.Connect(t, server).FirstFence(t.Context(), publishertest.Outbox, 6); !errors.As(err, &deposed) || deposed.Term != 7 {
				t.Errorf("a term that begins: %v, want that it is deposed by term 7", err)
			}
			publishertest.SendOrdered(t, later, publishertest.Event(2))
			later.Finish()
			publishertest.Collect(t, later, 1)
		})
	}
}

// A message that takes the place of all fences does not keep anybody from putting up another.
func TestRollupOnTheControlSubject(t *testing.T) {
	server := streamtest.Start(t)
	js := server.JetStream(t)
	p := publishertest.Connect(t, server)
	str, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	config := str.CachedInfo().Config
	config.AllowRollup = true
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	publishertest.Fence(t, p, 3)
	msg := nats.NewMsg("_outbox.OUTBOX." + publishertest.Outbox)
	msg.Header.Set("Nats-Rollup", "sub")
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	if f := publishertest.Fence(t, p, 3); f.Sequence != 3 || f.Former != 0 || f.Warning == "" {
		t.Errorf("got %+v, want a fence at 3 and a warning", f)
	}
}
