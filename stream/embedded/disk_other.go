//go:build !linux && !darwin && !freebsd

package embedded

// free returns how much of a directory's disk is free; false if that is not known.
func free(string) (int64, bool) { return 0, false }
