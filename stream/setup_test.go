package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/go-outbox/go-outbox/stream/streamtest"
)

func testSetup(t *testing.T) Setup {
	t.Helper()
	return Setup{Stream: "OUTBOX", Template: defaultTemplate(t), MinWindow: time.Minute}
}

func TestEnsureCreatesTheStream(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	setup := testSetup(t)
	setup.Create, setup.Strict = true, true
	report, err := setup.Ensure(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	if !report.Created || len(report.Warnings) != 0 {
		t.Errorf("Created = %v, Warnings = %q; want true and none", report.Created, report.Warnings)
	}
	got := report.Info.Config
	if got.Name != "OUTBOX" || fmt.Sprint(got.Subjects) != "[outbox.> _outbox.OUTBOX.*]" || got.Retention != jetstream.LimitsPolicy ||
		got.Storage != jetstream.FileStorage || got.Replicas != 1 || got.Duplicates != DefaultDuplicateWindow ||
		got.MaxAge != 0 || !got.AllowDirect || !got.AllowBatchPublish || got.Metadata["created_by"] == "" {
		t.Errorf("created %+v", got)
	}

	report, err = setup.Ensure(t.Context(), js)
	if err != nil || report.Created {
		t.Errorf("the second time: Created = %v, %v; want false and no error", report.Created, err)
	}
}

func TestTheZeroSetupHasDefaults(t *testing.T) {
	if err := (Setup{}).Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
	if s := (Setup{}).OrDefault(); s.Stream != DefaultStream || s.Template.String() != DefaultTemplate {
		t.Errorf("the stream is %q with the template %q, want %q and %q", s.Stream, s.Template, DefaultStream, DefaultTemplate)
	}

	js := streamtest.Start(t).JetStream(t)
	_, err := Setup{}.Ensure(t.Context(), js)
	wantSetupFault(t, err, `stream "OUTBOX": does not exist`, "--subjects 'outbox.>'")
	report, err := Setup{Create: true}.Ensure(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	if got := report.Info.Config; got.Name != DefaultStream || fmt.Sprint(got.Subjects) != "[outbox.> _outbox.OUTBOX.*]" {
		t.Errorf("created %s for %q, want %s for outbox.>", got.Name, got.Subjects, DefaultStream)
	}
	if report, err = (Setup{}).Ensure(t.Context(), js); err != nil || report.Created {
		t.Errorf("once it is there: Created = %v, %v; want false and no error", report.Created, err)
	}
}

func TestEnsureCreatesTheStreamAsTold(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Setup)
		want   func(jetstream.StreamConfig) bool
	}{
		"window": {
			func(s *Setup) { s.DuplicateWindow = time.Hour },
			func(c jetstream.StreamConfig) bool { return c.Duplicates == time.Hour },
		},
		"short age": {
			func(s *Setup) { s.MaxAge = 2 * time.Minute },
			func(c jetstream.StreamConfig) bool { return c.MaxAge == 2*time.Minute && c.Duplicates == 2*time.Minute },
		},
		"long least window": {
			func(s *Setup) { s.MinWindow = time.Hour },
			func(c jetstream.StreamConfig) bool { return c.Duplicates == time.Hour },
		},
		"memory": {
			func(s *Setup) { s.Memory = true },
			func(c jetstream.StreamConfig) bool { return c.Storage == jetstream.MemoryStorage },
		},
	} {
		t.Run(name, func(t *testing.T) {
			setup := testSetup(t)
			setup.Create = true
			test.change(&setup)
			// Each has a server of its own: one that has just deleted a stream may fail to create another of that name.
			report, err := setup.Ensure(t.Context(), streamtest.Start(t).JetStream(t))
			if err != nil {
				t.Fatal(err)
			}
			if !test.want(report.Info.Config) {
				t.Errorf("created %+v", report.Info.Config)
			}
		})
	}
}

func TestEnsureCreatesNothingThatItWouldRefuse(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	setup := testSetup(t)
	setup.Create, setup.Strict, setup.Memory = true, true, true
	_, err := setup.Ensure(t.Context(), js)
	wantSetupFault(t, err, "is not created", "memory storage")
	if _, err := js.Stream(t.Context(), setup.Stream); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("look for the stream: %v, want %v", err, jetstream.ErrStreamNotFound)
	}
}

func TestEnsureByManyAtOnce(t *testing.T) {
	srv := streamtest.Start(t)
	var wg sync.WaitGroup
	for i := range 8 {
		js := srv.JetStream(t)
		setup := testSetup(t)
		setup.Create = true
		setup.MaxAge = time.Duration(1+i%2) * time.Hour // two versions of one relay
		wg.Go(func() {
			if _, err := setup.Ensure(t.Context(), js); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// Between the look and the attempt to create, somebody else creates the
// stream, in another way.
func TestCreateAfterSomebodyElse(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}, MaxAge: time.Hour}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	setup := testSetup(t)
	setup.Create = true
	str, created, err := setup.create(t.Context(), js)
	if err != nil || created || str.CachedInfo().Config.MaxAge != time.Hour {
		t.Errorf("create = %v, created %v, %v; want the other's stream", str, created, err)
	}
}

func TestEnsureRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		config jetstream.StreamConfig
		want   []string
	}{
		"absent": {jetstream.StreamConfig{}, []string{"does not exist", "nats stream add OUTBOX --subjects 'outbox.>' --dupe-window 10m0s"}},
		"other subjects": {
			jetstream.StreamConfig{Subjects: []string{"outbox.orders.>", "audit.>"}},
			[]string{`does not cover "outbox.*.*.*"`, "nats stream edit OUTBOX --subjects 'audit.>,outbox.>'"},
		},
		"too few tokens": {jetstream.StreamConfig{Subjects: []string{"outbox.*.*"}}, []string{"does not cover"}},
		"no ack": {
			jetstream.StreamConfig{Subjects: []string{"outbox.>"}, NoAck: true},
			[]string{"no_ack", "nats stream edit OUTBOX --ack"},
		},
		"mirror":  {jetstream.StreamConfig{Mirror: &jetstream.StreamSource{Name: "ORIGIN"}}, []string{`is a mirror of "ORIGIN"`}},
		"counter": {jetstream.StreamConfig{Subjects: []string{"outbox.>"}, AllowMsgCounter: true, AllowDirect: true}, []string{"is a counter"}},
		"transform": {
			jetstream.StreamConfig{
				Subjects:         []string{"outbox.>"},
				SubjectTransform: &jetstream.SubjectTransformConfig{Source: "outbox.orders.>", Destination: "moved.>"},
			},
			[]string{"subject_transform", `"moved.>"`},
		},
		"transform of all": {
			jetstream.StreamConfig{
				Subjects:         []string{"outbox.>"},
				SubjectTransform: &jetstream.SubjectTransformConfig{Destination: "moved.>"},
			},
			[]string{"subject_transform"},
		},
		"several at once": {
			jetstream.StreamConfig{Subjects: []string{"other"}, NoAck: true},
			[]string{"no_ack", "does not cover"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			js := streamtest.Start(t).JetStream(t)
			if test.config.Mirror != nil {
				if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: test.config.Mirror.Name}); err != nil {
					t.Fatal(err)
				}
			}
			if name != "absent" {
				test.config.Name = "OUTBOX"
				if _, err := js.CreateStream(t.Context(), test.config); err != nil {
					t.Fatal(err)
				}
			}
			_, err := testSetup(t).Ensure(t.Context(), js)
			wantSetupFault(t, err, append(test.want, `stream "OUTBOX"`)...)
		})
	}
}

func TestEnsureRefusesASealedStream(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	config := jetstream.StreamConfig{Name: "OUTBOX", Subjects: []string{"outbox.>"}}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	config.Sealed = true
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	_, err := testSetup(t).Ensure(t.Context(), js)
	wantSetupFault(t, err, "is sealed")
}

func TestEnsureAcceptsWhatDoesNoHarm(t *testing.T) {
	for name, config := range map[string]jetstream.StreamConfig{
		"exact subjects": {Subjects: []string{"audit.>", "outbox.*.*.*"}},
		"transform of others": {
			Subjects:         []string{"outbox.>", "audit.>"},
			SubjectTransform: &jetstream.SubjectTransformConfig{Source: "audit.*", Destination: "audit.moved.{{wildcard(1)}}"},
		},
		"republish": {Subjects: []string{"outbox.>"}, RePublish: &jetstream.RePublish{Source: ">", Destination: "copy.>"}},
		"limits":    {Subjects: []string{"outbox.>"}, MaxMsgs: 1000, MaxBytes: 1 << 20, MaxMsgSize: 1024, Discard: jetstream.DiscardNew},
	} {
		t.Run(name, func(t *testing.T) {
			js := streamtest.Start(t).JetStream(t)
			config.Name = "OUTBOX"
			if _, err := js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			setup := testSetup(t)
			setup.Strict = true
			report, err := setup.Ensure(t.Context(), js)
			if err != nil || report.Created || len(report.Warnings) != 0 {
				t.Errorf("Ensure = %+v, %v; want neither warnings nor an error", report, err)
			}
		})
	}
}

func TestEnsureWarnsOrRefusesWhenStrict(t *testing.T) {
	for name, test := range map[string]struct {
		config jetstream.StreamConfig
		want   string
	}{
		"window":      {jetstream.StreamConfig{Duplicates: 30 * time.Second}, "--dupe-window 1m0s"},
		"work queue":  {jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy}, "workqueue retention"},
		"interest":    {jetstream.StreamConfig{Retention: jetstream.InterestPolicy}, "interest retention"},
		"memory":      {jetstream.StreamConfig{Storage: jetstream.MemoryStorage}, "memory storage"},
		"persistence": {jetstream.StreamConfig{PersistMode: jetstream.AsyncPersistMode}, "asynchronous persistence"},
		"last values": {jetstream.StreamConfig{MaxMsgsPerSubject: 1}, "--max-msgs-per-subject"},
		"full subject": {
			jetstream.StreamConfig{MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true},
			"discard_new_per_subject",
		},
	} {
		t.Run(name, func(t *testing.T) {
			js := streamtest.Start(t).JetStream(t)
			test.config.Name, test.config.Subjects = "OUTBOX", []string{"outbox.>"}
			before, err := js.CreateStream(t.Context(), test.config)
			if err != nil {
				t.Fatal(err)
			}
			setup := testSetup(t)
			setup.Create = true // alters nothing that exists
			report, err := setup.Ensure(t.Context(), js)
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0].Text, test.want) {
				t.Errorf("Warnings = %q, want one with %q", report.Warnings, test.want)
			}
			setup.Strict = true
			_, err = setup.Ensure(t.Context(), js)
			wantSetupFault(t, err, test.want)

			after, err := js.Stream(t.Context(), "OUTBOX")
			if err != nil {
				t.Fatal(err)
			}
			if got, want := fmt.Sprintf("%+v", after.CachedInfo().Config), fmt.Sprintf("%+v", before.CachedInfo().Config); got != want {
				t.Errorf("the stream was altered: %s, was %s", got, want)
			}
		})
	}
}

func TestEnsureNamesTheStreamThatIsInTheWay(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "LEGACY", Subjects: []string{"outbox.legacy"}}); err != nil {
		t.Fatal(err)
	}
	setup := testSetup(t)
	setup.Create = true
	_, err := setup.Ensure(t.Context(), js)
	wantSetupFault(t, err, `stream "LEGACY"`, DefaultTemplate)
}

func TestEnsureExplainsTheServersRefusal(t *testing.T) {
	js := streamtest.Start(t).JetStream(t)
	setup := testSetup(t)
	setup.Create, setup.Replicas = true, 3
	_, err := setup.Ensure(t.Context(), js)
	wantSetupFault(t, err, "replicas > 1 not supported")
}

func TestEnsureWithoutJetStream(t *testing.T) {
	off := streamtest.Start(t, func(o *server.Options) { o.JetStream = false })
	_, err := testSetup(t).Ensure(t.Context(), off.JetStream(t))
	if err == nil || !strings.Contains(err.Error(), "JetStream does not answer") {
		t.Errorf("Ensure: %v; want an error that says so", err)
	}
	if got := Classify(err).Fault; got != FaultWeather {
		t.Errorf("fault = %v: it cannot be told from a server that is just starting", got)
	}

	account := streamtest.Start(t, func(o *server.Options) {
		o.Accounts = []*server.Account{server.NewAccount("APP")}
		o.Users = []*server.User{{Username: "relay", Password: "relay", Account: o.Accounts[0]}}
	})
	_, err = testSetup(t).Ensure(t.Context(), account.JetStream(t, nats.UserInfo("relay", "relay")))
	if err == nil || !strings.Contains(err.Error(), "JetStream") {
		t.Errorf("Ensure: %v; want an error about JetStream", err)
	}
}

func TestEnsureWhenNothingAnswersIsWeather(t *testing.T) {
	// A subscriber listens, so there is no "no responders", but it does not answer.
	fake := fakeAPI(t, func(string, []byte) any { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := testSetup(t).Ensure(ctx, fake)
	if err == nil || !strings.Contains(err.Error(), "did not answer in time") || Classify(err).Fault != FaultWeather {
		t.Errorf("Ensure: %v; want weather", err)
	}
}

func TestEnsureExplainsThatJetStreamIsOff(t *testing.T) {
	for _, code := range []jetstream.ErrorCode{10039, 10076} {
		fake := fakeAPI(t, func(string, []byte) any {
			return map[string]any{"error": jetstream.APIError{Code: 503, ErrorCode: code, Description: "not enabled"}}
		})
		_, err := testSetup(t).Ensure(t.Context(), fake)
		wantSetupFault(t, err, "JetStream is not enabled")
	}
}

// A server from before 2.14 that takes no unknown fields.
func TestEnsureCreatesTheStreamOnAnOldServer(t *testing.T) {
	attempts := make(chan bool, 10)
	fake := fakeAPI(t, func(request string, body []byte) any {
		if request != "STREAM.CREATE.OUTBOX" {
			return map[string]any{"error": jetstream.APIError{Code: 404, ErrorCode: 10059, Description: "stream not found"}}
		}
		var config jetstream.StreamConfig
		if err := json.Unmarshal(body, &config); err != nil {
			t.Error(err)
		}
		attempts <- config.AllowBatchPublish
		if config.AllowBatchPublish {
			return map[string]any{"error": jetstream.APIError{Code: 400, ErrorCode: 10025, Description: `invalid JSON: json: unknown field "allow_batched"`}}
		}
		return map[string]any{"config": config}
	})
	setup := testSetup(t)
	setup.Create = true
	report, err := setup.Ensure(t.Context(), fake)
	if err != nil || !report.Created || report.Info.Config.AllowBatchPublish {
		t.Errorf("Ensure = %+v, %v; want a stream without batches", report, err)
	}
	if first, second := <-attempts, <-attempts; !first || second {
		t.Errorf("asked for batches: %v, then %v; want true, then false", first, second)
	}
}

// fakeAPI answers JetStream's requests in the place of a server; nil is no
// answer.
func fakeAPI(t *testing.T, answer func(request string, body []byte) any) jetstream.JetStream {
	t.Helper()
	srv := streamtest.Start(t, func(o *server.Options) { o.JetStream = false })
	nc := srv.Conn(t)
	_, err := nc.Subscribe("$JS.API.>", func(msg *nats.Msg) {
		reply := answer(strings.TrimPrefix(msg.Subject, "$JS.API."), msg.Data)
		if reply == nil {
			return
		}
		body, err := json.Marshal(reply)
		if err != nil {
			t.Error(err)
		}
		if err := msg.Respond(body); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return srv.JetStream(t)
}

func TestSetupValidate(t *testing.T) {
	if err := testSetup(t).Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Setup){
		`Stream: "A.B"`:           func(s *Setup) { s.Stream = "A.B" },
		`Stream: "A\nB"`:          func(s *Setup) { s.Stream = "A\nB" },
		"DuplicateWindow: 99ms":   func(s *Setup) { s.DuplicateWindow = 99 * time.Millisecond },
		"DuplicateWindow: 2h0m0s": func(s *Setup) { s.DuplicateWindow, s.MaxAge = 2*time.Hour, time.Hour },
		"MaxAge: ":                func(s *Setup) { s.MaxAge = -1 },
		"Replicas: 6":             func(s *Setup) { s.Replicas = 6 },
		"MinWindow: ":             func(s *Setup) { s.MinWindow = -1 },
		"\nReplicas: -1":          func(s *Setup) { s.Stream, s.Replicas = "A.B", -1 }, // both are told
	} {
		setup := testSetup(t)
		change(&setup)
		if err := setup.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate = %v, want an error with %q", err, want)
		}
		_, err := setup.Ensure(t.Context(), nil)
		wantSetupFault(t, err, want)
	}
}

func wantSetupFault(t *testing.T, err error, wants ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", wants)
		return
	}
	if got := Classify(err).Fault; got != FaultSetup {
		t.Errorf("%v: fault = %v, want %v", err, got, FaultSetup)
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q, want one with %q", err, want)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, test := range []struct {
		pattern, filter string
		want            bool
	}{
		{"outbox.>", "outbox.*.*.*", true},
		{">", "outbox.*.*.*", true},
		{"*.>", "outbox.*.*.*", true},
		{"outbox.*.*.*", "outbox.*.*.*", true},
		{"*.*.*.*", "outbox.*.*.*", true},
		{"outbox.*.>", "outbox.*.*.*", true},
		{"outbox.*.*", "outbox.*.*.*", false},
		{"outbox.*.*.*.*", "outbox.*.*.*", false},
		{"outbox.*.*.*.>", "outbox.*.*.*", false},
		{"outbox.orders.*.*", "outbox.*.*.*", false},
		{"outbox.orders.>", "outbox.*.*.*", false},
		{"other.>", "outbox.*.*.*", false},
		{"outbox", "outbox.*.*.*", false},
		{"a.*", "a.>", false},
		{"a.>", "a.>", true},
		{"a.>", "a", false},
		{"a.b", "a.b", true},
	} {
		if got := covers(test.pattern, test.filter); got != test.want {
			t.Errorf("covers(%q, %q) = %v, want %v", test.pattern, test.filter, got, test.want)
		}
	}
}

func TestOverlaps(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{">", "outbox.*.*.*", true},
		{"outbox.orders.>", "outbox.*.*.*", true},
		{"*.orders.x.y", "outbox.*.*.*", true},
		{"outbox.*.*", "outbox.*.*.*", false},
		{"audit.>", "outbox.*.*.*", false},
		{"outbox.>", "outbox", false},
		{"a.b", "a.b", true},
		{"a.b", "a.c", false},
	} {
		if got, back := overlaps(test.a, test.b), overlaps(test.b, test.a); got != test.want || back != test.want {
			t.Errorf("overlaps(%q, %q) = %v, %v the other way; want %v", test.a, test.b, got, back, test.want)
		}
		if got := server.SubjectsCollide(test.a, test.b); got != test.want {
			t.Errorf("the server says %v of %q and %q, want %v", got, test.a, test.b, test.want)
		}
	}
}
