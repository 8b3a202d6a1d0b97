//go:build race

package main

// lateShare is larger while the race detector slows all down.
const lateShare = 4
