package election

import (
	"context"
	"time"
)

// outlast returns a context that ends d after ctx: for a request whose outcome matters even after ctx has ended.
func outlast(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	outlasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		pause(outlasting, d)
		cancel()
	})
	return outlasting, func() {
		stop()
		cancel()
	}
}
