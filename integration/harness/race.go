//go:build race

package harness

// Racing is explained in norace.go.
const Racing = true

// buildFlags of the outbox-relay under test: if the tests look for data races, then in there as well.
var buildFlags = []string{"-race"} //nolint:gochecknoglobals // A constant, were it not a slice.
