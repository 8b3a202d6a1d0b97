package stream_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/go-outbox/go-outbox/stream"
	"github.com/go-outbox/go-outbox/stream/publisher"
)

// serverOf accepts connections like a nats-server of a version, which answers
// nothing but pings.
func serverOf(t *testing.T, version string) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = answerPings(conn, version) }()
		}
	}()
	return "nats://" + listener.Addr().String()
}

func answerPings(conn net.Conn, version string) error {
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "INFO {\"server_id\":\"A\",\"version\":%q,\"proto\":1,\"headers\":true,\"max_payload\":1048576}\r\n", version); err != nil {
		return err
	}
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if lines.Text() == "PING" {
			if _, err := conn.Write([]byte("PONG\r\n")); err != nil {
				return err
			}
		}
	}
	return nil
}

// A server that is too old is refused by name; one of a version that nobody
// knows is not.
func TestOldServerIsRefused(t *testing.T) {
	t.Parallel()
	for version, refused := range map[string]bool{
		"2.8.4": true, "2.8.99-beta.1": true, "2.7.0": true, "1.4.1": true, "0.9.0": true,
		"2.9.0": false, "2.9.25": false, "2.10.0-RC.1": false, "v2.11.3": false, "2.15.2": false, "3.0.0": false,
		"": false, "main": false, "2": false, "two.eight": false, "99999999999999999999.1": false, "-2.1": false,
	} {
		conn, err := stream.Connect(t.Context(), stream.ConnectOptions{URL: serverOf(t, version)})
		if err != nil {
			t.Errorf("%q: %v", version, err)
			continue
		}
		err = stream.CheckServer(conn)
		conn.Close()
		if (err != nil) != refused {
			t.Errorf("%q: got %v, want refused: %v", version, err, refused)
		}
		fault, ok := errors.AsType[*stream.Error](err)
		if refused && (!ok || fault.Fault != stream.FaultSetup || !strings.Contains(err.Error(), "is version "+version) || !strings.Contains(err.Error(), "2.9")) {
			t.Errorf("%q: got %v, want a set-up fault that names both versions", version, err)
		}
	}
}

// The relay does not get as far as JetStream with such a server.
func TestOpenRefusesOldServer(t *testing.T) {
	t.Parallel()
	p, err := publisher.New(publisher.Options{Connect: stream.ConnectOptions{URL: serverOf(t, "2.8.4")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if _, err := p.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "2.8.4") {
		t.Errorf("got %v, want the server refused", err)
	}
}

// What is said of ordered batches names the server's version, the setting and
// the command, and warns of a downgrade.
func TestBatchAdvice(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		version string
		has     bool
		want    []string
	}{
		{"2.15.2", true, []string{"available", "before a downgrade", "allow_batched: false", "$JS.API.STREAM.UPDATE.OUTBOX"}},
		{"2.12.4", true, []string{"2.12.4", "does not know", "allow_batched: false"}},
		{"2.12.4", false, []string{"not available", "2.14", "2.12.4"}},
		{"2.14.0", false, []string{"not available", "allow_batched: true"}},
		{"dev", false, []string{"not available", "allow_batched: true"}},
	} {
		conn, err := stream.Connect(t.Context(), stream.ConnectOptions{URL: serverOf(t, tt.version)})
		if err != nil {
			t.Fatal(err)
		}
		got := stream.ConnectOptions{}.BatchAdvice(conn, "OUTBOX", tt.has)
		conn.Close()
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s, %v: got %q, want %q in it", tt.version, tt.has, got, want)
			}
		}
	}
}
