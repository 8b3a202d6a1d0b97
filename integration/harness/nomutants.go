//go:build !mutants

package harness

const tags = "" // See mutants.go.
