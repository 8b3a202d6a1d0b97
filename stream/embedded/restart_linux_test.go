package embedded_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/embedded"
)

// smallDisk makes a directory on a file system with so many bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a small file system cannot be mounted here, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// After its disk was full the server stores again as soon as there is room, where it was, with what it had. It may stand at
// what it takes of the disk, or somebody else may have filled it.
func TestServerGoesOnAfterAFullDisk(t *testing.T) {
	for name, test := range map[string]struct {
		free    int // What is left on the disk when the server starts; others use up the rest later.
		refused func(error) bool
	}{
		"its share": {8 << 20, func(err error) bool {
			api, ok := errors.AsType[*jetstream.APIError](err)
			return ok && api.ErrorCode == 10023
		}},
		// A write that failed has no answer.
		"all of it": {22 << 20, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
	} {
		t.Run(name, func(t *testing.T) {
			disk := smallDisk(t, "24m")
			fill := func(file string, left int) {
				t.Helper()
				var fs syscall.Statfs_t
				if err := syscall.Statfs(disk, &fs); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(disk, file), make([]byte, int(fs.Bavail)*int(fs.Bsize)-left), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			fill("ballast", test.free)
			var log syncBuilder
			srv, err := embedded.Start(embedded.Options{Addr: "127.0.0.1:0", StoreDir: filepath.Join(disk, "store"), Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			defer srv.Close()
			url, js := srv.ClientURL(), client(t, srv)
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events"}}); err != nil {
				t.Fatal(err)
			}
			if test.free > 8<<20 {
				fill("more", 4<<20)
			}
			stored := 0
			for err == nil {
				if _, err = js.Publish(t.Context(), "events", make([]byte, 64<<10)); err == nil {
					stored++
				}
				if stored > 1000 {
					t.Fatal("the disk does not fill")
				}
			}
			if !test.refused(err) {
				t.Errorf("after %d messages: got %v\n%s", stored, err, log.String())
			}

			// As long as there is no room, it is not restarted over and over.
			time.Sleep(3 * time.Second)
			if strings.Contains(log.String(), "server restarted") {
				t.Errorf("restarted without room:\n%s", log.String())
			}
			_ = os.Remove(filepath.Join(disk, "more"))
			if err := os.Remove(filepath.Join(disk, "ballast")); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				if _, err = js.Publish(t.Context(), "events", []byte("after")); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("nothing is stored although there is room: %v\n%s", err, log.String())
				}
			}
			if got := srv.ClientURL(); got != url {
				t.Errorf("it listens on %s and not on %s any more", got, url)
			}
			str, err := js.Stream(t.Context(), "EVENTS")
			if err != nil {
				t.Fatal(err)
			}
			// What it acknowledged and had not written may be gone: the relay puts that back.
			if got := int(str.CachedInfo().State.Msgs); got < stored/2 {
				t.Errorf("it has %d messages of %d", got, stored)
			}
			if _, err := os.Stat(filepath.Join(disk, "store", "outbox-relay.room")); err == nil {
				t.Error("the file is left with which the disk was tried")
			}
			if n := strings.Count(log.String(), "server restarted"); n != 1 {
				t.Errorf("restarted %d times, want once:\n%s", n, log.String())
			}
		})
	}
}
