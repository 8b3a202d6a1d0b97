//go:build !unix

package consumer_test

// work is for tests that stop processes.
func work(string, string) {}
