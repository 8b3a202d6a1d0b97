//go:build !race

package relay

// racing tells that the race detector is on, with which everything takes many times as long.
const racing = false
