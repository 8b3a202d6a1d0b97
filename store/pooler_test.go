package store_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/storetest"
)

// serve accepts connections for a test and returns a DSN that leads to them.
func serve(t *testing.T, dsn string, handle func(client net.Conn) error) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				if err := handle(client); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("fake server: %v", err)
				}
			}()
		}
	}()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = listener.Addr().String()
	return u.String()
}

// A pooler in transaction mode shows its clients a process of its own making, and lends them one after the other of
// the server's.
func TestPoolerIsRefused(t *testing.T) {
	dsn := storetest.NewDatabase(t)
	direct, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, dsn, store.Options{}).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	pooler := open(t, serve(t, dsn, func(client net.Conn) error {
		server, err := new(net.Dialer).DialContext(t.Context(), "tcp", direct.Host)
		if err != nil {
			return err
		}
		defer server.Close()
		go func() { _, _ = io.Copy(server, client) }()
		return relabel(client, server)
	}), store.Options{})

	_, err = pooler.Begin(t.Context(), "s", "me", 0)
	if !errors.Is(err, store.ErrPooler) || !store.Fatal(err) || !strings.Contains(err.Error(), "connect to the server itself") {
		t.Errorf("begin: got %v, want a fatal ErrPooler that says what to do", err)
	}
	if _, generation := pooler.Session().LastRoundTrip(); generation != 0 {
		t.Errorf("got generation %d, want none", generation)
	}
}

// relabel passes on what the server says, but for the number of its process.
func relabel(client io.Writer, server io.Reader) error {
	for {
		header := make([]byte, 5)
		if _, err := io.ReadFull(server, header); err != nil {
			return err
		}
		body := make([]byte, binary.BigEndian.Uint32(header[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return err
		}
		if header[0] == 'K' { // BackendKeyData
			binary.BigEndian.PutUint32(body, 4711)
		}
		if _, err := client.Write(append(header, body...)); err != nil {
			return nil //nolint:nilerr // The client has left.
		}
	}
}

func TestRefusedStartIsExplained(t *testing.T) {
	tests := []struct {
		name    string
		refusal pgproto3.ErrorResponse
		want    error // Nil for none of ours.
		text    string
	}{
		{"pgbouncer", pgproto3.ErrorResponse{Code: "08P01", Message: "unsupported startup parameter: tcp_keepalives_idle"}, store.ErrPooler, "not to the pooler, in whatever mode"},
		{"pgbouncer, options", pgproto3.ErrorResponse{Code: "08P01", Message: "unsupported startup parameter in options: jit"}, store.ErrPooler, "not to the pooler"},
		{"old server", pgproto3.ErrorResponse{Code: "42704", Message: `unrecognized configuration parameter "client_connection_check_interval"`}, store.ErrServerVersion, "client_connection_check_interval"},
		{"unknown setting", pgproto3.ErrorResponse{Code: "42704", Message: `unrecognized configuration parameter "shop"`}, store.ErrParameter, "take the setting out of the DSN"},
		{"wrong value", pgproto3.ErrorResponse{Code: "22023", Message: `invalid value for parameter "work_mem": "much"`}, store.ErrParameter, "take the setting out of the DSN"},
		{"too many", pgproto3.ErrorResponse{Code: "53300", Message: `too many connections for role "relay"`}, nil, "a relay needs up to 4 connections: raise"},
		{"wrong password", pgproto3.ErrorResponse{Code: "28P01", Message: `password authentication failed for user "relay"`}, nil, "password authentication failed"},
		{"starting up", pgproto3.ErrorResponse{Code: "57P03", Message: "the database system is starting up"}, nil, "starting up"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.refusal.Severity = "FATAL"
			dsn := serve(t, "postgres://relay:s3cret@host/outbox?sslmode=disable", func(client net.Conn) error {
				protocol := pgproto3.NewBackend(client, client)
				if _, err := protocol.ReceiveStartupMessage(); err != nil {
					return err
				}
				protocol.Send(&tt.refusal)
				return protocol.Flush()
			})
			outbox := open(t, dsn, store.Options{})
			_, begin := outbox.Begin(t.Context(), "s", "me", 0)
			for operation, err := range map[string]error{"begin": begin, "check": outbox.Check(t.Context())} {
				if err == nil || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), "refused by Postgres") {
					t.Errorf("%s: got %v, want one that tells %q", operation, err, tt.text)
					continue
				}
				if strings.Contains(err.Error(), "s3cret") {
					t.Errorf("%s: error %q tells the password", operation, err)
				}
				for _, ours := range []error{store.ErrPooler, store.ErrServerVersion, store.ErrParameter} {
					if got, want := errors.Is(err, ours), ours == tt.want; got != want { //nolint:errorlint // It is the very value.
						t.Errorf("%s: %v is %v: got %v, want %v", operation, err, ours, got, want)
					}
				}
				if got, want := store.Fatal(err), tt.want != nil; got != want {
					t.Errorf("%s: %v is fatal: got %v, want %v", operation, err, got, want)
				}
			}
		})
	}
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	for name, tt := range map[string]struct {
		dsn   string
		table store.Table
		want  string
	}{
		"DSN":         {"postgres://relay:s3cret@host:notaport/outbox", store.Table{}, "database DSN"},
		"long name":   {"postgres://host/outbox", store.Table{Name: strings.Repeat("x", store.MaxNameLen+1)}, "at most 48"},
		"zero byte":   {"postgres://host/outbox", store.Table{Schema: "a\x00b"}, "zero byte"},
		"long schema": {"postgres://host/outbox", store.Table{Schema: strings.Repeat("x", 64)}, "at most 63"},
	} {
		_, err := store.Open(tt.dsn, store.Options{Table: tt.table})
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %v, want an error with %q and without the password", name, err, tt.want)
		}
	}
}
