package tracing_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/relay/tracing"
)

func TestHook(t *testing.T) {
	const parent = `"traceparent": "00-01000000000000000000000000000000-0200000000000000-01"`
	now := time.Now()
	for name, c := range map[string]struct {
		headers string
		created time.Time
		spans   int
		length  time.Duration
	}{
		"traced":                        {`{` + parent + `, "tenant": "a", "flag": true}`, now.Add(-time.Hour), 1, time.Hour},
		"the database's clock is ahead": {`{` + parent + `}`, now.Add(time.Hour), 1, 0},
		"not traced":                    {`{"tenant": "a"}`, now, 0, 0},
		"no headers":                    {``, now, 0, 0},
		"no trace context":              {`{"traceparent": "x"}`, now, 0, 0},
		"no text":                       {`{"traceparent": [1]}`, now, 0, 0},
		"no JSON":                       {`traceparent`, now, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			tracing.Hook(trace.NewTracerProvider(trace.WithSpanProcessor(recorder)), "OUTBOX")(relay.Stored{Headers: []byte(c.headers), CreatedAt: c.created})
			spans := recorder.Ended()
			if len(spans) != c.spans {
				t.Fatalf("%d spans, want %d", len(spans), c.spans)
			}
			for _, s := range spans {
				if s.Name() != tracing.SpanName || s.Parent().TraceID().String() != "01000000000000000000000000000000" || s.SpanContext().TraceID() != s.Parent().TraceID() {
					t.Errorf("the span is %s of %v", s.Name(), s.Parent())
				}
				if took := s.EndTime().Sub(s.StartTime()); took < c.length || took > c.length+time.Minute {
					t.Errorf("the span lasts %v, want %v", took, c.length)
				}
			}
		})
	}
}

// Who does not trace links nothing of OpenTelemetry.
func TestNobodyElseLinksOpenTelemetry(t *testing.T) {
	packages := []string{"store", "stream", "stream/publisher", "relay", "relay/metrics", "relay/admin", "relay/doctor", "relay/audit", "config", "election"}
	args := []string{"list", "-deps"}
	for _, name := range packages {
		args = append(args, "github.com/go-outbox/go-outbox/"+name)
	}
	out, err := exec.CommandContext(t.Context(), "go", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "github.com/go-outbox/go-outbox/relay\n") {
		t.Fatalf("go list does not list the relay:\n%s", out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "go.opentelemetry.io/") {
			t.Errorf("the library links %s", line)
		}
	}
}
