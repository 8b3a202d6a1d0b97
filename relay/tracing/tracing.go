// Package tracing shows in a trace for how long each event waited in the outbox.
//
// An event whose headers carry a W3C trace context, as store/tracing puts it there, gets a span "outbox publish", a child of
// the producer's: from the event's insert, by the database's clock, to the stream's acknowledgement, by the relay's. Other
// events get none. The message's headers stay as they are, so the spans of consumers are children of the producer's, too.
//
// Who does not import it links nothing of OpenTelemetry, and the relay does nothing for it.
package tracing

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/go-outbox/go-outbox/relay"
)

// scope names who made the spans.
const scope = "github.com/go-outbox/go-outbox/relay"

// SpanName is the name of the spans.
const SpanName = "outbox publish"

// parentHeader carries the trace context. An event without it is not traced.
const parentHeader = "traceparent"

// Hook returns a [relay.Hooks.Stored] that makes the spans. Stream is the stream's name.
func Hook(provider trace.TracerProvider, stream string) func(relay.Stored) {
	tracer := provider.Tracer(scope)
	common := trace.WithAttributes(
		attribute.String("messaging.system", "nats"),
		attribute.String("messaging.operation.type", "send"),
		attribute.String("outbox.stream", stream),
	)
	return func(s relay.Stored) {
		parent, ok := parentOf(s.Headers)
		if !ok {
			return
		}
		now := time.Now()
		begun := s.CreatedAt
		if begun.After(now) { // The database's clock may be ahead of ours.
			begun = now
		}
		_, span := tracer.Start(parent, SpanName, trace.WithTimestamp(begun), trace.WithSpanKind(trace.SpanKindProducer), common, trace.WithAttributes(
			attribute.String("messaging.message.id", s.ID.String()),
			attribute.Int("messaging.message.body.size", s.Size),
			attribute.Int64("outbox.seq", s.Seq),
			attribute.String("outbox.topic", s.Topic),
			attribute.String("outbox.aggregate_type", s.AggregateType),
			attribute.String("outbox.event_type", s.EventType),
			attribute.Bool("outbox.duplicate", s.Duplicate),
		))
		span.End(trace.WithTimestamp(now))
	}
}

// parentOf returns a context with the span context that a row's headers carry.
func parentOf(headers []byte) (context.Context, bool) {
	if !bytes.Contains(headers, []byte(parentHeader)) {
		return nil, false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(headers, &fields) != nil {
		return nil, false
	}
	carrier := propagation.MapCarrier{}
	for _, name := range (propagation.TraceContext{}).Fields() {
		var value string
		if json.Unmarshal(fields[name], &value) == nil {
			carrier[name] = value
		}
	}
	parent := propagation.TraceContext{}.Extract(context.Background(), carrier)
	return parent, trace.SpanContextFromContext(parent).IsValid()
}
