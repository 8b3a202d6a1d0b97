package stream_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/streamtest"
)

// A login that is replaced while a connection is open is read from the file at its next reconnect. What cannot be read then
// is as it was.
func TestLoginIsReadAtEachReconnect(t *testing.T) {
	t.Parallel()
	for name, logins := range map[string][2]string{
		"password":             {"relay:first", "other:sec%40nd"},
		"token":                {"first", "second"},
		"password, then token": {"relay:first", "second"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			demanded := logins[0]
			srv := streamtest.Start(t, func(o *server.Options) {
				user, password, is := strings.Cut(strings.ReplaceAll(demanded, "%40", "@"), ":")
				if o.Authorization = user; is {
					o.Authorization, o.Users = "", []*server.User{{Username: user, Password: password}}
				}
			})
			file := filepath.Join(t.TempDir(), "url")
			write := func(text string) {
				t.Helper()
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			url := func(login string) string { return strings.Replace(srv.URL(), "://", "://"+login+"@", 1) + "\n" }
			write(url(logins[0]))
			conn, err := stream.Connect(t.Context(), stream.ConnectOptions{URLFile: file})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(conn.Close)
			reconnected := func(what string) {
				t.Helper()
				before := conn.Stats().Reconnects
				srv.Restart()
				for deadline := time.Now().Add(10 * time.Second); conn.Stats().Reconnects == before || conn.FlushTimeout(time.Second) != nil; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("%s: not connected: %v", what, conn.LastError())
					}
				}
			}
			replaced := url(logins[1])
			demanded = logins[1]
			write(replaced)
			reconnected("with another login")
			write("") // As while it is being written.
			reconnected("with an unreadable file")

			again, err := stream.Connect(t.Context(), stream.ConnectOptions{URLFile: file})
			if err == nil {
				again.Close()
				t.Error("connected by an empty file")
			}
			if text := err.Error(); !strings.Contains(text, file) || !strings.Contains(text, "empty") {
				t.Errorf("got %v, want the file and what is wrong with it", err)
			}
		})
	}
}

func TestURLFileIsChecked(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nats://relay:hunter2@a,nats://b":                "",
		"nats://relay:hunter2@a,nats://relay:hunter3@b":  "different users, passwords or tokens",
		"nats://relay:hunter2@a\nnats://relay:hunter2@b": "several lines",
		"nats://relay:hunter2%zz@a":                      "malformed",
		"http://relay:hunter2@a":                         "unknown scheme",
		"":                                               "is empty",
	} {
		file := filepath.Join(t.TempDir(), "url")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := stream.ConnectOptions{URLFile: file}.Check()
		switch {
		case (err == nil) != (want == ""), err != nil && !strings.Contains(err.Error(), want), err != nil && !strings.Contains(err.Error(), file):
			t.Errorf("%q: got %v, want %q", text, err, want)
		case err != nil && strings.Contains(err.Error(), "hunter"):
			t.Errorf("%q: the secret is shown: %v", text, err)
		}
	}
	both := stream.ConnectOptions{URL: nats.DefaultURL, URLFile: "file"}
	if _, err := stream.Connect(t.Context(), both); err == nil || !strings.Contains(err.Error(), "want one of them") {
		t.Errorf("with URL and URLFile: got %v", err)
	}
}
