package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Time budgets that electors share.
const (
	// LeaseDuration is how long a leader may act after the start of its last good round trip to whoever elected it.
	LeaseDuration = 5 * time.Second
	// DefaultRetry is how often a standby of a [KeyValue] reads the entry, although it watches it, too.
	DefaultRetry = 750 * time.Millisecond
	// reconnectWait is the pause after the first attempt that did not reach the server. It doubles up to reconnectWaitMax.
	reconnectWait    = 100 * time.Millisecond
	reconnectWaitMax = time.Second
)

// ErrLeaseLost is the cause of the end of a leader's context when its lease could not be renewed.
var ErrLeaseLost = errors.New("lease lost")

// heldLease is a lease that an elector was granted: a held advisory lock or a held entry.
type heldLease interface {
	// until returns when the lease ends unless it is renewed, and false once it is lost for good. It may be called from
	// any goroutine.
	until() (end time.Time, held bool)
	// renew keeps the lease alive until ctx ends, and otherwise returns an ErrLeaseLost with the reason.
	renew(ctx context.Context) error
	// resign gives the lease back if it is still held. It is called after renew has returned.
	resign(ctx context.Context)
}

// campaign is the loop that AdvisoryLock and KeyValue share.
type campaign struct {
	lease time.Duration
	retry time.Duration
	fatal func(error) bool
	log   *slog.Logger

	standingBy atomic.Pointer[time.Time] // When another relay was last seen to lead; nil if none was since this one led.
	trouble    atomic.Pointer[string]    // Why it cannot campaign; nil if it can.
	pulse      Pulse                     // Beats during a term.
}

// newCampaign fills in the defaults.
func newCampaign(lease, retry time.Duration, fatal func(error) bool, log *slog.Logger) *campaign {
	if retry <= 0 {
		retry = DefaultRetry
	}
	if fatal == nil {
		fatal = func(error) bool { return false }
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &campaign{lease: lease, retry: retry, fatal: fatal, log: log}
}

// run implements Run of both. It leads under each lease that acquire returns, and gives the lease back.
func (c *campaign) run(ctx context.Context, acquire func(ctx context.Context) (heldLease, error), lead func(ctx context.Context, lease *Lease) error) error {
	wait, said := reconnectWait, ""
	for ctx.Err() == nil {
		won, err := acquire(ctx)
		switch {
		case err == nil:
			wait, said = reconnectWait, ""
			c.standingBy.Store(nil)
			c.trouble.Store(nil)
			if err := c.serve(ctx, won, lead); err != nil {
				if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
					return nil // Lead says only that it was stopped.
				}
				return err
			}
		case ctx.Err() != nil:
		case c.fatal(err):
			return fmt.Errorf("campaign: %w", err)
		default:
			level := slog.LevelWarn
			if err.Error() == said {
				level = slog.LevelDebug // An outage is logged once, not every second.
			}
			said = err.Error()
			trouble := said
			c.trouble.Store(&trouble)
			c.log.LogAttrs(ctx, level, "cannot campaign for leadership; trying again", slog.Any("error", err), slog.Duration("in", wait))
			pause(ctx, wait)
			wait = min(2*wait, reconnectWaitMax)
		}
	}
	c.trouble.Store(nil) // Nobody campaigns any more.
	return nil
}

// serve leads until lead returns or the lease is lost.
func (c *campaign) serve(ctx context.Context, won heldLease, lead func(ctx context.Context, lease *Lease) error) error {
	var over atomic.Bool // The lease may be held for longer than the term lasts.
	lease := NewLease(func() (time.Time, bool) {
		end, held := won.until()
		return end, held && !over.Load()
	})
	leading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	var renewing sync.WaitGroup
	renewing.Go(func() { c.pulse.Run(leading, nil) })
	renewing.Go(func() {
		if err := won.renew(leading); err != nil {
			over.Store(true)
			cancel(c.explained(err))
		}
	})
	err := lead(leading, lease)
	over.Store(true)
	cancel(nil)
	renewing.Wait()

	lost := context.Cause(leading)
	won.resign(context.WithoutCancel(ctx))
	if !errors.Is(lost, ErrLeaseLost) {
		return err
	}
	// Whatever error lead returned then, the next term begins anew.
	c.log.LogAttrs(ctx, slog.LevelWarn, "leadership lost", slog.Any("error", lost))
	return nil
}

// explained adds to the end of a lease that this process did not run, if that caused it.
func (c *campaign) explained(err error) error {
	if gap := c.pulse.Gap(); gap > 0 {
		return fmt.Errorf("this process did not run for %v: it or its machine was stopped, or it got no processor (%w)", gap.Round(time.Millisecond), err)
	}
	return err
}

// Trouble says why the elector cannot campaign; empty if it can.
func (c *campaign) Trouble() string {
	if trouble := c.trouble.Load(); trouble != nil {
		return *trouble
	}
	return ""
}

// standBy notes that another relay leads. It logs that if it is news.
func (c *campaign) standBy(ctx context.Context, news bool, leader ...slog.Attr) {
	now := time.Now()
	c.standingBy.Store(&now)
	c.trouble.Store(nil)
	if news {
		c.log.LogAttrs(ctx, slog.LevelInfo, "standing by: another relay leads", leader...)
	}
}

// standby reports whether another relay was seen to lead not long ago.
func (c *campaign) standby() bool {
	seen := c.standingBy.Load()
	return seen != nil && time.Since(*seen) < c.retry+c.lease
}

// pause waits for d, or until ctx ends: then it returns false.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
