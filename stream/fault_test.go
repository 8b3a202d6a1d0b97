package stream

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func TestClassify(t *testing.T) {
	answer := func(status int, code jetstream.ErrorCode, text string) error {
		return fmt.Errorf("nats: %w", &jetstream.APIError{Code: status, ErrorCode: code, Description: text})
	}
	for _, test := range []struct {
		err       error
		fault     Fault
		ambiguous bool
	}{
		// The row's.
		{answer(400, 10054, "message size exceeds maximum allowed"), FaultRow, false},
		{answer(400, 10097, "header size exceeds maximum allowed of 64k"), FaultRow, false},
		{answer(503, 10077, "message too large"), FaultRow, false},
		{answer(503, 10077, "maximum messages per subject exceeded"), FaultRow, false},
		{answer(500, 10111, "rollup not permitted"), FaultRow, false},
		{answer(400, 10166, "per-message TTL is disabled"), FaultRow, false},
		{nats.ErrMaxPayload, FaultRow, false},
		{nats.ErrBadSubject, FaultRow, false},
		{nats.ErrBadHeaderMsg, FaultRow, false},
		{fmt.Errorf("%w: x", jetstream.ErrInvalidSubject), FaultRow, false},

		// The set-up's.
		{answer(503, 10077, "write /data/1.blk: no space left on device"), FaultSetup, true},
		{answer(400, 10026, "maximum consumers limit reached"), FaultSetup, false},
		{answer(400, 10060, "expected stream does not match"), FaultSetup, true}, // It is another stream that says so.
		{answer(400, 10109, "invalid operation on sealed stream"), FaultSetup, false},
		{answer(400, 10205, "batch publish is disabled"), FaultSetup, false},
		{answer(400, 10169, "message counter increment is missing"), FaultSetup, false},
		{jetstream.ErrStreamNotFound, FaultSetup, false},
		{jetstream.ErrStreamNameAlreadyInUse, FaultSetup, false},
		{jetstream.ErrJetStreamNotEnabled, FaultSetup, false},
		{jetstream.ErrJetStreamNotEnabledForAccount, FaultSetup, false},
		{nats.ErrHeadersNotSupported, FaultSetup, false},
		{nats.ErrAuthorization, FaultSetup, true},
		{fmt.Errorf("%w: x", nats.ErrPermissionViolation), FaultSetup, true},
		{&fs.PathError{Op: "open", Path: "user.creds", Err: fs.ErrNotExist}, FaultSetup, true},
		{fmt.Errorf("%w: %w", nats.ErrTLS, x509.UnknownAuthorityError{}), FaultSetup, true},

		// The weather.
		{answer(503, 10077, "maximum messages exceeded"), FaultWeather, false},
		{answer(503, 10077, "maximum bytes exceeded"), FaultWeather, false},
		{answer(503, 10023, "insufficient resources"), FaultWeather, false},
		{answer(500, 10047, "insufficient storage resources available"), FaultWeather, false},
		{answer(429, 10167, "too many requests"), FaultWeather, false},
		{answer(400, 10071, "wrong last sequence: 7"), FaultWeather, false},
		{answer(400, 10164, "wrong last sequence"), FaultWeather, false},
		{answer(400, 10208, "batch publish ID unknown"), FaultWeather, false},
		{answer(409, 10158, "duplicate message id is in process"), FaultWeather, true},
		{answer(503, 10063, "expected stream sequence does not match"), FaultWeather, true},
		{answer(500, 10009, "JetStream cluster can not handle request"), FaultWeather, true},
		{answer(500, 19999, "not invented yet"), FaultWeather, true},
		{nats.ErrNoResponders, FaultWeather, false},
		{jetstream.ErrNoStreamResponse, FaultWeather, false},
		{nats.ErrReconnectBufExceeded, FaultWeather, false},
		{jetstream.ErrTooManyStalledMsgs, FaultWeather, false},
		{nats.ErrTimeout, FaultWeather, true},
		{jetstream.ErrAsyncPublishTimeout, FaultWeather, true},
		{context.DeadlineExceeded, FaultWeather, true},
		{context.Canceled, FaultWeather, true},
		{nats.ErrDisconnected, FaultWeather, true},
		{nats.ErrConnectionClosed, FaultWeather, true},
		{nats.ErrStaleConnection, FaultWeather, true},
		{jetstream.ErrInvalidJSAck, FaultWeather, true},
		{nats.ErrNoServers, FaultWeather, true},
		{&net.OpError{Op: "write", Err: errors.New("broken pipe")}, FaultWeather, true},
		{fmt.Errorf("%w: %w", nats.ErrTLS, io.EOF), FaultWeather, true},
		{errors.New("not heard of"), FaultWeather, true},
	} {
		for _, err := range []error{test.err, fmt.Errorf("publish: %w", test.err)} {
			got := Classify(err)
			if got.Fault != test.fault || got.Ambiguous() != test.ambiguous {
				t.Errorf("Classify(%v) = %v, ambiguous %v; want %v, %v", err, got.Fault, got.Ambiguous(), test.fault, test.ambiguous)
			}
			if !errors.Is(got, test.err) || got.Error() != err.Error() {
				t.Errorf("Classify(%v) lost its cause: %v", err, got)
			}
		}
	}
}

func TestClassifyKeepsCodeAndStatus(t *testing.T) {
	got := Classify(&jetstream.APIError{Code: 409, ErrorCode: CodeDuplicateInProcess})
	if got.Code != 10158 || got.Status != 409 {
		t.Errorf("code %d, status %d; want 10158 and 409", got.Code, got.Status)
	}
}

func TestClassifyOfNilAndOfItsOwn(t *testing.T) {
	if got := Classify(nil); got != nil {
		t.Errorf("Classify(nil) = %v", got)
	}
	inner := &Error{Fault: FaultRow, Code: 10054, Status: 400, Err: io.EOF, Refused: true}
	got := Classify(fmt.Errorf("publish: %w", inner))
	if got.Fault != FaultRow || got.Code != 10054 || got.Status != 400 || got.Ambiguous() || got.Error() != "publish: EOF" {
		t.Errorf("Classify of an Error = %+v", got)
	}
	if inner.Error() != "EOF" {
		t.Errorf("Classify changed the error it was given: %v", inner)
	}
}

func TestFaultString(t *testing.T) {
	for fault, want := range map[Fault]string{FaultWeather: "weather", FaultSetup: "setup", FaultRow: "row", 99: "weather"} {
		if got := fault.String(); got != want {
			t.Errorf("Fault(%d) = %q, want %q", int(fault), got, want)
		}
	}
}

// Each code that the classifier knows must still mean what its comment says.
func TestCodesAreThoseOfTheServer(t *testing.T) {
	for code, name := range map[int]server.ErrorIdentifier{
		CodeWrongLastSequence:  server.JSStreamWrongLastSequenceErrF,
		CodeDuplicateInProcess: server.JSStreamDuplicateMessageConflict,
		CodeSequenceInProcess:  server.JSStreamWrongLastSequenceConstantErr,
		CodeMessageTooLarge:    server.JSStreamMessageExceedsMaximumErr,
		10205:                  server.JSBatchPublishDisabledErr,
		10208:                  server.JSBatchPublishUnknownBatchIDErr,
		10211:                  server.JSBatchPublishTooManyInflight,
		10060:                  server.JSStreamNotMatchErr,
		10065:                  server.JSStreamSubjectOverlapErr,
		10077:                  server.JSStreamStoreFailedF,
		10097:                  server.JSStreamHeaderExceedsMaximumErr,
		10109:                  server.JSStreamSealedErr,
	} {
		if got := server.ApiErrors[name].ErrCode; int(got) != code {
			t.Errorf("%d is %d on this server", code, got)
		}
	}
}

// What a real server answers, and what the client says without one.
func TestClassifyOfRealFailures(t *testing.T) {
	for name, test := range map[string]struct {
		config    func(*jetstream.StreamConfig)
		prepare   func(t *testing.T, srv *streamtest.Server, js jetstream.JetStream)
		msg       func(*nats.Msg)
		fault     Fault
		code      int
		ambiguous bool
	}{
		"over max_msg_size": {
			config: func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100 },
			msg:    func(m *nats.Msg) { m.Data = make([]byte, 101) },
			fault:  FaultRow, code: 10054,
		},
		"over max_payload": {
			msg:   func(m *nats.Msg) { m.Data = make([]byte, 1<<20+1) },
			fault: FaultRow,
		},
		"large headers": {
			msg:   func(m *nats.Msg) { m.Header.Set("X", strings.Repeat("x", 1<<16)) },
			fault: FaultRow, code: 10097,
		},
		"rollup": {
			msg:   func(m *nats.Msg) { m.Header.Set("Nats-Rollup", "all") },
			fault: FaultRow, code: 10111,
		},
		"full": {
			config: func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 1, jetstream.DiscardNew },
			prepare: func(t *testing.T, _ *streamtest.Server, js jetstream.JetStream) {
				t.Helper()
				if _, err := js.Publish(t.Context(), "events.1", nil); err != nil {
					t.Fatal(err)
				}
			},
			fault: FaultWeather, code: 10077,
		},
		"fenced": {
			msg: func(m *nats.Msg) {
				m.Header.Set("Nats-Expected-Last-Subject-Sequence", "7")
				m.Header.Set("Nats-Expected-Last-Subject-Sequence-Subject", "events.fence")
			},
			fault: FaultWeather, code: CodeWrongLastSequence,
		},
		"fence without a sequence": {
			msg:   func(m *nats.Msg) { m.Header.Set("Nats-Expected-Last-Subject-Sequence-Subject", "events.fence") },
			fault: FaultSetup, code: 10193,
		},
		"another stream": {
			msg:   func(m *nats.Msg) { m.Header.Set("Nats-Expected-Stream", "OTHER") },
			fault: FaultSetup, code: 10060, ambiguous: true,
		},
		"sealed": {
			prepare: func(t *testing.T, _ *streamtest.Server, js jetstream.JetStream) {
				t.Helper()
				config := jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Sealed: true}
				if _, err := js.UpdateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
			},
			fault: FaultSetup, code: 10109,
		},
		"no stream": {
			msg:   func(m *nats.Msg) { m.Subject = "elsewhere" },
			fault: FaultWeather,
		},
		"server gone": {
			prepare: func(t *testing.T, srv *streamtest.Server, js jetstream.JetStream) {
				t.Helper()
				disconnected := js.Conn().StatusChanged(nats.RECONNECTING)
				srv.Stop()
				<-disconnected
			},
			fault: FaultWeather,
		},
		"connection closed": {
			prepare: func(_ *testing.T, _ *streamtest.Server, js jetstream.JetStream) { js.Conn().Close() },
			fault:   FaultWeather, ambiguous: true,
		},
		"no ack": {
			config: func(c *jetstream.StreamConfig) { c.NoAck = true },
			fault:  FaultWeather, ambiguous: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := streamtest.Start(t)
			js := srv.JetStream(t, nats.ReconnectBufSize(-1))
			config := jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}}
			if test.config != nil {
				test.config(&config)
			}
			if _, err := js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			if test.prepare != nil {
				test.prepare(t, srv, js)
			}
			msg := &nats.Msg{Subject: "events.1", Header: nats.Header{}, Data: []byte("x")}
			if test.msg != nil {
				test.msg(msg)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err := js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
			if err == nil {
				t.Fatal("the publish succeeded")
			}
			if got := Classify(err); got.Fault != test.fault || got.Code != test.code || got.Ambiguous() != test.ambiguous {
				t.Errorf("Classify(%v) = %v, code %d, ambiguous %v; want %v, %d, %v",
					err, got.Fault, got.Code, got.Ambiguous(), test.fault, test.code, test.ambiguous)
			}
		})
	}
}

// A batch's answers carry the same error object as plain acks.
func TestClassifyOfAnAnswersJSON(t *testing.T) {
	var reply struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal([]byte(`{"error":{"code":400,"err_code":10054,"description":"x"}}`), &reply); err != nil {
		t.Fatal(err)
	}
	if got := Classify(reply.Error); got.Fault != FaultRow {
		t.Errorf("fault = %v, want %v", got.Fault, FaultRow)
	}
}
