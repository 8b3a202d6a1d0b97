package publisher_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
	"github.com/go-outbox/go-outbox/stream/publisher/publishertest"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// again is an event of another row that has the ID of this one.
func again(ev *stream.Event, seq int64) *stream.Event {
	twin := *ev
	twin.Seq = seq
	twin.Data = []byte("twin")
	return &twin
}

// If two rows with one ID are sent by themselves, the second outcome says that it is a duplicate, and of which message.
func TestDuplicateNamesTheOriginal(t *testing.T) {
	srv := streamtest.Start(t)
	p := publishertest.Open(t, srv)
	for _, ev := range []*stream.Event{publishertest.Event(1), publishertest.Event(2), again(publishertest.Event(1), 3)} {
		if err := p.Publish(ev); err != nil {
			t.Fatal(err)
		}
	}
	outcomes := publishertest.Collect(t, p, 3)
	if first := outcomes[1]; first.Duplicate || first.Err != nil || first.Stored == 0 {
		t.Errorf("the first: %+v", first)
	}
	o := outcomes[3]
	if !o.Duplicate || o.Err != nil || o.Stored != outcomes[1].Stored {
		t.Fatalf("the second: %+v, want a duplicate of %+v", o, outcomes[1])
	}
	found, err := p.Find(t.Context(), o.Stored)
	if err != nil || !found.Event || found.Seq != 1 || found.ID != publishertest.Event(1).ID || found.Stored != o.Stored {
		t.Errorf("the original: %+v, %v, want event 1", found, err)
	}
}

// An ordered batch that skips an ID says so at its end, wherever in it that was, and whoever else writes to the stream
// in between makes no false alarm.
func TestBatchTellsThatItSkipped(t *testing.T) {
	for name, test := range map[string]struct {
		known []int64 // Stored before.
		sent  []*stream.Event
		skips bool
		most  uint64
	}{
		"nothing":            {sent: []*stream.Event{publishertest.Event(11), publishertest.Event(12)}},
		"the first":          {known: []int64{1}, sent: []*stream.Event{again(publishertest.Event(1), 11), publishertest.Event(12)}, skips: true, most: 1},
		"the last":           {known: []int64{1}, sent: []*stream.Event{publishertest.Event(11), again(publishertest.Event(1), 12)}, skips: true, most: 1},
		"all":                {known: []int64{1, 2}, sent: []*stream.Event{again(publishertest.Event(1), 11), again(publishertest.Event(2), 12)}, skips: true, most: 0},
		"one of the batch's": {sent: []*stream.Event{publishertest.Event(11), again(publishertest.Event(11), 12), publishertest.Event(13)}, skips: true, most: 2},
	} {
		t.Run(name, func(t *testing.T) {
			srv := streamtest.Start(t)
			p := publishertest.Open(t, srv)
			for _, seq := range test.known {
				publishertest.SendOrdered(t, p, publishertest.Event(seq))
			}
			p.Finish()
			publishertest.Collect(t, p, len(test.known))
			publishertest.SendOrdered(t, p, test.sent...)
			p.Finish()
			outcomes, trouble := collectAll(t, p, len(test.sent), test.skips)
			for _, o := range outcomes {
				if o.Err != nil {
					t.Errorf("event %d: %v", o.Seq, o.Err)
				}
			}
			var skipped *publisher.SkippedError
			switch {
			case !test.skips && trouble != nil:
				t.Errorf("a false alarm: %v", trouble)
			case test.skips && (trouble == nil || !errors.As(trouble, &skipped) || skipped.Most != test.most || skipped.Events != uint64(len(test.sent))):
				t.Errorf("got %v, want at most %d of %d", trouble, test.most, len(test.sent))
			}
			if got := p.BatchWindow() == 0; got != test.skips {
				t.Errorf("batches rest is %v, want %v", got, test.skips)
			}
		})
	}
}

// collectAll waits for n outcomes, and for trouble if there is to be some.
func collectAll(t *testing.T, p *publishertest.Publisher, n int, troubled bool) (outcomes []publisher.Outcome, trouble *stream.Error) {
	t.Helper()
	streamtest.Eventually(t, func() bool {
		some, again := p.Collect(nil)
		outcomes = append(outcomes, some...)
		if again != nil {
			trouble = again
		}
		return len(outcomes) == n && (trouble != nil || !troubled)
	})
	return outcomes, trouble
}

// Batches, plain publishes and other writers in turns: never a false alarm.
func TestNoFalseAlarms(t *testing.T) {
	srv := streamtest.Start(t)
	p := publishertest.Open(t, srv)
	js := srv.JetStream(t)
	publishertest.Fence(t, p, 1)
	seq := int64(0)
	next := func() *stream.Event { seq++; return publishertest.Event(seq) }
	for round := range 20 {
		if round%3 == 0 {
			publishertest.Fence(t, p, 1)
		}
		if _, err := js.Publish(t.Context(), "outbox.x.y.z", nil); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if err := p.Publish(next()); err != nil {
				t.Fatal(err)
			}
		}
		first, trouble := collectAll(t, p, 5, false)
		for range 700 {
			publishertest.SendOrdered(t, p, next())
		}
		p.Finish()
		second, again := collectAll(t, p, 700, false)
		if trouble != nil || again != nil {
			t.Fatalf("trouble: %v, %v", trouble, again)
		}
		for _, o := range slices.Concat(first, second) {
			if o.Err != nil || o.Duplicate {
				t.Fatalf("event %d: %+v", o.Seq, o)
			}
		}
		if round%5 == 0 {
			if _, err := p.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}
