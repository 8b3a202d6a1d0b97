//go:build !race

package harness

var buildFlags []string //nolint:gochecknoglobals // See race.go.
