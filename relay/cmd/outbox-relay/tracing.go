package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/go-outbox/go-outbox/relay/tracing"
)

// tracingEnd is how long the last spans may take to be sent when the relay stops.
const tracingEnd = 5 * time.Second

// startTracing has spans sent to where OpenTelemetry's variables say, over HTTP: OTEL_EXPORTER_OTLP_ENDPOINT, or
// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. Without either, with OTEL_SDK_DISABLED=true or OTEL_TRACES_EXPORTER=none, nothing is
// traced. Stop sends what is left.
func (s *service) startTracing(ctx context.Context) (stop func(), err error) {
	nothing := func() {}
	get := func(name string) string {
		value, _ := s.lookupEnv(name)
		return value
	}
	endpoint := get("OTEL_EXPORTER_OTLP_ENDPOINT") + get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
	exporter := get("OTEL_TRACES_EXPORTER")
	if endpoint == "" || strings.EqualFold(get("OTEL_SDK_DISABLED"), "true") || exporter == "none" {
		return nothing, nil
	}
	if exporter != "" && exporter != "otlp" {
		return nil, &usageError{err: fmt.Errorf("OTEL_TRACES_EXPORTER is %q, want otlp or none", exporter)}
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := get(name); protocol != "" && protocol != "http/protobuf" {
			return nil, &usageError{err: fmt.Errorf("%s is %q, want http/protobuf", name, protocol)}
		}
	}
	sender, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "outbox-relay"), attribute.String("service.version", currentVersion())),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, &usageError{err: fmt.Errorf("tracing: %w", err)}
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(sender), trace.WithResource(about))
	s.hooks.Stored = tracing.Hook(provider, s.config.Stream.Name)
	return func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracingEnd)
		defer cancel()
		if err := provider.Shutdown(ending); err != nil {
			s.log.WarnContext(ctx, "some spans could not be sent", slog.Any("error", err))
		}
	}, nil
}
