package audit

// WithShares returns the options with so many events compared at once.
func (o Options) WithShares(events int) Options {
	o.shareSize = events
	return o
}
