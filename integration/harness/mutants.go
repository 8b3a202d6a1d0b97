//go:build mutants

package harness

// tags of the outbox-relay under test: tests built to switch safeguards off want one that has the switches.
const tags = "mutants"
