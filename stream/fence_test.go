package stream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

const outboxName = "5f6f4e5c-1b5e-4a37-9a1b-0d5f3c1f7a10"

func fence(t *testing.T, p *stream.Publisher, term int64) stream.Fence {
	t.Helper()
	f, err := p.Fence(t.Context(), outboxName, term)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

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
	for name, begin := range map[string]func(t *testing.T, p *stream.Publisher) error{
		"fenced": func(t *testing.T, p *stream.Publisher) error {
			t.Helper()
			_, err := p.Fence(t.Context(), outboxName, 1)
			return err
		},
		"unfenced": func(t *testing.T, p *stream.Publisher) error {
			t.Helper()
			f, err := p.Unfenced(t.Context(), outboxName, 1)
			if err == nil && f.Sequence != 0 {
				err = fmt.Errorf("it stands at %d, want the end of an empty stream", f.Sequence)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := streamtest.Start(t)
			former, latter := newPublisher(t, server), newPublisher(t, server)
			if err := begin(t, former); err != nil {
				t.Fatal(err)
			}
			sendInOrder(t, former, numbered(1), numbered(2))
			former.Finish()
			collect(t, former, 2)

			begun := fence(t, latter, 2)
			if got := last(t, server.JetStream(t)); begun.Sequence != got {
				t.Errorf("the fence stands at %d, the stream ends at %d", begun.Sequence, got)
			}
			sendInOrder(t, former, numbered(3), numbered(4))
			former.Finish()
			for seq, o := range collect(t, former, 2) {
				if o.Err == nil {
					t.Errorf("event %d of the former term is stored", seq)
				}
			}
			sendInOrder(t, latter, numbered(3))
			latter.Finish()
			if o := collect(t, latter, 1)[3]; o.Err != nil {
				t.Errorf("event 3 of the latter term: %v", o.Err)
			}
			if got, want := payloads(t, server), numbers(3); !slices.Equal(got, want) {
				t.Errorf("the stream holds %q, want %q", got, want)
			}

			var deposed *stream.DeposedError
			if _, err := former.Fence(t.Context(), outboxName, 1); !errors.As(err, &deposed) || deposed.Term != 2 || deposed.Ours != 1 {
				t.Errorf("the former term's next fence: %v, want a DeposedError of terms 2 and 1", err)
			}
		})
	}
}

// The first term of an outbox writes nothing but events; and it sees if it is not the first.
func TestUnfenced(t *testing.T) {
	server := streamtest.Start(t)
	p := newPublisher(t, server)
	if _, err := p.Unfenced(t.Context(), outboxName, 1); err != nil {
		t.Fatal(err)
	}
	if got := last(t, server.JetStream(t)); got != 0 {
		t.Errorf("the stream ends at %d, want nothing in it", got)
	}
	fence(t, p, 5)
	if f, err := p.Unfenced(t.Context(), outboxName, 6); err != nil || f.Sequence != 2 {
		t.Errorf("after a fence: %+v, %v, want another one, at 2", f, err)
	}
	var deposed *stream.DeposedError
	if _, err := p.Unfenced(t.Context(), outboxName, 1); !errors.As(err, &deposed) {
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
		{"the relay's own stream", nil, "_outbox.OUTBOX." + outboxName},
		{"one that takes events only", []string{"outbox.>"}, "outbox.%fence.%fence.%fence-" + outboxName},
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
			p := newPublisher(t, server)
			f := fence(t, p, 1)
			str, err := js.Stream(t.Context(), "OUTBOX")
			if err != nil {
				t.Fatal(err)
			}
			msg, err := str.GetMsg(t.Context(), f.Sequence)
			if err != nil || msg.Subject != test.want || msg.Header.Get(stream.HeaderTerm) != "1" {
				t.Fatalf("message %d is %+v, %v, want term 1 on %s", f.Sequence, msg, err, test.want)
			}
			if _, err := stream.Decode(msg.Header, msg.Data); !errors.Is(err, stream.ErrNoEvent) {
				t.Errorf("Decode: %v, want ErrNoEvent", err)
			}
			sendInOrder(t, p, numbered(1))
			p.Finish()
			collect(t, p, 1)
			if got := scan(t, p, 0, fence(t, p, 2)); fmt.Sprint(got) != "[1]" {
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
		p := newPublisher(t, server)
		go func() {
			_, err := p.Fence(t.Context(), outboxName, int64(term+1))
			results <- err
		}()
	}
	stored := uint64(0)
	for range cap(results) {
		var deposed *stream.DeposedError
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
	subject := "_outbox.OUTBOX." + outboxName
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
					msg.Header.Set(stream.HeaderTerm, term)
				}
				if _, err := js.PublishMsg(t.Context(), msg); err != nil {
					t.Fatal(err)
				}
			}
			p := newPublisher(t, server)
			disturb()
			f, err := p.Unfenced(t.Context(), outboxName, 1)
			if err != nil || f.Sequence != 2 || f.Former != 0 || !strings.Contains(f.Warning, "`nats stream rmm OUTBOX 1`") {
				t.Fatalf("after a foreign message: %+v, %v, want a fence at 2 and a warning", f, err)
			}
			if f := fence(t, p, 1); f.Warning != "" || f.Former != 2 {
				t.Errorf("after a fence: %+v, want no warning", f)
			}
			disturb()
			sendInOrder(t, p, numbered(1))
			p.Finish()
			if o := collect(t, p, 1)[1]; o.Err == nil {
				t.Error("a batch begins, although the last message on the control subject is not our fence")
			}
			if f := fence(t, p, 1); f.Former != 3 || f.Warning == "" {
				t.Errorf("after another one: %+v, want the former fence at 3 and a warning", f)
			}
			disturb()
			disturb()
			later := newPublisher(t, server)
			if f := fence(t, later, 7); f.Former != 5 {
				t.Errorf("another term: %+v, want the former fence at 5", f)
			}
			disturb()
			var deposed *stream.DeposedError
			if _, err := p.Fence(t.Context(), outboxName, 1); !errors.As(err, &deposed) || deposed.Term != 7 {
				t.Errorf("the former term: %v, want that it is deposed by term 7", err)
			}
			if _, err := newPublisher(t, server).Unfenced(t.Context(), outboxName, 6); !errors.As(err, &deposed) || deposed.Term != 7 {
				t.Errorf("a term that begins: %v, want that it is deposed by term 7", err)
			}
			sendInOrder(t, later, numbered(2))
			later.Finish()
			collect(t, later, 1)
		})
	}
}

// A message that takes the place of all fences does not keep anybody from putting up another.
func TestRollupOnTheControlSubject(t *testing.T) {
	server := streamtest.Start(t)
	js := server.JetStream(t)
	p := newPublisher(t, server)
	str, err := js.Stream(t.Context(), "OUTBOX")
	if err != nil {
		t.Fatal(err)
	}
	config := str.CachedInfo().Config
	config.AllowRollup = true
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	fence(t, p, 3)
	msg := nats.NewMsg("_outbox.OUTBOX." + outboxName)
	msg.Header.Set("Nats-Rollup", "sub")
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	if f := fence(t, p, 3); f.Sequence != 3 || f.Former != 0 || f.Warning == "" {
		t.Errorf("got %+v, want a fence at 3 and a warning", f)
	}
}

func scan(t *testing.T, p *stream.Publisher, above uint64, f stream.Fence) (seqs []int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := p.Scan(ctx, above, f, func(found stream.Found) error {
		if !found.Event {
			return nil // An earlier fence.
		}
		if found.ID == uuid.Nil || found.Stored == 0 || found.Size != len(strconv.FormatInt(found.Seq, 10)) {
			t.Errorf("found %+v", found)
		}
		seqs = append(seqs, found.Seq)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seqs
}
