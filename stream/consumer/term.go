package consumer

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// recordedPlace is where the consumer is, as the database knows it.
type recordedPlace struct {
	place

	stream  string
	created time.Time // When the stream was created.
}

// recorded reads the position; the zero value if there is none.
func (c *Consumer) recorded(ctx context.Context) (at recordedPlace, err error) {
	var sequence, stored int64
	err = c.config.Pool.QueryRow(ctx, c.tables.position, c.config.Name).Scan(&at.stream, &at.created, &sequence, &stored)
	if errors.Is(err, pgx.ErrNoRows) {
		return recordedPlace{}, nil
	}
	if err != nil {
		return recordedPlace{}, fmt.Errorf("read the position: %w", err)
	}
	at.place = place{sequence: uint64(sequence), stored: time.Unix(0, stored)}
	return at, nil
}

// term is a time for which this process consumes.
type term struct {
	*Consumer

	began   recordedPlace
	pending pending
	slots   chan struct{} // One is taken by each message that is read and not done.
	lanes   []*lane
	seed    maphash.Seed

	mu       sync.Mutex
	at       place     // What was read last.
	created  time.Time // The creation of the stream that is read; zero before it is known.
	recorded place
	left     atomic.Uint64 // How many messages are in the stream after the last one that was read.
}

func newTerm(c *Consumer, began recordedPlace) *term {
	t := &term{Consumer: c, began: began, slots: make(chan struct{}, c.config.MaxPending), seed: maphash.MakeSeed()}
	t.lanes = make([]*lane, c.config.Lanes)
	for i := range t.lanes {
		t.lanes[i] = &lane{term: t, queue: make(chan *message, c.config.MaxPending), known: map[string]entered{}}
	}
	return t
}

// run reads and handles until ctx ends, and lets the handlers that are at work then finish.
func (t *term) run(ctx context.Context) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { time.AfterFunc(t.config.StopTimeout, cancel) })
	defer unhook()

	var lanes sync.WaitGroup
	for _, l := range t.lanes {
		lanes.Go(func() { l.run(ctx, work) })
	}
	var recorder sync.WaitGroup
	recorder.Go(func() { t.recordAtTimes(ctx) })
	t.repeat(ctx, t.read)
	t.become(Stopping, "")
	lanes.Wait()
	recorder.Wait()

	final, done := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer done()
	if err := t.record(final); err != nil {
		t.log.WarnContext(ctx, "the position is not recorded; the next one to lead skips what was handled", slog.Any("error", err))
	}
}

// recordAtTimes records the position about every second, if there is news.
func (t *term) recordAtTimes(ctx context.Context) {
	for told := false; ctx.Err() == nil; sleep(ctx, recordEvery) {
		err := t.record(ctx)
		if err != nil && !told && ctx.Err() == nil {
			t.log.WarnContext(ctx, "the position is not recorded; trying again", slog.Any("error", err))
		}
		told = err != nil
	}
}

// record records the position, if it is news.
func (t *term) record(ctx context.Context) error {
	at, _ := t.pending.lowest()
	t.mu.Lock()
	created, recorded := t.created, t.recorded
	t.mu.Unlock()
	if at == recorded || at.sequence == 0 || created.IsZero() {
		return nil
	}
	if _, err := t.config.Pool.Exec(ctx, t.tables.record, t.config.Name, t.config.Stream, created, int64(at.sequence), at.stored.UnixNano()); err != nil {
		return fmt.Errorf("record the position: %w", err)
	}
	t.mu.Lock()
	t.recorded = at
	t.mu.Unlock()
	return nil
}

// lane returns the one for an aggregate.
func (t *term) lane(key string) *lane {
	return t.lanes[maphash.String(t.seed, key)%uint64(len(t.lanes))]
}

// done takes note that a message needs nothing more.
func (t *term) done(m *message) {
	t.pending.done(m)
	<-t.slots
}
