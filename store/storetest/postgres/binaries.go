package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// ErrNotFound tells that this machine has no PostgreSQL server to launch, and how to get one.
var ErrNotFound = errors.New("no PostgreSQL server binaries (initdb, postgres) found: apt-get install postgresql, or brew install postgresql")

// packaged are the places where distributions put the binaries, none of them in PATH.
func packaged() []string {
	return []string{
		"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
		"/usr/pgsql-*/bin",                                   // Red Hat and kin, packages of postgresql.org
		"/usr/libexec/postgresql*",                           // Alpine
		"/opt/homebrew/opt/postgresql*/bin",                  // Homebrew, Apple silicon
		"/usr/local/opt/postgresql*/bin",                     // Homebrew, Intel
		"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",     // Homebrew, Linux
		"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
	}
}

// findBinaries returns the directory of initdb and postgres. PATH comes first, so that a developer chooses the version
// the usual way; then what pg_config names; then the newest of the distributions' packages.
func findBinaries(ctx context.Context) (string, error) {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		// A link in PATH leads to the directory where all of the server is.
		if target, err := filepath.EvalSymlinks(initdb); err == nil && complete(filepath.Dir(target)) {
			return filepath.Dir(target), nil
		}
	}
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		if dir := strings.TrimSpace(string(out)); complete(dir) {
			return dir, nil
		}
	}
	return newest(packaged())
}

// newest returns the directory of the newest server in the first of the places that has one at all. Places are patterns
// of [filepath.Glob].
func newest(places []string) (string, error) {
	for _, place := range places {
		dirs, err := filepath.Glob(place)
		if err != nil {
			return "", fmt.Errorf("find PostgreSQL in %s: %w", place, err)
		}
		slices.SortStableFunc(dirs, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
		if i := slices.IndexFunc(dirs, complete); i >= 0 {
			return dirs[i], nil
		}
	}
	return "", ErrNotFound
}

// complete tells whether a server can be launched from dir. Client packages install some of the binaries, not these.
func complete(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

// version is the last number in a path: 15 of /usr/lib/postgresql/15/bin. Paths without one come last.
func version(dir string) float64 {
	noNumber := func(r rune) bool { return !unicode.IsDigit(r) && r != '.' }
	for _, field := range slices.Backward(strings.FieldsFunc(dir, noNumber)) {
		if v, err := strconv.ParseFloat(field, 64); err == nil {
			return v
		}
	}
	return 0
}
