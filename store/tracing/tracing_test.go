package tracing_test

import (
	"context"
	"maps"
	"testing"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"

	"github.com/go-outbox/go-outbox/store"
	"github.com/go-outbox/go-outbox/store/tracing"
)

func TestInjectAndExtract(t *testing.T) {
	state, err := trace.ParseTraceState("vendor=1")
	if err != nil {
		t.Fatal(err)
	}
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, TraceState: state})
	own := map[string]string{"tenant": "a"}
	first, second := store.Event{Headers: own}, store.Event{}
	tracing.Inject(trace.ContextWithSpanContext(t.Context(), parent), &first, &second)
	want := map[string]string{"tenant": "a", "traceparent": "00-01000000000000000000000000000000-0200000000000000-01", "tracestate": "vendor=1"}
	if !maps.Equal(first.Headers, want) {
		t.Errorf("the headers are %v, want %v", first.Headers, want)
	}
	if second.Headers["traceparent"] != want["traceparent"] {
		t.Errorf("the second event's headers are %v", second.Headers)
	}
	if len(own) != 1 {
		t.Errorf("the producer's map was changed: %v", own)
	}

	header := nats.Header{}
	for name, value := range first.Headers {
		header.Set(name, value)
	}
	got := trace.SpanContextFromContext(tracing.Extract(t.Context(), header))
	if !got.Equal(parent.WithRemote(true)) {
		t.Errorf("extracted %v, want %v", got, parent)
	}
	if got := tracing.Extract(t.Context(), nil); trace.SpanContextFromContext(got).IsValid() {
		t.Errorf("without headers there is %v", got)
	}
}

// Without a span, an event costs nothing.
func TestInjectWithoutSpan(t *testing.T) {
	event := store.Event{Headers: map[string]string{"tenant": "a"}}
	if n := testing.AllocsPerRun(100, func() { tracing.Inject(context.Background(), &event) }); n != 0 || len(event.Headers) != 1 {
		t.Errorf("%v allocations, headers %v", n, event.Headers)
	}
}
