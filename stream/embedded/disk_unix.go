//go:build linux || darwin || freebsd

package embedded

import "syscall"

// free returns how much of a directory's disk is free; false if that is not known.
func free(dir string) (int64, bool) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, false
	}
	return int64(uint64(fs.Bavail) * uint64(fs.Bsize)), true //nolint:unconvert // The types differ between systems.
}
