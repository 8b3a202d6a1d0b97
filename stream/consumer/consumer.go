package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-outbox/go-outbox/election"
)

// ErrRunning is returned by Run if the consumer runs already.
var ErrRunning = errors.New("the consumer runs already")

const (
	// recordEvery is how often the position is recorded.
	recordEvery = time.Second
	// lastWords bounds what is still asked of Postgres after the end.
	lastWords = 700 * time.Millisecond
	// retryFirst and retryMost are the pauses after Postgres, NATS or the stream could not be used.
	retryFirst = 100 * time.Millisecond
	retryMost  = 2 * time.Second
)

// Consumer applies the effects of a stream's events, each once.
type Consumer struct {
	config  Config
	tables  tables
	log     *slog.Logger
	running atomic.Bool
	counts  counts

	mu     sync.Mutex
	state  State
	reason string // Why it waits.
	term   *term  // Nil while another leads.
}

// New returns a consumer. It connects to nothing.
func New(config Config) (*Consumer, error) {
	config, err := config.validated()
	if err != nil {
		return nil, err
	}
	return &Consumer{
		config: config,
		tables: tablesOf(config.Schema),
		log:    config.Logger.With(slog.String("consumer", config.Name)),
		state:  Stopped,
	}, nil
}

// Run consumes until ctx ends, and then returns nil. It waits for Postgres, NATS and the stream. Its only error is [ErrRunning].
func (c *Consumer) Run(ctx context.Context) error {
	if !c.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer c.running.Store(false)
	defer c.become(Stopped, "")

	c.become(Waiting, "")
	if !c.config.SkipMigration {
		c.repeat(ctx, c.Migrate)
	}
	lock := &session{pool: c.config.Pool}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		_ = lock.Close(ctx)
	}()
	elector := election.NewAdvisoryLock(lock, election.AdvisoryLockOptions{
		Key:           int64(lockKey),
		Table:         fold(c.config.Schema + " " + c.config.Name),
		ResignChannel: fmt.Sprintf("outbox_consumer_%08x", uint32(fold(c.config.Schema+" "+c.config.Name))),
		Logger:        c.log,
	})
	c.become(StandingBy, "")
	return elector.Run(ctx, func(ctx context.Context, _ *election.Lease) error {
		c.become(Waiting, "")
		c.repeat(ctx, c.lead)
		c.become(StandingBy, "")
		return nil
	})
}

// repeat calls f until it succeeds or ctx ends, and tells why it does not.
func (c *Consumer) repeat(ctx context.Context, f func(context.Context) error) {
	told := ""
	for pause := retryFirst; ctx.Err() == nil; pause = min(2*pause, retryMost) {
		began := time.Now()
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Since(began) > retryMost {
			pause, told = retryFirst, ""
		}
		if why := err.Error(); why != told {
			told = why
			c.log.WarnContext(ctx, "waiting", slog.String("because", why))
		}
		c.become(Waiting, err.Error())
		sleep(ctx, pause)
	}
}

// lead consumes until ctx ends, or the position cannot be read.
func (c *Consumer) lead(ctx context.Context) error {
	at, err := c.recorded(ctx)
	if err != nil {
		return err
	}
	t := newTerm(c, at)
	c.mu.Lock()
	c.term = t
	c.mu.Unlock()
	t.run(ctx)
	c.mu.Lock()
	c.term = nil
	c.mu.Unlock()
	return ctx.Err()
}

func (c *Consumer) become(state State, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.reason = state, reason
}

// sleep waits for a time, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
