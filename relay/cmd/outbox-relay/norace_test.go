//go:build !race

package main

// lateShare is which part of the events may be late: the machine may be busy.
const lateShare = 20
