package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestNewest(t *testing.T) {
	root := t.TempDir()
	install := func(dir string, programs ...string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, program := range programs {
			if err := os.WriteFile(filepath.Join(root, dir, program), nil, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	install("debian/9.6/bin", "initdb", "postgres")
	install("debian/15/bin", "initdb", "postgres")
	install("debian/17/bin", "psql", "pg_dump") // the clients of 17 are no server
	install("brew/postgresql@16/bin", "initdb", "postgres")

	for _, test := range []struct {
		name   string
		places []string
		want   string
	}{
		{"newest that is complete", []string{"debian/*/bin"}, "debian/15/bin"},
		{"first place wins", []string{"none/*/bin", "debian/*/bin", "brew/*/bin"}, "debian/15/bin"},
		{"version in a longer name", []string{"brew/postgresql*/bin"}, "brew/postgresql@16/bin"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var places []string
			for _, place := range test.places {
				places = append(places, filepath.Join(root, place))
			}
			got, err := newest(places)
			if want := filepath.Join(root, test.want); err != nil || got != want {
				t.Errorf("newest = %q, %v, want %q", got, err, want)
			}
		})
	}
	if got, err := newest([]string{filepath.Join(root, "none/*/bin")}); !errors.Is(err, ErrNotFound) {
		t.Errorf("newest = %q, %v, want %v", got, err, ErrNotFound)
	}
}
