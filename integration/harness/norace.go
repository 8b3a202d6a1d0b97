//go:build !race

package harness

// Racing reports whether the tests, and the outbox-relay under test with them, look for data races. That takes several
// times the memory, and more time.
const Racing = false

var buildFlags []string //nolint:gochecknoglobals // See race.go.
