package consumer

import "context"

// Lead consumes without having been elected, as one does that was frozen and does not know of its successor.
func (c *Consumer) Lead(ctx context.Context) error { return c.lead(ctx) }
