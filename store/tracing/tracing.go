// Package tracing takes a trace's context along with an event: from the producer's ctx to the event's headers, and from the
// message's headers to the consumer's ctx, as W3C Trace Context has it (traceparent, tracestate).
//
// It uses OpenTelemetry's API. Who does not import it links nothing of OpenTelemetry. The relay passes the headers on as they
// are; package relay/tracing adds a span for the time that an event waits in the outbox.
package tracing

import (
	"context"
	"maps"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/go-outbox/go-outbox/store"
)

// Inject adds the context of ctx's span to the headers of events that are about to be inserted. Without a span in ctx it does
// nothing. A producer's map of headers is not changed: the event gets a copy.
func Inject(ctx context.Context, events ...*store.Event) {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return
	}
	for _, e := range events {
		headers := make(map[string]string, len(e.Headers)+2)
		maps.Copy(headers, e.Headers)
		propagation.TraceContext{}.Inject(ctx, propagation.MapCarrier(headers))
		e.Headers = headers
	}
}

// Extract returns ctx with the span context that a message's headers carry, as the remote parent of the spans that are begun
// with it; ctx itself if they carry none. Headers are those of a nats.Msg or a jetstream.Msg.
func Extract(ctx context.Context, headers map[string][]string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, carrier(headers))
}

// carrier reads headers whose names are as they were sent: NATS does not change their case.
type carrier map[string][]string

// Get returns a header's first value.
func (c carrier) Get(name string) string {
	if values := c[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set sets a header. Nobody calls it.
func (c carrier) Set(name, value string) { c[name] = []string{value} }

// Keys returns the names.
func (c carrier) Keys() []string {
	names := make([]string, 0, len(c))
	for name := range c {
		names = append(names, name)
	}
	return names
}
